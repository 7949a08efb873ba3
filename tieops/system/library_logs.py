"""Suppress the logs of native libraries, which print names from files unescaped."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["suppress_logging"]


@contextmanager
def suppress_logging(*names: str) -> Generator[None]:
    """Silence loggers for a while: what they warn of is raised as an error, or is harmless."""
    logs = [logging.getLogger(name) for name in names]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, was in zip(logs, before, strict=True):
            log.disabled = was
