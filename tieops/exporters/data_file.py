"""Write a data file: copy each tensor from where it is stored to its place in the layout.

Free disk space is checked before the first byte is written. Arrays are written in blocks, for any
order of axes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir

from tieops.errors import ExportError, UntrustedFileError
from tieops.exporters.files import FREE_SPACE
from tieops.exporters.layout import Layout
from tieops.ir.notation import brief_bytes, printable
from tieops.ir.storage.external_tensors import DataFile, HeldTensor, open_data
from tieops.progress import advance, progress
from tieops.system.disk import too_few_free
from tieops.system.file_bytes import BLOCK_BYTES, STEP_BYTES, copy_range, write_at

__all__ = ["check_disk_space", "write_array", "write_data"]


def write_data(layout: Layout, descriptor: int, name: str) -> None:
    """Write the bytes of a layout to a new file, in its order, and flush them to the disk.

    Args:
        layout: What goes where.
        descriptor: The open file, which is empty.
        name: What to call it in the progress that is shown.

    Raises:
        ExportError: If there is no room for them, before any is written; if a file that a tensor
            lies in is gone, another one or shorter than it was.
        OSError: If the disk is full or broken.
    """
    check_disk_space(descriptor, sum(each.nbytes for each in layout.ranges), name)
    source = _Source()
    try:
        with progress(f"writing {printable(name)}", layout.size, "bytes"):
            for each in layout.ranges:
                tensor = each.tensor
                if isinstance(tensor, onnx_ir.ExternalTensor):
                    source.copy(tensor, descriptor, each.offset)
                elif tensor.dtype.bitwidth < 8:
                    write_at(descriptor, tensor.tobytes(), each.offset)
                    advance(each.nbytes)
                else:
                    write_array(descriptor, tensor.numpy(), each.offset)
            os.fsync(descriptor)
    finally:
        source.close()


class _Source:
    """The data file that is read; the last one stays open, for most models have only one."""

    def __init__(self) -> None:
        self._opened: DataFile | str | None = None
        self._descriptor = -1

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._opened, self._descriptor = None, -1

    def copy(self, tensor: onnx_ir.ExternalTensor, target: int, to: int) -> None:
        """Copy a tensor's bytes into another file."""
        # Of two imports, each has checked a file of its own, also where the path is the same.
        file = tensor.data if isinstance(tensor, HeldTensor) else tensor.path
        if file != self._opened:
            self.close()
            self._open(tensor)
            self._opened = file
        nbytes = int(tensor.nbytes)
        copied = copy_range(self._descriptor, tensor.offset or 0, target, to, nbytes)
        if copied < nbytes:
            raise ExportError(
                f"the data of {printable(tensor.name)} is shorter than its shape needs",
                {"file": tensor.path, "bytes there": copied, "bytes needed": nbytes},
                _AGAIN,
            )

    def _open(self, tensor: onnx_ir.ExternalTensor) -> None:
        try:
            self._descriptor = open_data(tensor)
        except (OSError, UntrustedFileError) as error:
            is_other = isinstance(error, UntrustedFileError)
            facts = error.facts if is_other else {"the system says": error.strerror}
            raise ExportError(
                f"the data of {printable(tensor.name)} can no longer be read",
                {"file": tensor.path, **facts},
                _AGAIN,
            ) from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise ExportError(
                f"the data of {printable(tensor.name)} is no longer a regular file",
                {"file": tensor.path},
                _AGAIN,
            )


_AGAIN = "another program changed it after the import: import the model again; nothing was written"


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


def check_disk_space(descriptor: int, nbytes: int, name: str) -> None:
    """Refuse to write more bytes than the file system has free, where it is sure that they count.

    A sparse file of terabytes takes no room where it lies, and fills the disk that it is copied to.

    Args:
        descriptor: An open file, which is empty and which the bytes are to go to.
        nbytes: How many.
        name: What to call the file.

    Raises:
        ExportError: With the bytes that are wanted and those that are free.
    """
    free = too_few_free(descriptor, nbytes)
    if free is not None:
        raise ExportError(
            f"cannot write {printable(name)}: {os.strerror(errno.ENOSPC)}",
            {"bytes wanted": brief_bytes(nbytes), "bytes free": brief_bytes(free)},
            FREE_SPACE,
        )
