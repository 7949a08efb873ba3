"""Logs of the libraries below, which print names from files as they are."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["silenced"]


@contextmanager
def silenced(name: str) -> Generator[None]:
    """Keep a logger quiet for a while: what it warns of is told as an error, or does no harm."""
    log = logging.getLogger(name)
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was
