"""Read the bits of stored tensors without loading the tensors.

Data files are mapped once for all of their tensors. Until a tensor is read whole, the mapping is
advised for random access, so that the system reads only the pages that are touched.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir

from tieops.analysis.duplicates.bit_equality import PAIR, Bits, Packed, unsigned
from tieops.ir.storage.external_tensors import open_data
from tieops.system.mapping import advise, map_file

__all__ = ["StoredBits"]

_DTYPES: dict[int, Any] = {8: "u1", 16: "u2", 32: "u4", 64: "u8", 128: PAIR}
_PACKED_WIDTHS = (2, 4)
END_BYTES = 32 << 20
"""More than systems read ahead or around."""


class StoredBits:
    """The bits of tensors, those of data files through one mapping a file."""

    def __init__(self) -> None:
        self._files: dict[str, mmap.mmap | None] = {}

    def of(self, tensor: onnx_ir.TensorProtocol) -> Bits:
        """Return a tensor's bits, in its shape; nothing is read until they are looked at.

        Whatever is not in a data file is what ``tensor.numpy()`` says. Elements of 2 and 4 bits
        stay packed.
        """
        data = self._range(tensor)
        shape = tuple(int(size) for size in tensor.shape.numpy())
        width = tensor.dtype.bitwidth
        if width in _PACKED_WIDTHS:
            return Packed(_packed(tensor) if data is None else data, width, shape)
        if data is None or width not in _DTYPES:
            return unsigned(tensor.numpy())
        return data.view(np.dtype(_DTYPES[width])).reshape(shape)

    @contextmanager
    def read_whole(self, *tensors: onnx_ir.TensorProtocol) -> Generator[None]:
        """Tell the system that these tensors are read from one end to the other meanwhile.

        It reads ahead then, and around. So that it does not read what lies before and behind, the
        ends are fetched at once.
        """
        for tensor in tensors:
            size = int(tensor.nbytes)
            self._advise(tensor, "willneed", 0, min(size, END_BYTES))
            if size > 2 * END_BYTES:
                self._advise(tensor, "normal", END_BYTES, size - END_BYTES)
            if size > END_BYTES:
                self._advise(tensor, "willneed", max(END_BYTES, size - END_BYTES), size)
        try:
            yield
        finally:
            for tensor in tensors:
                self._advise(tensor, "random", 0, int(tensor.nbytes))

    def _advise(self, tensor: onnx_ir.TensorProtocol, name: str, start: int, stop: int) -> None:
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            return
        mapped = self._files.get(tensor.path)
        if mapped is not None:
            offset = tensor.offset or 0
            advise(mapped, name, offset + start, offset + stop)

    def _range(self, tensor: onnx_ir.TensorProtocol) -> np.ndarray[Any, Any] | None:
        """Return the bytes of an external tensor; None if it is none, or not as it says."""
        if not isinstance(tensor, onnx_ir.ExternalTensor) or sys.byteorder != "little":
            return None
        mapped = self._mapped(tensor)
        offset, count = tensor.offset or 0, int(tensor.nbytes)
        if mapped is None or offset + count > len(mapped):
            return None
        return np.frombuffer(mapped, np.uint8, count, offset)

    def _mapped(self, tensor: onnx_ir.ExternalTensor) -> mmap.mmap | None:
        path = tensor.path
        if path not in self._files:
            self._files[path] = None
            try:
                with os.fdopen(open_data(tensor), "rb") as file:
                    mapped = map_file(file.fileno())
            except (OSError, ValueError):
                return None  # the tensor says why, when it is asked for the values
            advise(mapped, "random")
            self._files[path] = mapped
        return self._files[path]


def _packed(tensor: onnx_ir.TensorProtocol) -> np.ndarray[Any, Any]:
    if isinstance(tensor, onnx_ir.PackedTensor):
        return np.asarray(tensor.numpy_packed()).reshape(-1).view(np.uint8)
    return np.frombuffer(tensor.tobytes(), np.uint8)
