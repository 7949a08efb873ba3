"""Leave weights embedded in an .onnx file or in bytes where they are, as slices of a mapping.

Unusual tensors stay embedded, so that protobuf and the later checks see them unchanged.
"""

from __future__ import annotations

import math
import mmap
import secrets
import sys
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from tieops.ir.walk import replace_tensors
from tieops.untrusted.embedded import Lifted, lift
from tieops.untrusted.limits import Limits

__all__ = ["Embedded", "take_out"]

MIN_BYTES = 1 << 16
"""Smaller tensors are parsed as usual."""
_WIDTHS = (2, 4, 8, 16, 32, 64, 128)


@dataclass(eq=False)
class Embedded:
    """A model without its large tensors, and where these are.

    Args:
        data: The mapped file, or the bytes.
        message: The rest, a serialized ``ModelProto``. A tensor that was left out is external
            data there, at a location that no file can know.
    """

    data: bytes | mmap.mmap
    message: bytes = b""
    location: str = field(default_factory=lambda: f"embedded-{secrets.token_hex(16)}")

    def put_back(self, model: onnx_ir.Model) -> None:
        """Give the parsed model its tensors: slices of the data."""
        replace_tensors(model, self._slice)

    def _slice(self, tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
        if not isinstance(tensor, onnx_ir.ExternalTensor) or tensor.location != self.location:
            return tensor
        raw = np.frombuffer(self.data, np.uint8, int(tensor.nbytes), tensor.offset or 0)
        shape = onnx_ir.Shape(tensor.shape.numpy())
        metadata = dict(tensor.metadata_props)
        if tensor.dtype.bitwidth < 8:
            return onnx_ir.PackedTensor(
                raw, tensor.dtype, shape=shape, name=tensor.name, metadata_props=metadata
            )
        array = raw.view(tensor.dtype.numpy()).reshape(shape.numpy())
        return onnx_ir.Tensor(
            array, dtype=tensor.dtype, shape=shape, name=tensor.name,
            doc_string=tensor.doc_string, metadata_props=metadata,
        )  # fmt: skip


class _Mapping:
    """All of a mapped file is one window: looking at a part of it reads that part."""

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        self.name = name
        self.size = len(data)
        self._data = memoryview(data)

    def window(self, start: int, stop: int) -> memoryview:
        return self._data[start:]


def take_out(data: bytes | mmap.mmap, name: str, limits: Limits) -> Embedded | None:
    """Take the large tensors out of a serialized model.

    Args:
        data: The mapped file, or the bytes, whose wire format was checked.
        name: What errors call it.
        limits: What it may hold.

    Returns:
        The rest and where the tensors are; None on machines that store numbers the other way round.
    """
    if sys.byteorder != "little":
        return None
    found = Embedded(data)

    def refer(lifted: Lifted) -> bytes | None:
        return lifted.referring(found.location) if _can_be_sliced(lifted, data, limits) else None

    found.message = lift(_Mapping(data, name), MIN_BYTES, refer, limits)
    return found


def _can_be_sliced(lifted: Lifted, data: bytes | mmap.mmap, limits: Limits) -> bool:
    dims = lifted.tensor.dims
    if lifted.is_ambiguous or len(dims) > limits.rank or any(size < 0 for size in dims):
        return False
    try:
        dtype = onnx_ir.DataType(lifted.tensor.data_type)
    except ValueError:
        return False
    if dtype.name in ("STRING", "UNDEFINED") or dtype.bitwidth not in _WIDTHS:
        return False
    ((start, stop),) = lifted.ranges
    if stop - start != -(-math.prod(dims) * dtype.bitwidth // 8):
        return False
    if dtype != onnx_ir.DataType.BOOL:
        return True
    return int(np.frombuffer(data, np.uint8, stop - start, start).max()) <= 1
