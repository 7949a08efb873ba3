"""External data that was checked: what is mapped later is the file that was looked at."""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import onnx_ir

from tieops.errors import UntrustedFileError
from tieops.ir.notation import printable
from tieops.system.mapping import map_file
from tieops.system.opening import open_regular, open_to_read

__all__ = ["CheckedTensor", "DataFile", "open_data"]

BLOCK_BYTES = 1 << 20


@dataclass(eq=False)
class DataFile:
    """A file of external data that was opened, looked at and closed again.

    It is opened again when its bytes are wanted, and must then be the same file: no descriptor is
    held in between, and what is swapped in the meantime is not read.

    Args:
        path: Its real path.
        device: The file system that it is on.
        inode: Its number there.
        size: Its size in bytes.
        changed_ns: When it was written last.
        end: Where the last tensor in it ends; nothing after that is mapped.
    """

    path: str
    device: int
    inode: int
    size: int
    changed_ns: int
    end: int = 0
    _pages: weakref.ref[mmap.mmap] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> DataFile:
        """Return what was opened at a path, told by its status."""
        return cls(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def open(self) -> int:
        """Open the file again; return a descriptor.

        Raises:
            UntrustedFileError: If it is not the file that was looked at.
        """
        try:
            descriptor = open_regular(self.path)
        except OSError as error:
            raise self._refusal({"the system says": error.strerror}) from error
        status = os.fstat(descriptor)
        now = DataFile.of(self.path, status)
        if not stat.S_ISREG(status.st_mode) or now._identity() != self._identity():
            os.close(descriptor)
            raise self._refusal({"bytes then": self.size, "bytes now": status.st_size})
        return descriptor

    def pages(self) -> mmap.mmap:
        """Map the file up to its last tensor: one mapping for all that are read from it.

        Raises:
            UntrustedFileError: If it is not the file that was looked at, or cannot be mapped.
        """
        pages = self._pages() if self._pages is not None else None
        if pages is None:
            descriptor = self.open()
            try:
                pages = map_file(descriptor, self.end)
            except (OSError, ValueError, OverflowError) as error:
                raise UntrustedFileError(
                    f"{printable(self.path)} cannot be mapped",
                    {"bytes": self.end, "the system says": error},
                    "give the process more address space",
                ) from error
            finally:
                os.close(descriptor)
            self._pages = weakref.ref(pages)
        return pages

    def _identity(self) -> tuple[int, int, int, int]:
        return self.device, self.inode, self.size, self.changed_ns

    def _refusal(self, facts: dict[str, object]) -> UntrustedFileError:
        return UntrustedFileError(
            f"{printable(self.path)} is not the file that was imported",
            facts,
            "import the model again, and leave its data alone in the meantime",
        )


class CheckedTensor(onnx_ir.ExternalTensor):
    """A tensor of a checked data file.

    ``onnx_ir`` resolves the path each time, refuses the links of the Hugging Face cache, and maps
    the whole file once a tensor. This maps it once, and only if it is the file that was checked.

    Args:
        tensor: What says dtype, shape, name and range.
        data: The checked file.
    """

    __slots__ = ("_values", "data")

    def __init__(self, tensor: onnx_ir.ExternalTensor, data: DataFile) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=tensor.base_dir,
        )
        self.data = data
        self._values: np.ndarray[Any, Any] | None = None
        data.end = max(data.end, (self.offset or 0) + int(self.nbytes))

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the values, mapped from the file; what is packed in bits is unpacked.

        Raises:
            UntrustedFileError: If the file is not the one that was checked.
        """
        if self._values is None:
            shape = self.shape.numpy()
            if self.dtype.bitwidth % 8:
                packed = np.frombuffer(self._bytes(), np.uint8)
                self._values = onnx_ir.PackedTensor(packed, self.dtype, shape=shape).numpy()
            else:
                kind = self.dtype.numpy().newbyteorder("<")
                self._values = np.frombuffer(self._bytes(), kind).reshape(shape)
        return self._values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.numpy(), dtype, copy=copy)

    def tobytes(self) -> bytes:
        """Return a copy of the bytes, as they are stored."""
        return bytes(self._bytes())

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes to a file, block by block: none of them stays in memory."""
        with os.fdopen(self.data.open(), "rb") as source:
            source.seek(self.offset or 0)
            left = int(self.nbytes)
            while left:
                block = source.read(min(BLOCK_BYTES, left))
                if not block:
                    raise OSError(f"{self.data.path} ends {left} bytes too early")
                file.write(block)
                left -= len(block)

    def release(self) -> None:
        """Let go of the mapping; it is made again when the values are asked for."""
        self._values = None

    def _bytes(self) -> memoryview:
        if not self.valid():
            raise ValueError(f"the data of {self.name} was overwritten")
        begin, count = self.offset or 0, int(self.nbytes)
        return memoryview(self.data.pages() if count else b"")[begin : begin + count]


def open_data(tensor: onnx_ir.ExternalTensor) -> int:
    """Open the file of a tensor without waiting for it; return a descriptor.

    Whether it is a regular file has been looked at of a checked tensor, and of no other.

    Raises:
        OSError: If it cannot be opened.
        UntrustedFileError: If the tensor was checked and the file is not that one any more.
    """
    if isinstance(tensor, CheckedTensor):
        return tensor.data.open()
    return open_to_read(tensor.path)
