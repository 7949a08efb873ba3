"""Stored tensors mapped from their files, each range of bytes once for all sessions."""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

__all__ = ["Mapped", "can_be_mapped", "map_tensor"]

# Plain memory to numpy and to ONNX Runtime alike. Kernels of the CPU read these where they lie;
# float16 they convert into a copy of their own.
_WIDTHS = {"FLOAT": 4, "DOUBLE": 8, "INT8": 1, "UINT8": 1}


@dataclass(frozen=True, eq=False)
class Mapped:
    """A stored tensor, mapped from its data file.

    Args:
        pages: The mapping.
        array: The tensor's values in it; read only.
    """

    pages: mmap.mmap
    array: np.ndarray[Any, Any]

    def give_back(self) -> None:
        """Drop the pages from memory; they are read again from the file where they are touched."""
        self.pages.madvise(mmap.MADV_DONTNEED)
        # Without this a looked-up row brings its neighbours in with it.
        self.pages.madvise(mmap.MADV_RANDOM)


_mapped: weakref.WeakValueDictionary[tuple[object, ...], Mapped] = weakref.WeakValueDictionary()


def can_be_mapped(tensor: onnx_ir.TensorProtocol) -> bool:
    """Tell whether ONNX Runtime's CPU kernels can read a tensor where it lies in its file."""
    width = _WIDTHS.get(tensor.dtype.name, 0)
    return (
        isinstance(tensor, onnx_ir.ExternalTensor)
        and width > 0
        and (tensor.offset or 0) % width == 0
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
    descriptor = os.open(tensor.path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        # A file that is mapped keeps its inode for itself, and a write changes the time.
        file = (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)
        shape = tuple(int(size) for size in tensor.shape.numpy())
        key = (*file, offset, tensor.dtype, shape, advice)
        known = _mapped.get(key)
        if known is None:
            begin = offset - offset % mmap.ALLOCATIONGRANULARITY
            length = offset + int(tensor.nbytes) - begin
            pages = mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=begin)
            array = np.frombuffer(pages, tensor.dtype.numpy(), tensor.size, offset - begin)
            known = _mapped[key] = Mapped(pages, array.reshape(shape))
        return known
    finally:
        os.close(descriptor)
