"""Pause Python's cycle collector while large graphs are built.

A graph is millions of small objects, all of which stay alive. The collector traverses them again
and again while they are created, and finds nothing: it doubles the time to read 100,000 nodes.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["gc_paused"]

_lock = threading.Lock()
_pauses = 0
_was_on = False


@contextmanager
def gc_paused() -> Generator[None]:
    """Switch the cycle collector off for a while; it is as it was when the last pause ends.

    Pauses may nest and overlap in several threads. What has no cycles is freed at once, as always.

    Example:
        >>> with gc_paused():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    global _pauses, _was_on  # the collector is the process's: so is what we know about it
    with _lock:
        if _pauses == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_on:
                gc.enable()
