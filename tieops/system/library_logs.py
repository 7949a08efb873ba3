"""Suppress the logs of native libraries, which print names from files unescaped."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["silenced"]


@contextmanager
def silenced(*names: str) -> Generator[None]:
    """Keep loggers quiet for a while: what they warn of is told as an error, or does no harm."""
    logs = [logging.getLogger(name) for name in names]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, was in zip(logs, before, strict=True):
            log.disabled = was
