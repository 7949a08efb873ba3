"""protobuf's wire format, and the check of a model's bytes before protobuf parses them.

protobuf accepts unknown fields, keeps the last of two values of a singular field, merges two
messages of one, and can expand two bytes to a hundred bytes of memory. Each of these is refused
before it parses. The format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor

from tieops.errors import TieopsError, UnsupportedModelError, UntrustedFileError
from tieops.untrusted.limits import Limits, check_limit

__all__ = [
    "FIXED32",
    "FIXED64",
    "LENGTH",
    "MAX_DEPTH",
    "VARINT",
    "VARINT_BYTES",
    "check_wire",
    "more_of",
    "read_varint",
    "varint",
]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""How a value is stored; a key is the field's number times eight and one of these."""
VARINT_BYTES = 10
"""The longest number: 64 bits, seven a byte."""
MAX_DEPTH = 100
"""protobuf's own limit for messages in messages."""


def read_varint(data: bytes | memoryview | mmap.mmap, at: int) -> tuple[int, int]:
    r"""Return a number and where it ends.

    Args:
        data: What it is in.
        at: Where it begins.

    Raises:
        IndexError: If the data ends before it does.
        ValueError: If it goes on for more than ten bytes.

    Example:
        >>> read_varint(b"\x96\x01", 0)
        (150, 2)
    """
    number = data[at]
    if number < 0x80:
        return number, at + 1
    number = 0
    for shift in range(0, 7 * VARINT_BYTES, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than 64 bits")


def varint(number: int) -> bytes:
    """Return a number as it is written.

    Example:
        >>> varint(150).hex()
        '9601'
    """
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_NUMBERS = {
    VARINT: rb"[\x80-\xff]{0,9}[\x00-\x7f]",
    FIXED64: rb"[\x00-\xff]{8}",
    FIXED32: rb"[\x00-\xff]{4}",
}


@cache
def more_of(key: int) -> re.Pattern[bytes]:
    """Return what matches the numbers of a list that follow each other, each under its key.

    Args:
        key: Of a field of numbers that onnx.proto knows: what was compiled is kept.
    """
    number = _NUMBERS[key & 7]
    return re.compile(b"(?:%b%b)*+" % (re.escape(varint(key)), number), re.DOTALL)


_TEXTS = ("doc_string", "value")
"""Strings that are not names: they may be long."""
_DEEP = 12
"""So many messages within each other are no graph within a graph yet."""
_PAST_ITS_END = "a field ends after what it is in"


@dataclass(eq=False)
class _Field:
    """What may follow a tag.

    Args:
        name: The field's name in onnx.proto.
        wire: How it is stored.
        once: A bit for a field that is there once, one for all of a oneof; 0 for repeated ones.
        message: What it holds, if that is a message.
        is_text: Whether it must be UTF-8.
        is_name: Whether it is a text of limited size.
        run: Matches repeated numbers that follow each other unpacked.
    """

    name: str
    wire: int
    once: int = 0
    message: _Message | None = None
    is_text: bool = False
    is_name: bool = False
    run: re.Pattern[bytes] | None = None


@dataclass(eq=False)
class _Message:
    """A type of message: its fields by tag."""

    name: str
    is_graph: bool
    fields: dict[int, _Field] = field(default_factory=dict[int, _Field])


_WIRES = {
    FieldDescriptor.CPPTYPE_DOUBLE: FIXED64,
    FieldDescriptor.CPPTYPE_FLOAT: FIXED32,
    FieldDescriptor.CPPTYPE_STRING: LENGTH,
    FieldDescriptor.CPPTYPE_MESSAGE: LENGTH,
}


@cache
def _model() -> _Message:
    return _message(onnx.ModelProto.DESCRIPTOR, {})


def _message(descriptor: Any, known: dict[str, _Message]) -> _Message:
    found = known.get(descriptor.full_name)
    if found is not None:
        return found
    made = known[descriptor.full_name] = _Message(descriptor.name, descriptor.name == "GraphProto")
    for place, each in enumerate(descriptor.fields):
        wire = _WIRES.get(each.cpp_type, VARINT)
        one = each.containing_oneof
        at = place if one is None else one.fields[0].index
        made.fields[each.number << 3 | wire] = _Field(
            each.name,
            wire,
            0 if each.is_repeated else 1 << at,
            _message(each.message_type, known) if each.message_type else None,
            each.type == FieldDescriptor.TYPE_STRING,
            each.type == FieldDescriptor.TYPE_STRING and each.name not in _TEXTS,
            more_of(each.number << 3 | wire) if each.is_repeated and wire != LENGTH else None,
        )
        if each.is_repeated and wire != LENGTH:  # a list of numbers may be packed, or not
            made.fields[each.number << 3 | LENGTH] = _Field(each.name, LENGTH)
    return made


class _Walk:
    """The walk over one file.

    Args:
        data: The file.
        name: What errors call it.
        limits: What it may hold.
    """

    def __init__(self, data: bytes | mmap.mmap, name: str, limits: Limits) -> None:
        self._data = data
        self._name = name
        self._limits = limits
        self._stack: list[tuple[int, _Message, int]] = []
        self._numbers = 0

    def run(self) -> None:
        """Walk, field by field, with a stack of messages that are not at their end.

        Raises:
            UntrustedFileError: If it is not one well-formed model.
            UnsupportedModelError: If it holds unknown fields, or more than a limit.
        """
        data, stack, at = self._data, self._stack, 0
        end, message, seen = len(data), _model(), 0
        for _ in range(self._limits.fields + 1):
            while at == end:
                if not stack:
                    return
                end, message, seen = stack.pop()
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = self._varint(at - 1)
            known = message.fields.get(tag)
            if known is None:
                raise self._unknown(message, tag, seen)
            if seen & known.once:
                self._refuse_twice(message, known)
            seen |= known.once
            if known.wire != LENGTH:
                at = self._number(known, at, end)
                continue
            at, stop = self._extent(at, end)
            if known.message is None:
                self._check_bytes(message, known, at, stop)
                at = stop
                continue
            stack.append((end, message, seen))
            end, message, seen = stop, known.message, 0
            if len(stack) >= _DEEP:
                self._check_depth()
        check_limit(self._limits, "fields", self._limits.fields + 1, "protobuf fields")

    def _extent(self, at: int, end: int) -> tuple[int, int]:
        """Return where a field that says how long it is begins and ends."""
        size = self._data[at]
        at += 1
        if size > 127:
            size, at = self._varint(at - 1)
        if at + size > end:
            raise self._damaged(_PAST_ITS_END)
        return at, at + size

    def _check_bytes(self, message: _Message, known: _Field, at: int, stop: int) -> None:
        if known.is_text:
            self._check_text(message, known, at, stop)
        elif not known.once:
            self._count(stop - at)

    def _number(self, known: _Field, at: int, end: int) -> int:
        if known.wire == VARINT:
            _, at = self._varint(at)
        else:
            at += 8 if known.wire == FIXED64 else 4
        if known.run is not None:
            matched = known.run.match(self._data, at, end)
            assert matched is not None
            self._count(1 + (matched.end() - at) // 2)
            at = matched.end()
        if at > end:
            raise self._damaged(_PAST_ITS_END)
        return at

    def _count(self, numbers: int) -> None:
        self._numbers += numbers
        if self._numbers > self._limits.numbers:
            what = "numbers that are not in raw data"
            check_limit(self._limits, "numbers", self._numbers, what)

    def _varint(self, at: int) -> tuple[int, int]:
        try:
            return read_varint(self._data, at)
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def _check_depth(self) -> None:
        graphs = sum(message.is_graph for _, message, _ in self._stack)
        check_limit(self._limits, "depth", graphs - 1, "graphs within graphs")
        if len(self._stack) > MAX_DEPTH:
            raise UnsupportedModelError(
                f"{self._name} nests deeper than protobuf allows",
                {"messages": len(self._stack), "limit": MAX_DEPTH},
                "simplify the model: no reader can open it",
            )

    def _check_text(self, message: _Message, known: _Field, at: int, stop: int) -> None:
        if known.is_name and stop - at > self._limits.name_bytes:
            what = f"bytes of a name ({known.name} of a {message.name})"
            check_limit(self._limits, "name_bytes", stop - at, what)
        try:
            str(self._data[at:stop], "utf-8")
        except UnicodeDecodeError as error:
            raise UntrustedFileError(
                f"{self._name} holds a string that is not valid UTF-8",
                {"field": f"{known.name} of a {message.name}", "byte": at + error.start},
                "copy or export it again",
            ) from error

    def _unknown(self, message: _Message, tag: int, seen: int) -> TieopsError:
        if tag & 7 not in (VARINT, FIXED64, LENGTH, FIXED32) or not (seen or self._stack):
            return self._damaged("it holds what no model begins with, or no field at all")
        return UnsupportedModelError(
            f"{self._name} has a field that onnx {onnx.__version__} does not know, and would lose",
            {"field": tag >> 3, "wire type": tag & 7, "of a": message.name},
            "upgrade onnx, or copy the file again: it may be damaged, or no ONNX model",
        )

    def _refuse_twice(self, message: _Message, known: _Field) -> None:
        raise UnsupportedModelError(
            f"{self._name} has the field {known.name} of a {message.name} twice",
            None,
            "readers take the last, merge both or take the first: write it once",
        )

    def _damaged(self, why: str) -> UntrustedFileError:
        return damaged(self._data, self._name, why)


def damaged(data: bytes | mmap.mmap, name: str, why: Any) -> UntrustedFileError:
    """Return the error of a file that is not a model, or half of one."""
    return UntrustedFileError(
        f"no ONNX model in {name}, or a damaged one",
        {"size": len(data), "protobuf": why},
        "copy or export it again",
    )


def check_wire(data: bytes | mmap.mmap, name: str, limits: Limits) -> None:
    """Refuse bytes that are not one well-formed ``ModelProto`` within limits.

    Args:
        data: The bytes.
        name: What errors call them.
        limits: What they may hold.

    Raises:
        UntrustedFileError: If the bytes are no model, or a damaged one.
        UnsupportedModelError: For unknown fields, two of what should be one, and limits.
    """
    try:
        _Walk(data, name, limits).run()
    except IndexError:
        raise damaged(data, name, "it ends within a field") from None
