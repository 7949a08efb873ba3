"""Locks on open files, which the system drops when the process that holds them dies."""

from __future__ import annotations

from contextlib import suppress

__all__ = ["try_lock", "unlock"]

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


def unlock(descriptor: int) -> None:
    """Unlock by name: a process that was forked meanwhile has the descriptor too."""
    import filelock

    with suppress(OSError):
        filelock.unlock_descriptor(descriptor)
