"""Messages between a process and its sandboxed child: JSON, then the bytes of arrays.

There are no pickles, because the model may have taken over the child process that runs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeAlias

import ml_dtypes
import numpy as np

from tieops.errors import UnsupportedModelError

__all__ = ["receive", "send"]

_Array: TypeAlias = np.ndarray[Any, Any]
_TEXT_BYTES = 64_000_000
_DTYPES: dict[str, Any] = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn",
        "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
    )
}  # fmt: skip


def send(stream: BinaryIO, message: Mapping[str, Any], arrays: Sequence[_Array] = ()) -> None:
    """Write one message.

    Raises:
        UnsupportedModelError: If an array has a dtype that cannot be handed over.

    Example:
        >>> import io
        >>> stream = io.BytesIO()
        >>> send(stream, {"names": ["y"]}, [np.eye(2)])
        >>> _ = stream.seek(0)
        >>> receive(stream, 1000)
        ({'names': ['y']}, [array([[1., 0.],
               [0., 1.]])])
    """
    kept = [np.asarray(array, order="C") for array in arrays]
    text = json.dumps({"message": dict(message), "arrays": [_described(each) for each in kept]})
    data = text.encode()
    stream.write(len(data).to_bytes(8, "little") + data)
    for array in kept:
        if array.dtype.name in _DTYPES and array.size:
            stream.write(memoryview(array.reshape(-1).view(np.uint8)))  # pyright: ignore[reportArgumentType]
    stream.flush()


def receive(stream: BinaryIO, limit: int) -> tuple[dict[str, Any], list[_Array]]:
    """Read one message.

    Args:
        stream: Where it comes from; it may say anything.
        limit: How many bytes its arrays may have.

    Raises:
        EOFError: If it ends within the message.
        ValueError: If it is no message, or larger than the limit.
    """
    length = int.from_bytes(_exactly(stream, 8), "little")
    if length > _TEXT_BYTES:
        raise ValueError(f"a message of {length} bytes")
    found = json.loads(_exactly(stream, length))
    message, described = dict(found["message"]), list(found["arrays"])
    arrays: list[_Array] = []
    for each in described:
        shape = tuple(int(size) for size in each["shape"])
        if "values" in each:
            arrays.append(np.array(each["values"], dtype=object).reshape(shape))
            continue
        dtype = _DTYPES[each["dtype"]]
        nbytes = math.prod(shape) * dtype.itemsize
        limit -= nbytes
        if min(shape, default=0) < 0 or limit < 0:
            raise ValueError(f"an array of {nbytes} bytes")
        arrays.append(np.frombuffer(_exactly(stream, nbytes), dtype).reshape(shape))
    return message, arrays


def _described(array: _Array) -> dict[str, Any]:
    shape = list(array.shape)
    if array.dtype.name in _DTYPES:
        return {"dtype": array.dtype.name, "shape": shape}
    values = [_text(value) for value in array.reshape(-1).tolist()]
    if not all(isinstance(value, str) for value in values):
        raise UnsupportedModelError(
            f"cannot return an array of {array.dtype} from the sandbox",
            None,
            "compare models whose inputs and outputs are tensors of numbers or strings",
        )
    return {"values": values, "shape": shape}


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _exactly(stream: BinaryIO, length: int) -> bytearray:
    data = bytearray(length)
    view, place = memoryview(data), 0
    while place < length:
        count = stream.readinto(view[place:])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise EOFError
        place += count
    return data
