"""Weights embedded in an .onnx file: step over them, so that only the graph is left.

A model with its weights inside is gigabytes of tensors and some kB of graph, and protobuf copies
every byte that it parses. So each large ``raw_data`` is found in the wire format first, and its
tensor says instead where it lies. One walk serves mapped files and remote ones: it needs a few
bytes at a place of either, and reads nothing else.

In a local file they become slices of the mapping. Unusual tensors stay embedded, so that protobuf
and the later checks see them unchanged.
"""

from __future__ import annotations

import math
import mmap
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx
import onnx_ir
from google.protobuf.message import DecodeError

from tieops.errors import UntrustedFileError
from tieops.ir.walk import replace_tensors
from tieops.untrusted.limits import Limits, check_limit
from tieops.untrusted.wire import (
    FIXED32,
    FIXED64,
    LENGTH,
    MAX_DEPTH,
    VARINT,
    VARINT_BYTES,
    more_of,
    read_varint,
    varint,
)

__all__ = ["Embedded", "Lifted", "lift", "take_out"]

# Which fields of each message lead to raw data, by onnx.proto. All others are kept as they are, and
# so are the defaults of a function's attributes: a default may not be external.
_INNER = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Function": {7: "Node"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
    "Tensor": {9: "Data"},
}
_VALUES = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data",
           "external_data", "raw_data")  # fmt: skip
KNOWN_NUMBERS = 32
"""The numbers of all fields of onnx.proto are below this."""


class Source(Protocol):
    """The bytes of a file, some at a time.

    Attributes:
        name: What messages call it; safe for a terminal.
        size: Bytes.
    """

    name: str
    size: int

    def window(self, start: int, stop: int) -> bytes | memoryview:
        """Return what is from ``start`` on: up to ``stop``, or further where that costs little."""
        ...


@dataclass(frozen=True)
class Lifted:
    """A tensor whose large data was stepped over.

    Args:
        tensor: All else that the file says of it.
        ranges: Where in the file that data lies; more than one range if it is there twice.
    """

    tensor: onnx.TensorProto
    ranges: tuple[tuple[int, int], ...]

    @property
    def is_ambiguous(self) -> bool:
        """Whether it has, or says that it has, its values in another place too."""
        external = self.tensor.data_location == onnx.TensorProto.EXTERNAL
        others = any(len(getattr(self.tensor, each)) for each in _VALUES)
        return external or others or len(self.ranges) > 1

    def referring(self, location: str) -> bytes:
        """Return its message as one of external data, which lies where it was stepped over.

        Args:
            location: What the file is called.
        """
        found = onnx.TensorProto()
        found.CopyFrom(self.tensor)
        found.data_location = onnx.TensorProto.EXTERNAL
        start, stop = self.ranges[0]
        for key, value in (("location", location), ("offset", start), ("length", stop - start)):
            found.external_data.add(key=key, value=str(value))
        return found.SerializeToString()


def lift(
    source: Source, least_bytes: int, refer: Callable[[Lifted], bytes | None], limits: Limits
) -> bytes:
    """Return a serialized model without its large ``raw_data``.

    Args:
        source: The .onnx file.
        least_bytes: Data of fewer bytes stays where it is.
        refer: Gives the message that stands for a tensor from here on, or None to leave the tensor
            as it is.
        limits: How many fields the file may have.

    Raises:
        UntrustedFileError: If the file is damaged, or ``refer`` refuses a tensor.
        UnsupportedModelError: If it has more fields than the limit.
    """
    walk = _Walk(source, least_bytes, refer, limits)
    return b"".join(walk.message("Model", source.size, 0))


class _Walk:
    """One walk from the beginning of a file to its end.

    What stays is kept as whole stretches, not field by field: a field of two bytes costs two.
    """

    def __init__(
        self,
        source: Source,
        least_bytes: int,
        refer: Callable[[Lifted], bytes | None],
        limits: Limits,
    ) -> None:
        self._source = source
        self._least_bytes = least_bytes
        self._refer = refer
        self._limits = limits
        self._fields = 0
        self._at = 0
        self._window: bytes | memoryview = b""
        self._window_start = 0
        self._pieces: list[bytes | memoryview] = []
        self._settled = 0  # what is before this is among the pieces, or was stepped over

    def message(self, kind: str, stop: int, depth: int) -> list[bytes | memoryview]:
        """Return the message of a kind that goes on to ``stop``, without the large data in it."""
        if depth > MAX_DEPTH:
            raise self._damaged(f"messages are nested more than {MAX_DEPTH} deep")
        start = self._at
        outer, self._pieces = self._pieces, []
        ranges: list[tuple[int, int]] = []
        while self._at < stop:
            begin = self._at
            number, wire, size = self._field(stop)
            # Numbers under the key of a message or of bytes are for later checks to refuse.
            inner = _INNER[kind].get(number) if wire == LENGTH else None
            if inner is None or size < self._least_bytes:
                self._at += size
                continue
            self._keep(begin)
            self._settled = self._at
            if inner == "Data":
                ranges.append((self._at, self._at + size))
                self._at = self._settled = self._at + size
            else:
                body = self.message(inner, self._at + size, depth + 1)
                self._pieces += [varint(number << 3 | LENGTH), varint(sum(map(len, body))), *body]
        self._keep(stop)
        pieces, self._pieces = self._pieces, outer
        return self._tensor(start, pieces, ranges) if ranges else pieces

    def _tensor(
        self, start: int, pieces: list[bytes | memoryview], ranges: list[tuple[int, int]]
    ) -> list[bytes | memoryview]:
        try:
            tensor = onnx.TensorProto.FromString(b"".join(pieces))
        except DecodeError as error:
            raise self._damaged(str(error)) from error
        message = self._refer(Lifted(tensor, tuple(ranges)))
        if message is None:
            return [self._source.window(start, self._at)[: self._at - start]]
        return [message]

    def _field(self, stop: int) -> tuple[int, int, int]:
        """Step over a field's head; return its number, its wire type and the bytes that follow."""
        self._fields += 1
        if self._fields > self._limits.fields:
            check_limit(self._limits, "fields", self._fields, "protobuf fields")
        self._reach(min(self._at + 2 * VARINT_BYTES, stop))
        key, self._at = self._number(self._at, stop)
        number, wire = key >> 3, key & 7
        if wire == LENGTH:
            size, self._at = self._number(self._at, stop)
        elif wire == VARINT:
            size = self._number(self._at, stop)[1] - self._at
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise self._damaged(f"wire type {wire} at byte {self._at}")
        if number == 0 or size > stop - self._at:
            raise self._damaged(f"a field of {size} bytes at byte {self._at} of {stop}")
        if wire != LENGTH and number < KNOWN_NUMBERS:
            size += self._run(key, self._at + size, stop)
        return number, wire, size

    def _run(self, key: int, at: int, stop: int) -> int:
        """Return how many bytes more of a list's numbers are in the window."""
        start = at - self._window_start
        matched = more_of(key).match(self._window, start, stop - self._window_start)
        return 0 if matched is None else matched.end() - start

    def _number(self, at: int, stop: int) -> tuple[int, int]:
        """Return the number at a place in the window, and where it ends."""
        try:
            number, end = read_varint(self._window, at - self._window_start)
        except (IndexError, ValueError):
            number, end = 0, stop + 1
        else:
            end += self._window_start
        if end > stop:
            raise self._damaged(f"no number at byte {min(at + VARINT_BYTES, stop)}")
        return number, end

    def _keep(self, stop: int) -> None:
        """Put what was walked over, up to ``stop``, among the pieces."""
        self._reach(stop)
        if stop > self._settled:
            self._pieces.append(self._seen(self._settled, stop))
            self._settled = stop

    def _reach(self, stop: int) -> None:
        """See to it that the window goes on to ``stop``."""
        end = self._window_start + len(self._window)
        if stop <= end:
            return
        self._keep(min(self._at, end))
        tail = self._seen(self._settled, end)
        more = self._source.window(self._settled + len(tail), stop)
        self._window = b"".join((tail, more)) if tail else more
        self._window_start = self._settled

    def _seen(self, start: int, stop: int) -> bytes | memoryview:
        """Return a part of the window."""
        return self._window[start - self._window_start : max(stop - self._window_start, 0)]

    def _damaged(self, found: str) -> UntrustedFileError:
        return UntrustedFileError(
            f"no ONNX model in {self._source.name}, or a damaged one",
            {"size": self._source.size, "found": found},
            "copy or export it again",
        )


MIN_BYTES = 1 << 16
"""Smaller tensors are parsed as usual."""
_WIDTHS = (2, 4, 8, 16, 32, 64, 128)


@dataclass(eq=False)
class Embedded:
    """A model without its large tensors, and where these are.

    Args:
        data: The mapped file, or the bytes.
        count: How many tensors were left out.
        message: The rest, a serialized ``ModelProto``. A tensor that was left out is external
            data there, at a location that no file can know.
    """

    data: bytes | mmap.mmap
    message: bytes = b""
    count: int = 0
    location: str = field(default_factory=lambda: f"embedded-{secrets.token_hex(16)}")

    def restore_tensors(self, model: onnx_ir.Model) -> None:
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
        if not _can_be_sliced(lifted, data, limits):
            return None
        found.count += 1
        return lifted.referring(found.location)

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
