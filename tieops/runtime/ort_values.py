"""Convert arrays to and from ``OrtValue``, including dtypes that numpy does not have."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import onnx_ir

from tieops.errors import UnsupportedModelError
from tieops.runtime.providers import onnxruntime_module

__all__ = ["RAW", "raw_array", "value_of"]

RAW = frozenset(
    {"BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"}
)
"""What numpy itself has no type for: handed to and taken from ONNX Runtime as raw bytes."""


def value_of(array: np.ndarray[Any, Any], dtype: onnx_ir.DataType | None) -> Any:
    """Return an array as an ``OrtValue`` over its memory; copied only if it is not in C order.

    Args:
        array: The values, in the numpy dtype of ``dtype``.
        dtype: The element type.
    """
    make = onnxruntime_module().OrtValue
    # The runtime reads the bytes in C order where they lie.
    array = np.asarray(array, order="C")
    if dtype is not None and dtype.name in RAW:
        bits = array.view(f"u{array.dtype.itemsize}")
        return make.ortvalue_from_numpy_with_onnx_type(bits, int(dtype))
    return make.ortvalue_from_numpy(array)


def raw_array(value: Any) -> np.ndarray[Any, Any]:
    """Return an ``OrtValue`` as an array.

    Raises:
        UnsupportedModelError: If it is of a dtype that can be taken from the CPU alone, and is not
            there.
    """
    dtype = onnx_ir.DataType(value.element_type())
    if dtype.name not in RAW:
        return value.numpy()
    if value.device_name() != "cpu":
        raise UnsupportedModelError(
            f"an output of {dtype.name.lower()} stays on {value.device_name()}",
            {},
            "add a Cast to float32 to the model, or run it on the CPU",
        )
    shape = tuple(value.shape())
    size = math.prod(shape) * dtype.numpy().itemsize
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(data), dtype.numpy()).reshape(shape)
