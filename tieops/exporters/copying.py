"""Bytes into a file: from another file within the kernel where it can, from arrays in blocks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tieops.progress import advance

__all__ = ["copy_range", "write_array", "write_bytes"]

STEP_BYTES = 64 << 20
"""What one call to the kernel copies; between two of them progress is told."""
BLOCK_BYTES = 16 << 20
"""What is in memory at a time where bytes go through it."""
TILE = 512
"""Columns that are transposed at a time: what they touch fits into the processor's second cache."""
STRIPE_ROWS = 64
"""Rows of a transposed block at least: as many elements are read side by side."""

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
    ways = list(_WAYS)
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
    block = os.pread(source, min(length, BLOCK_BYTES), offset)
    write_bytes(target, block, to)
    return len(block)


_WAYS: tuple[_Way, ...] = (
    *([_by_copy_file_range] if hasattr(os, "copy_file_range") else []),
    *([_by_sendfile] if hasattr(os, "sendfile") else []),
    _plainly,
)


def write_bytes(target: int, data: bytes | memoryview, to: int) -> None:
    """Write all of some bytes to a place in an open file, in as many calls as it takes.

    Raises:
        OSError: If the disk is full or broken.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(target, left[:STEP_BYTES], to)
        left, to = left[written:], to + written


def write_array(target: int, array: np.ndarray[Any, Any], to: int) -> None:
    """Write an array in C order and little endian, however it lies in memory.

    What is contiguous is written from where it is. A transposed or sliced view is gathered in
    blocks of ``BLOCK_BYTES``: no copy of the whole is made.

    Args:
        target: Descriptor of the file to write.
        array: Any array of numbers; types of ``ml_dtypes`` of a byte or more are fine.
        to: Where its first byte goes.

    Raises:
        OSError: If the disk is full or broken.
    """
    if array.dtype.kind == "V":  # bfloat16 and its like, which numpy copies one by one
        array = array.view(f"u{array.dtype.itemsize}")
    stored = array.dtype.newbyteorder("<")
    if array.flags.c_contiguous and array.dtype == stored:
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), STEP_BYTES):
            write_bytes(target, data[start : start + STEP_BYTES], to + start)
            advance(min(STEP_BYTES, len(data) - start))
        return
    for block, offset, pitch in _blocks(np.atleast_2d(array), 0):
        _write_block(target, block, stored, to + offset, pitch)


def _write_block(
    target: int, block: np.ndarray[Any, Any], stored: np.dtype[Any], to: int, pitch: int
) -> None:
    gathered = np.empty(block.shape, stored)
    for start in range(0, block.shape[-1], TILE):
        gathered[..., start : start + TILE] = block[..., start : start + TILE]
    for row, part in enumerate(gathered.reshape(len(block) if pitch else 1, -1)):
        write_bytes(target, part.view(np.uint8).data, to + row * pitch)
    advance(gathered.nbytes)


def _blocks(
    array: np.ndarray[Any, Any], offset: int
) -> Iterator[tuple[np.ndarray[Any, Any], int, int]]:
    """Yield parts of an array of two axes or more, and where they go.

    Yields:
        The part, the place of its first byte, and how far apart its rows go; 0 if they go one
        behind the other.
    """
    if array.ndim > 2:
        inner = array[0].nbytes
        count = max(1, BLOCK_BYTES // inner)
        for start in range(0, len(array), count):
            if inner > BLOCK_BYTES:
                yield from _blocks(array[start], offset + start * inner)
            else:
                yield array[start : start + count], offset + start * inner, 0
        return
    row = array.shape[1] * array.itemsize
    rows = max(STRIPE_ROWS, BLOCK_BYTES // row)
    columns = max(1, BLOCK_BYTES // (rows * array.itemsize))
    pitch = row if columns < array.shape[1] else 0
    for top in range(0, len(array), rows):
        for left in range(0, array.shape[1], columns):
            block = array[top : top + rows, left : left + columns]
            yield block, offset + top * row + left * array.itemsize, pitch
