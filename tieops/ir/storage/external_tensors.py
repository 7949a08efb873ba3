"""External data that was checked: every later read is of the file that was checked."""

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
from tieops.ir.walk import all_graphs
from tieops.system.file_bytes import read_at
from tieops.system.folders import close_file
from tieops.system.mapping import map_file
from tieops.system.opening import (
    is_too_many,
    most_held_open,
    open_regular,
    open_to_read,
)

__all__ = ["CheckedTensor", "DataFile", "HeldTensor", "hold_files", "hold_open", "open_data"]

BLOCK_BYTES = 1 << 20

_files: weakref.WeakValueDictionary[tuple[str, int, int, int, int], DataFile] = (
    weakref.WeakValueDictionary()
)
"""The files that tensors read, so that all tensors of one share a descriptor and a mapping."""
_held: set[int] = set()
"""Descriptors that are held open. A set, because adding and discarding need no lock: a finalizer
may run wherever the garbage collector does, also within a block that holds one."""


@dataclass(eq=False)
class DataFile:
    """A file of external data, held open for as long as a tensor of it lives.

    So a tensor stays readable whatever happens to the file's name: it may be replaced or removed,
    by us or by anybody. What changes the file itself is told by its size and time, and is refused.
    It is mapped when values are first asked for, once for all tensors of all models.

    Descriptors are few, so at most `most_held_open` files are held: a process can open thousands of
    models. Of those beyond that the path is opened again when the bytes are wanted, and must then
    be the same file; `hold_open` holds them before tieops itself removes their name.

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
    _descriptor: int = field(default=-1, repr=False)
    _pages: weakref.ref[mmap.mmap] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, path: str, descriptor: int, *, beyond_limit: bool = False) -> DataFile:
        """Return the file that is open, one object for all that read it.

        Args:
            path: Its real path.
            descriptor: The open file; the caller hands it over.
            beyond_limit: Hold it open even if as many are held as should be.
        """
        identity = _identity(os.fstat(descriptor))
        file = _files.get((path, *identity))
        if file is None:
            file = _files[path, *identity] = cls(path, *identity)
        if file._descriptor < 0 and (beyond_limit or len(_held) < most_held_open()):
            file._descriptor = descriptor
            _held.add(descriptor)
            weakref.finalize(file, _let_go, descriptor).atexit = False
        else:
            close_file(descriptor)
        return file

    def open(self) -> int:
        """Return a new descriptor of the file, which shares its position with others.

        Raises:
            UntrustedFileError: If it is not the file that was looked at.
        """
        try:
            is_held = self._descriptor >= 0
            descriptor = os.dup(self._descriptor) if is_held else open_regular(self.path)
        except OSError as error:
            says: dict[str, object] = {"the system says": error.strerror}
            raise (self._beyond_limit if is_too_many(error) else self._refusal)(says) from error
        status = os.fstat(descriptor)
        now = (self.device, self.inode, self.size, self.changed_ns)
        if not stat.S_ISREG(status.st_mode) or _identity(status) != now:
            os.close(descriptor)
            raise self._refusal({"bytes then": self.size, "bytes now": status.st_size})
        return descriptor

    def is_current(self) -> bool:
        """Return whether the file still has its name, and was not written to."""
        try:
            now = _identity(os.stat(self.path))
        except OSError:
            return False
        return now == (self.device, self.inode, self.size, self.changed_ns)

    def pages(self) -> mmap.mmap:
        """Map the file up to its last tensor: one mapping for all that are read from it.

        Raises:
            UntrustedFileError: If it is not the file that was looked at, or cannot be mapped.
        """
        pages = self._pages() if self._pages is not None else None
        if pages is None or len(pages) < self.end:
            descriptor = self.open()
            try:
                pages = map_file(descriptor, self.end)
            except (OSError, ValueError, OverflowError) as error:
                if is_too_many(error):
                    raise self._beyond_limit({"the system says": error}) from error
                raise UntrustedFileError(
                    f"{printable(self.path)} cannot be mapped",
                    {"bytes": self.end, "the system says": error},
                    "give the process more address space",
                ) from error
            finally:
                os.close(descriptor)
            self._pages = weakref.ref(pages)
        return pages

    def _refusal(self, facts: dict[str, object]) -> UntrustedFileError:
        return UntrustedFileError(
            f"{printable(self.path)} changed since it was imported",
            facts,
            "import the model again, and do not change its data while it is in use",
        )

    def _beyond_limit(self, facts: dict[str, object]) -> UntrustedFileError:
        return UntrustedFileError(
            f"{printable(self.path)} cannot be opened: the process has too many files open",
            facts,
            "raise the limit (ulimit -n), or let go of models and arrays",
        )


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _let_go(descriptor: int) -> None:
    _held.discard(descriptor)
    close_file(descriptor)


def hold_open(path: str | os.PathLike[str]) -> None:
    """Hold a file open that is about to be removed, if a living tensor reads it.

    Raises:
        OSError: If it cannot be opened: then it must not be removed.
    """
    DataFile.of(os.path.realpath(path), open_regular(path), beyond_limit=True)


def hold_files(model: onnx_ir.Model) -> None:
    """Make ``onnx_ir``'s own external tensors hold their files, as those of an import do.

    What cannot be opened stays as it is, and says why when it is read.

    Args:
        model: Changed in place; its initializers keep their values.
    """
    files: dict[str, DataFile | None] = {}
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, onnx_ir.ExternalTensor) or isinstance(tensor, HeldTensor):
                continue
            path = tensor.path
            if path not in files:
                files[path] = _opened(path)
            file = files[path]
            if file is not None and (tensor.offset or 0) + int(tensor.nbytes) <= file.size:
                value.const_value = HeldTensor(tensor, file)


def _opened(path: str) -> DataFile | None:
    try:
        descriptor = open_to_read(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return DataFile.of(os.path.realpath(path), descriptor)
    close_file(descriptor)
    return None


class HeldTensor(onnx_ir.ExternalTensor):
    """A tensor of a data file that is held open.

    ``onnx_ir`` resolves the path each time, refuses the links of the Hugging Face cache, and maps
    the whole file once a tensor. This maps it once, and only if it is the file that was opened.

    Args:
        tensor: What says dtype, shape, name and range.
        data: The file.
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
        descriptor = self.data.open()
        try:
            at, left = self.offset or 0, int(self.nbytes)
            while left:
                block = read_at(descriptor, min(BLOCK_BYTES, left), at)
                if not block:
                    raise OSError(f"{self.data.path} ends {left} bytes too early")
                file.write(block)
                at, left = at + len(block), left - len(block)
        finally:
            close_file(descriptor)

    def release(self) -> None:
        """Let go of the mapping; it is made again when the values are asked for."""
        self._values = None

    def _bytes(self) -> memoryview:
        if not self.valid():
            raise ValueError(f"the data of {self.name} was overwritten")
        begin, count = self.offset or 0, int(self.nbytes)
        return memoryview(self.data.pages() if count else b"")[begin : begin + count]


class CheckedTensor(HeldTensor):
    """A tensor whose file and range were checked: it lies in its model's folder, and is whole."""

    __slots__ = ()


def open_data(tensor: onnx_ir.ExternalTensor) -> int:
    """Open the file of a tensor without waiting for it; return a descriptor.

    Whether it is a regular file has been looked at of a held tensor, and of no other.

    Raises:
        OSError: If it cannot be opened.
        UntrustedFileError: If the tensor is held, and its file was written to meanwhile.
    """
    if isinstance(tensor, HeldTensor):
        return tensor.data.open()
    return open_to_read(tensor.path)
