"""Check tensors of a ModelProto: their bytes are exactly what shape and dtype need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir

from tieops.errors import UntrustedFileError
from tieops.ir.notation import brief, printable
from tieops.untrusted.limits import Limits, check_limit

__all__ = ["check_tensor", "shown"]

MOST_BYTES = 2**62
"""No system can address more; the arithmetic of readers wraps at 2**63 or 2**64."""

MOST_ENTRIES = 64
"""Of external data for one tensor; ONNX has four keys, and ONNX Runtime adds some."""

_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_FIELD_OF = {
    "FLOAT": "float_data", "COMPLEX64": "float_data", "DOUBLE": "double_data",
    "COMPLEX128": "double_data", "INT64": "int64_data", "UINT32": "uint64_data",
    "UINT64": "uint64_data", "STRING": "string_data",
}  # fmt: skip
"""The field of a TensorProto for values of each dtype, by onnx.proto; int32_data for all others."""
_KEYS = ("location", "offset", "length", "checksum")


def shown(name: str) -> str:
    """Return a name from a file as errors print it: escaped, and not longer than a line."""
    return printable(name if len(name) <= 100 else f"{name[:97]}…")


def check_tensor(tensor: onnx.TensorProto, limits: Limits) -> None:
    """Refuse a tensor whose bytes are not exactly what its shape and dtype need.

    Raises:
        UntrustedFileError: With the tensor's name and both sizes.
        UnsupportedModelError: If it has more axes than the limit.
    """
    name = shown(tensor.name) or "a tensor"
    try:
        dtype = onnx_ir.DataType(tensor.data_type)
    except ValueError as error:
        raise UntrustedFileError(
            f"{name} has the unknown data type {tensor.data_type}", None, "upgrade onnx_ir"
        ) from error
    if dtype == onnx_ir.DataType.UNDEFINED:
        raise UntrustedFileError(f"{name} has no data type", None, "export the model again")
    shape = _shape(tensor, name, dtype, limits)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_entries(tensor, name, dtype)
        return
    if tensor.external_data:
        raise UntrustedFileError(
            f"{name} has external data, but says that its data is inline",
            None,
            "export the model again",
        )
    _check_values(tensor, name, dtype, shape)


def _shape(
    tensor: onnx.TensorProto, name: str, dtype: onnx_ir.DataType, limits: Limits
) -> tuple[int, ...]:
    if len(tensor.dims) > limits.rank:
        check_limit(limits, "rank", len(tensor.dims), f"axes of {name}")
    shape = tuple(tensor.dims)
    most = math.prod(max(size, 1) for size in shape) * _bits(dtype) // 8
    if any(size < 0 for size in shape) or most > MOST_BYTES or tensor.HasField("segment"):
        raise UntrustedFileError(
            f"{name} has no valid shape",
            {"dims": list(shape[:8]), "segment": tensor.HasField("segment")},
            "export the model again",
        )
    return shape


def _bits(dtype: onnx_ir.DataType) -> int:
    return 8 if dtype == onnx_ir.DataType.STRING else dtype.bitwidth


def _check_values(
    tensor: onnx.TensorProto, name: str, dtype: onnx_ir.DataType, shape: tuple[int, ...]
) -> None:
    fields = [field for field in _FIELDS if len(getattr(tensor, field))]
    fields += ["raw_data"] if tensor.HasField("raw_data") else []
    if len(fields) > 1:
        have = {name: brief(dtype, shape), "fields": ", ".join(fields)}
        raise _other(f"{name} has its values in two fields, which may differ", have)
    elements = math.prod(shape)
    own = _FIELD_OF.get(dtype.name, "int32_data")
    if tensor.HasField("raw_data") and dtype != onnx_ir.DataType.STRING:
        need = -(-elements * dtype.bitwidth // 8)
        if len(tensor.raw_data) != need:
            have = {
                name: brief(dtype, shape),
                "bytes stored": len(tensor.raw_data),
                "bytes needed": need,
            }
            raise _other(f"{name} holds other data than its shape says", have)
        if dtype == onnx_ir.DataType.BOOL and need:
            _check_range(np.frombuffer(tensor.raw_data, np.uint8), name, dtype)
        return
    if fields and fields != [own]:
        have = {name: brief(dtype, shape), "stored as": fields[0], "belongs in": own}
        raise _other(f"{name} has its values in another dtype's field", have)
    stored, in_one = len(getattr(tensor, own)), {2: 4, 4: 2}.get(_bits(dtype), 1)
    wanted = -(-elements // in_one)
    if dtype in (onnx_ir.DataType.COMPLEX64, onnx_ir.DataType.COMPLEX128):
        wanted *= 2
    if stored != wanted:
        have = {name: brief(dtype, shape), "values stored": stored, "values needed": wanted}
        raise _other(f"{name} holds other data than its shape says", have)
    if stored and own in ("int32_data", "uint64_data"):
        _check_range(np.array(getattr(tensor, own)), name, dtype)


def _check_range(values: np.ndarray[Any, Any], name: str, dtype: onnx_ir.DataType) -> None:
    """Refuse numbers that do not fit: readers wrap them, clip them or take them as they are."""
    whole = dtype.is_integer() and dtype.bitwidth >= 8
    bits = {1: 1, 6: 6}.get(1 if dtype == onnx_ir.DataType.BOOL else dtype.bitwidth)
    bits = bits or max(8, dtype.bitwidth)
    # The bits of a float, or those of several small numbers, may have been stored with a sign.
    natural = bits == 1 or (whole and not dtype.is_signed())
    lowest = 0 if natural else -(1 << bits - 1)
    highest = (1 << bits - 1) - 1 if whole and dtype.is_signed() else (1 << bits) - 1
    low, high = int(values.min()), int(values.max())
    if low < lowest or high > highest:
        have = {name: brief(dtype, None), "values": f"{low}..{high}"}
        raise _other(f"{name} has values that its data type cannot hold", have)


def _other(what: str, facts: Mapping[str, object]) -> UntrustedFileError:
    return UntrustedFileError(what, facts, "copy or export the model again")


def _check_entries(tensor: onnx.TensorProto, name: str, dtype: onnx_ir.DataType) -> None:
    if dtype == onnx_ir.DataType.STRING:
        raise _other(f"{name} has external strings, which have no format", {})
    inline = [field for field in _FIELDS if len(getattr(tensor, field))]
    if inline or tensor.HasField("raw_data"):
        raise _other(f"{name} has both external and inline data", {})
    if len(tensor.external_data) > MOST_ENTRIES:
        facts = {"entries": len(tensor.external_data)}
        raise _other(f"{name} has too many entries of external data", facts)
    _check_keys(Counter(entry.key for entry in tensor.external_data), name)
    for entry in tensor.external_data:
        if entry.key in ("offset", "length"):
            _check_number(entry, name)
        elif entry.key == "location":
            _check_location(entry.value, name)


def _check_keys(keys: Counter[str], name: str) -> None:
    for key, count in keys.items():
        if count > 1:
            raise _other(f"{name} says its external {shown(key)} twice", {})
        # ONNX Runtime keeps its packed copies of a weight under keys of its own.
        if key not in _KEYS and not key.startswith("prepacked_"):
            facts = {"key": shown(key), "known": ", ".join(_KEYS)}
            raise _other(f"{name} has an unknown entry of external data", facts)
    if not keys["location"]:
        raise _other(f"{name} is external data without a location", {})


def _check_number(entry: onnx.StringStringEntryProto, name: str) -> None:
    # isdigit() and int() know more digits than C++ does, and underscores and signs.
    text = entry.value
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 2**63):
        raise _other(f"{name} has no valid external {entry.key}", {entry.key: shown(text)})


def _check_location(location: str, name: str) -> None:
    # A NUL ends the name in C++, a backslash separates folders on Windows.
    wrong = "\0" in location or "\\" in location or location.endswith("/")
    if not location or wrong or len(location) > 4096:
        raise _other(f"{name} has no valid external location", {"location": shown(location)})
