"""Read, write and copy bytes at an offset of an open file: within the kernel where possible."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from tieops.progress import advance

__all__ = ["BLOCK_BYTES", "STEP_BYTES", "copy_range", "read_at", "write_at"]

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


BLOCK_BYTES = 16 << 20
"""What is in memory at a time where bytes go through it."""

_Way = Callable[[int, int, int, int, int], int]

# What says that a way does not work between these two files, or on this system at all.
_CANNOT = {
    errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM,
    errno.EXDEV,
}  # fmt: skip


def copy_range(source: int, offset: int, target: int, to: int, length: int) -> int:
    """Copy a range of one open file into another: the three ways in turn, the fastest first.

    ``copy_file_range`` shares the blocks instead of copying them where the file system can.

    Args:
        source: Descriptor of the file to read.
        offset: Where the range begins in it.
        target: Descriptor of the file to write.
        to: Where the range goes.
        length: How many bytes.

    Returns:
        How many bytes there were: fewer than ``length`` if the source ends before.

    Raises:
        OSError: If the last way fails, or one fails for another reason than that it cannot do it.
    """
    done = 0
    ways = [way for way, call in _WAYS if call is None or hasattr(os, call)]
    while done < length:
        step = min(STEP_BYTES, length - done)
        try:
            copied = ways[0](source, offset + done, target, to + done, step)
        except OSError as error:
            if len(ways) == 1 or error.errno not in _CANNOT:
                raise
            copied = 0
        if not copied:  # some file systems say nothing and copy nothing
            del ways[0]
            if not ways:
                break
        done += copied
        advance(copied)
    return done


def _by_copy_file_range(source: int, offset: int, target: int, to: int, length: int) -> int:
    return os.copy_file_range(source, target, length, offset, to)


def _by_sendfile(source: int, offset: int, target: int, to: int, length: int) -> int:
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, offset, length)


def _plainly(source: int, offset: int, target: int, to: int, length: int) -> int:
    block = read_at(source, min(length, BLOCK_BYTES), offset)
    write_at(target, block, to)
    return len(block)


_WAYS: tuple[tuple[_Way, str | None], ...] = (
    (_by_copy_file_range, "copy_file_range"), (_by_sendfile, "sendfile"), (_plainly, None),
)  # fmt: skip
"""Each with the call that it needs, which a system may lack."""
