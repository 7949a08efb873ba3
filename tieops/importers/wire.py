"""The graph of a large .onnx file without its weights: protobuf's wire format, walked in ranges.

A model with its weights inside is gigabytes of tensors and some kB of graph. What is read here is
the graph; each large ``raw_data`` is stepped over, and its tensor says instead where it lies, as
external data in the model's own file.
"""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError

from tieops.errors import UntrustedFileError
from tieops.ir.brief import printable
from tieops.ir.ranged import Ranges

__all__ = ["read_graph"]

MIN_SKIPPED_BYTES = 16 << 10
"""Smaller data is read along: a request of its own would cost as much."""
FIRST_READ_BYTES = 4 << 10
MAX_READ_BYTES = 1 << 20
MAX_DEPTH = 100
"""protobuf's own limit for messages in messages."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Which fields of each message lead to tensors, by onnx.proto. All others are copied as they are.
_INNER = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
}
_RAW_DATA = 9


def read_graph(source: Ranges, location: str) -> bytes:
    """Return a model in which large tensors are external data that lies in the model's own file.

    Args:
        source: The .onnx file.
        location: What those tensors say their file is called.

    Raises:
        UntrustedFileError: If it is damaged, or a tensor has its values in two places.
    """
    return _Walk(source, location).message("Model", source.size, 0)


class _Walk:
    """One walk from the beginning of a file to its end; reads more at once where it steps on."""

    def __init__(self, source: Ranges, location: str) -> None:
        self._source = source
        self._location = location
        self._at = 0
        self._window = b""
        self._window_start = 0
        self._step = FIRST_READ_BYTES

    def message(self, kind: str, stop: int, depth: int) -> bytes:
        """Return the message of a kind that goes on to ``stop``, without the large data in it."""
        if depth > MAX_DEPTH:
            raise self._damaged(f"messages are nested more than {MAX_DEPTH} deep")
        if kind == "Tensor":
            return self._tensor(stop)
        parts: list[bytes] = []
        while self._at < stop:
            start = self._at
            number, size = self._field(stop)
            inner = _INNER[kind].get(number)
            if inner is None or size < MIN_SKIPPED_BYTES:
                self._at += size
                parts.append(self._bytes(start, self._at))
            else:
                body = self.message(inner, self._at + size, depth + 1)
                parts += [_varint(number << 3 | _BYTES), _varint(len(body)), body]
        return b"".join(parts)

    def _tensor(self, stop: int) -> bytes:
        parts: list[bytes] = []
        skipped: list[tuple[int, int]] = []
        while self._at < stop:
            start = self._at
            number, size = self._field(stop)
            if number == _RAW_DATA and size >= MIN_SKIPPED_BYTES:
                skipped.append((self._at, size))
                self._at += size
            else:
                self._at += size
                parts.append(self._bytes(start, self._at))
        return self._referring(b"".join(parts), skipped) if skipped else b"".join(parts)

    def _referring(self, data: bytes, skipped: list[tuple[int, int]]) -> bytes:
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(data)
        except DecodeError as error:
            raise self._damaged(str(error)) from error
        values = ("float_data", "int32_data", "string_data", "int64_data", "double_data",
                  "uint64_data", "external_data", "raw_data")  # fmt: skip
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if len(skipped) > 1 or external or any(len(getattr(tensor, each)) for each in values):
            name = printable(tensor.name) or "a tensor"
            raise UntrustedFileError(
                f"{name} has its values in two places, which may differ",
                {"file": self._source.name},
            )
        tensor.data_location = onnx.TensorProto.EXTERNAL
        offset, length = skipped[0]
        for key, value in (("location", self._location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor.SerializeToString()

    def _field(self, stop: int) -> tuple[int, int]:
        """Step over a field's head; return its number and the bytes that follow."""
        key = self._number(stop)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            start = self._at
            self._number(stop)
            size, self._at = self._at - start, start
        elif wire == _BYTES:
            size = self._number(stop)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise self._damaged(f"wire type {wire} at byte {self._at}")
        if number == 0 or size > stop - self._at:
            raise self._damaged(f"a field of {size} bytes at byte {self._at} of {stop}")
        return number, size

    def _number(self, stop: int) -> int:
        number = 0
        for shift in range(0, 70, 7):
            if self._at >= stop:
                break
            byte = self._bytes(self._at, self._at + 1)[0]
            self._at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise self._damaged(f"no number at byte {self._at}")

    def _bytes(self, start: int, stop: int) -> bytes:
        begin = start - self._window_start
        if begin < 0 or stop - self._window_start > len(self._window):
            # Steps grow while the walk goes on and begin small again behind what was stepped over.
            near = 0 <= begin <= len(self._window)
            self._step = min(self._step * 2, MAX_READ_BYTES) if near else FIRST_READ_BYTES
            end = min(max(stop, start + self._step), self._source.size)
            (self._window,) = self._source.read([(start, end)])
            self._window_start, begin = start, 0
        return self._window[begin : begin + stop - start]

    def _damaged(self, what: str) -> UntrustedFileError:
        return UntrustedFileError(
            f"no ONNX model in {self._source.name}, or a damaged one",
            {"size": self._source.size, "found": what},
            "copy or export it again",
        )


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
