"""Copy bytes between files: within the kernel where possible, otherwise in blocks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from tieops.progress import advance
from tieops.system.positions import STEP_BYTES, read_at, write_at

__all__ = ["BLOCK_BYTES", "copy_range"]

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
