"""Locks on open files, which the system releases when their process dies."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["is_free", "try_lock", "unlock"]

# filelock is imported where a file is locked, and not by who only reads.


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file; False if somebody else has locked it, None where there are no locks.

    On Windows nobody else can read the first byte of a locked file. So what is locked is a file
    that holds nothing.
    """
    import filelock

    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError:
        return None


def is_free(descriptor: int) -> bool:
    """Return whether a file with something in it is locked by nobody, where there are locks.

    On Windows every file system has them, and such a file is not locked: nobody could read it.
    """
    return os.name == "nt" or try_lock(descriptor) is True


def unlock(descriptor: int) -> None:
    """Unlock by name: a process that was forked meanwhile has the descriptor too."""
    import filelock

    with suppress(OSError):
        filelock.unlock_descriptor(descriptor)
