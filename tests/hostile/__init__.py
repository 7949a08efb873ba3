"""Hostile and broken files: what tieops must refuse in one clear error, and what it must accept."""
