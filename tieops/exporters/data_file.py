"""The bytes of a data file: each tensor from where it lies to where the layout wants it."""

from __future__ import annotations

import os
import stat

import onnx_ir

from tieops.errors import ExportError
from tieops.exporters.copying import copy_range, write_array, write_bytes
from tieops.exporters.layout import Layout
from tieops.ir.brief import printable
from tieops.progress import advance, progress

__all__ = ["write_data"]


def write_data(layout: Layout, descriptor: int, name: str) -> None:
    """Write the bytes of a layout to a new file, in its order, and flush them to the disk.

    Args:
        layout: What goes where.
        descriptor: The open file, which is empty.
        name: What to call it in the progress that is shown.

    Raises:
        ExportError: If a file that a tensor lies in is gone, or shorter than it was.
        OSError: If the disk is full or broken.
    """
    source = _Source()
    try:
        with progress(f"writing {printable(name)}", layout.size, "bytes"):
            for each in layout.ranges:
                tensor = each.tensor
                if isinstance(tensor, onnx_ir.ExternalTensor):
                    source.copy(tensor, descriptor, each.offset)
                elif tensor.dtype.bitwidth < 8:
                    write_bytes(descriptor, tensor.tobytes(), each.offset)
                    advance(each.nbytes)
                else:
                    write_array(descriptor, tensor.numpy(), each.offset)
            os.fsync(descriptor)
    finally:
        source.close()


class _Source:
    """The data file that is read; the last one stays open, for most models have only one."""

    def __init__(self) -> None:
        self._path = ""
        self._descriptor = -1

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._descriptor = "", -1

    def copy(self, tensor: onnx_ir.ExternalTensor, target: int, to: int) -> None:
        """Copy a tensor's bytes into another file."""
        if tensor.path != self._path:
            self.close()
            self._open(tensor)
        nbytes = int(tensor.nbytes)
        copied = copy_range(self._descriptor, tensor.offset or 0, target, to, nbytes)
        if copied < nbytes:
            raise ExportError(
                f"the data of {printable(tensor.name)} ends before it should",
                {"file": tensor.path, "bytes there": copied, "bytes needed": nbytes},
                _AGAIN,
            )

    def _open(self, tensor: onnx_ir.ExternalTensor) -> None:
        try:
            # Without blocking: a FIFO in its place would never end.
            self._descriptor = os.open(tensor.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise ExportError(
                f"the data of {printable(tensor.name)} cannot be read any more",
                {"file": tensor.path, "the system says": error.strerror},
                _AGAIN,
            ) from error
        self._path = tensor.path
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise ExportError(
                f"the data of {printable(tensor.name)} is no regular file any more",
                {"file": tensor.path},
                _AGAIN,
            )


_AGAIN = "another program changed it after the import: import the model again; nothing was written"
