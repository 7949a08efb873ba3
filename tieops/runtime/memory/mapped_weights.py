"""Map stored tensors from their files, each byte range once for all sessions."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.storage.external_tensors import open_data
from tieops.system.mapping import give_back, map_file
from tieops.system.memory import resident_file_bytes

__all__ = ["Mapped", "can_be_mapped", "map_tensor", "release_pages_again"]

# What a provider's kernels read as it is stored, and what can be handed over. On the CPU float16 is
# converted into a copy of its own, so handing it over saves nothing.
_TYPES = {
    "cpu": ("FLOAT", "DOUBLE", "INT8", "UINT8"),
    "cuda": ("FLOAT", "DOUBLE", "INT8", "UINT8", "FLOAT16", "BFLOAT16"),
}


KEPT_BYTES = 8_000_000
KEPT_SHARE = 0.04
"""How much may come back before it is given back, and which share of large weights. A row that is
looked up brings at least a page, on recent kernels the 2 MB that the file's pages are kept in, and
takes a tenth of a millisecond to come back."""


@dataclass(eq=False)
class Mapped:
    """A stored tensor, mapped from its data file.

    Args:
        pages: The mapping.
        array: The tensor's values in it; read only.
    """

    pages: mmap.mmap
    array: np.ndarray[Any, Any]
    level: int | None = None
    """The process's resident file pages, in bytes, when these were given back."""

    def give_back(self) -> None:
        """Drop the pages from memory; they are read again from the file where they are touched."""
        give_back(self.pages)


def release_pages_again(mappings: Sequence[Mapped]) -> None:
    """Drop the pages of mappings that came back, once they are more than a few.

    Args:
        mappings: Those of one session; of its process, all mapped files are counted.
    """
    first = mappings[0]
    resident = resident_file_bytes()
    if first.level is not None and resident is not None:
        grown = resident - first.level
        if grown <= KEPT_BYTES:
            return
        if grown <= KEPT_SHARE * sum(len(each.pages) for each in mappings):
            return
    for mapping in mappings:
        mapping.give_back()
    first.level = resident_file_bytes()


_mapped: weakref.WeakValueDictionary[tuple[object, ...], Mapped] = weakref.WeakValueDictionary()


def can_be_mapped(tensor: onnx_ir.TensorProtocol, device: str) -> bool:
    """Return whether ONNX Runtime can use the bytes of a tensor's file directly, and benefits.

    Args:
        tensor: A stored tensor.
        device: "cpu" or "cuda".
    """
    return (
        isinstance(tensor, onnx_ir.ExternalTensor)
        and tensor.dtype.name in _TYPES[device]
        and (tensor.offset or 0) % tensor.dtype.numpy().itemsize == 0
        and tensor.nbytes > 0
    )


def map_tensor(tensor: onnx_ir.TensorProtocol, advice: str) -> Mapped:
    """Map a tensor, or return the mapping of the same bytes that is still in use.

    Args:
        tensor: A tensor that can be mapped.
        advice: What is done with the pages; one mapping is not used in two ways.

    Raises:
        OSError: If the file cannot be opened.
    """
    assert isinstance(tensor, onnx_ir.ExternalTensor)
    offset = tensor.offset or 0
    descriptor = open_data(tensor)
    try:
        status = os.fstat(descriptor)
        # A file that is mapped keeps its inode for itself, and a write changes a time: on Windows
        # that of the last write alone, elsewhere that of the last change, which none can set.
        times = status.st_ctime_ns, status.st_mtime_ns
        file = (status.st_dev, status.st_ino, *times, status.st_size)
        shape = tuple(int(size) for size in tensor.shape.numpy())
        key = (*file, offset, tensor.dtype, shape, advice)
        known = _mapped.get(key)
        if known is None:
            begin = offset - offset % mmap.ALLOCATIONGRANULARITY
            length = offset + int(tensor.nbytes) - begin
            pages = map_file(descriptor, length, begin)
            array = np.frombuffer(pages, tensor.dtype.numpy(), tensor.size, offset - begin)
            known = _mapped[key] = Mapped(pages, array.reshape(shape))
        return known
    finally:
        os.close(descriptor)
