"""Weights embedded in a large .onnx file: left where they are, as slices of the mapped file.

protobuf copies every byte that it parses. So the large tensors are found in the wire format first
and left out of what it is given; the rest is small. What is out of the ordinary is left in, and
protobuf and the checks after it see it as it is.

Wire format: https://protobuf.dev/programming-guides/encoding. Field numbers: onnx.proto.
"""

from __future__ import annotations

import math
import mmap
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir
from google.protobuf.message import DecodeError

__all__ = ["Embedded", "take_out"]

MIN_BYTES = 1 << 16
"""Smaller tensors are parsed as usual."""
MAX_REST_BYTES = 1 << 16
"""A tensor that has more than this beside its bytes is not one of the usual kind."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VALUES = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data",
           "external_data")  # fmt: skip
_WIDTHS = (2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class _Field:
    number: int
    wire: int
    begin: int
    """Where the tag begins."""
    start: int
    """Where the value begins; of one with a length, what comes after the length."""
    stop: int


@dataclass(eq=False)
class Embedded:
    """A model without its large tensors, and where these are.

    Args:
        data: The mapped file.
        message: The rest, a serialized ``ModelProto``. A tensor that was left out is external
            data there, at a location that no file can know.
    """

    data: mmap.mmap
    message: bytes = b""
    location: str = field(default_factory=lambda: f"embedded-{secrets.token_hex(16)}")

    def put_back(self, model: onnx_ir.Model) -> None:
        """Give the values of the parsed model their tensors: slices of the mapped file."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, onnx_ir.ExternalTensor) and tensor.location == self.location:
                value.const_value = self._slice(tensor)

    def _slice(self, tensor: onnx_ir.ExternalTensor) -> onnx_ir.TensorProtocol:
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


def take_out(data: mmap.mmap) -> Embedded | None:
    """Take the large initializers of the main graph out of a serialized model.

    Args:
        data: The mapped file.

    Returns:
        The rest and where the tensors are; None if there are none, or the file is not written the
        usual way. It is to be parsed whole then.
    """
    if sys.byteorder != "little":
        return None
    found = Embedded(data)
    try:
        fields = list(_fields(data, 0, len(data)))
        graphs = [each for each in fields if each.number == _GRAPH]
        if len(graphs) != 1 or graphs[0].wire != _LENGTH:
            return None  # several are merged into one
        pieces = list(_graph_pieces(data, graphs[0], found.location))
    except ValueError:
        return None
    if len(pieces) == 1:
        return None
    graph = graphs[0]
    length = sum(len(piece) for piece in pieces)
    view = memoryview(data)
    head = _varint(_GRAPH << 3 | _LENGTH) + _varint(length)
    found.message = b"".join((view[: graph.begin], head, *pieces, view[graph.stop :]))
    return found


def _graph_pieces(data: mmap.mmap, graph: _Field, location: str) -> Iterator[bytes | memoryview]:
    """Yield what a graph's message consists of once its large tensors are out."""
    view = memoryview(data)
    done = graph.start
    for each in _fields(data, graph.start, graph.stop):
        if (each.number, each.wire) != (_INITIALIZER, _LENGTH):
            continue
        if each.stop - each.start < MIN_BYTES:
            continue
        tensor = _without_data(data, each, location)
        if tensor is not None:
            yield view[done : each.begin]
            yield _varint(_INITIALIZER << 3 | _LENGTH) + _varint(len(tensor)) + tensor
            done = each.stop
    yield view[done : graph.stop]


def _without_data(data: mmap.mmap, tensor: _Field, location: str) -> bytes | None:
    """Return a tensor's message that refers to its bytes; None if it is better left as it is."""
    parts = list(_fields(data, tensor.start, tensor.stop))
    raw = [each for each in parts if each.number == _RAW_DATA]
    if len(raw) != 1 or raw[0].wire != _LENGTH or raw[0].stop - raw[0].start < MIN_BYTES:
        return None
    if tensor.stop - tensor.start - (raw[0].stop - raw[0].start) > MAX_REST_BYTES:
        return None
    try:
        proto = onnx.TensorProto.FromString(
            data[tensor.start : raw[0].begin] + data[raw[0].stop : tensor.stop]
        )
        dtype = onnx_ir.DataType(proto.data_type)
    except (DecodeError, ValueError):
        return None
    if any(len(getattr(proto, name)) for name in _VALUES):
        return None
    if any(proto.HasField(name) for name in ("segment", "data_location", "raw_data")):
        return None
    if dtype.name in ("STRING", "UNDEFINED") or dtype.bitwidth not in _WIDTHS:
        return None
    length = raw[0].stop - raw[0].start
    bad_shape = any(size < 0 for size in proto.dims)
    if bad_shape or length != -(-math.prod(proto.dims) * dtype.bitwidth // 8):
        return None
    proto.data_location = onnx.TensorProto.EXTERNAL
    entries: dict[str, Any] = {"location": location, "offset": raw[0].start, "length": length}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    return proto.SerializeToString()


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[_Field]:
    """Yield the fields of a message.

    Raises:
        ValueError: If it is no message, or has groups, which nobody writes any more.
    """
    at = start
    while at < stop:
        begin = at
        tag, at = _read_varint(data, at, stop)
        wire = tag & 7
        if wire == _VARINT:
            first = at
            _, at = _read_varint(data, at, stop)
        elif wire in (_FIXED64, _FIXED32):
            first, at = at, at + (8 if wire == _FIXED64 else 4)
        elif wire == _LENGTH:
            length, first = _read_varint(data, at, stop)
            at = first + length
        else:
            raise ValueError("a group, or no message")
        if at > stop or tag >> 3 == 0:
            raise ValueError("a message that ends too early")
        yield _Field(tag >> 3, wire, begin, first, at)


def _read_varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    number = shift = 0
    while at < stop and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("no number")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
