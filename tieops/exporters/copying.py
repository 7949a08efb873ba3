"""Write the bytes of arrays to a file, in blocks, for any order of axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tieops.progress import advance
from tieops.system.copying import BLOCK_BYTES
from tieops.system.positions import STEP_BYTES, write_at

__all__ = ["write_array"]

TILE = 512
"""Columns that are transposed at a time: what they touch fits into the processor's second cache."""
STRIPE_ROWS = 64
"""Rows of a transposed block at least: as many elements are read side by side."""


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
            write_at(target, data[start : start + STEP_BYTES], to + start)
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
        write_at(target, part.view(np.uint8).data, to + row * pitch)
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
