"""Write a data file: copy each tensor from where it is stored to its place in the layout."""

from __future__ import annotations

import os
import stat

import onnx_ir

from tieops.errors import ExportError, UntrustedFileError
from tieops.exporters.copying import write_array
from tieops.exporters.layout import Layout
from tieops.exporters.room import check_room
from tieops.ir.notation import printable
from tieops.ir.storage.external_tensors import DataFile, HeldTensor, open_data
from tieops.progress import advance, progress
from tieops.system.copying import copy_range
from tieops.system.positions import write_at

__all__ = ["write_data"]


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
    check_room(descriptor, sum(each.nbytes for each in layout.ranges), name)
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
