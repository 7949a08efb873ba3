"""Read and write at an offset of an open file."""

from __future__ import annotations

import os

__all__ = ["STEP_BYTES", "read_at", "write_at"]

STEP_BYTES = 64 << 20
"""What one system call moves; progress is reported between two of them."""


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Read up to so many bytes at a place; fewer at the end of the file.

    Where the system has no positional read, the descriptor's own position moves: one that two
    threads read at the same time has to be two.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of some bytes to a place, in as many calls as it takes.

    Raises:
        OSError: If the disk is full or broken.
    """
    left = memoryview(data)
    while left:
        written = _write_some(descriptor, left[:STEP_BYTES], offset)
        left, offset = left[written:], offset + written


def _write_some(descriptor: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)
