"""A mutator that knows the structure of a model: one field of one message is changed at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["mutated", "spoiled"]

_NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 16, 17, 63, 64, 127, 128, 255, 2**16, 2**31 - 1, -(2**31),
            2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))  # fmt: skip
_TEXTS = ("", "x", "y", "w", "..", "../secret.bin", "/etc/passwd", "w.bin", "a\x1b[31m", "\u202e",
          "0", "-1", "16", "48", "1_6", "99999999999999999999", "ai.onnx", "com.microsoft",
          "Transpose", "MatMul", "Gather", "Reshape", "Slice", "Concat", "Cast", "If", "Identity",
          "Constant", "LSTM", "Gemm", "tieops.names", "offset", "length", "location")  # fmt: skip


def mutated(model: onnx.ModelProto, seed: int) -> bytes:
    """Return the bytes of a model of which one to four fields are other ones."""
    rng = random.Random(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        messages = list(_messages(copy))
        _change(rng.choice(messages), messages, rng)
    return copy.SerializeToString()


def spoiled(data: bytes, seed: int) -> bytes:
    """Return bytes of which some are other ones, gone, or there twice."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, count = rng.randrange(len(changed)), rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(4)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[at : at + count]
        else:
            changed[at:at] = changed[at : at + count]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def _messages(message: Message) -> Iterator[Message]:
    stack = [message]
    while stack:
        each = stack.pop()
        yield each
        for field, value in each.ListFields():
            if field.message_type is not None:
                stack.extend(value if field.is_repeated else [value])


def _change(message: Message, messages: list[Message], rng: random.Random) -> None:
    field = rng.choice(message.DESCRIPTOR.fields)
    filled = [each for each, _ in message.ListFields()]
    if filled and rng.random() < 0.8:
        field = rng.choice(filled)
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, messages, rng)
    elif field.message_type is not None:
        alike = [m for m in messages if m.DESCRIPTOR is field.message_type and m is not message]
        if alike and rng.random() < 0.7:
            _copy(getattr(message, field.name), rng.choice(alike))
        else:
            message.ClearField(field.name)
    else:
        _set(message, field, rng)


def _change_list(
    items: Any, field: FieldDescriptor, messages: list[Message], rng: random.Random
) -> None:
    kind = rng.randrange(4)
    if len(items) and kind == 0:
        del items[rng.randrange(len(items))]
    elif field.message_type is not None:
        alike = [m for m in messages if m.DESCRIPTOR is field.message_type]
        if alike and kind == 1:
            _copy(items.add(), rng.choice(alike))
        elif len(items) > 1 and kind == 2:
            a, b = rng.sample(range(len(items)), 2)
            _copy(items[a], items[b])
        elif kind == 3:
            items.add()
    elif len(items) and kind < 3:
        items[rng.randrange(len(items))] = _scalar(field, rng)
    else:
        items.extend([_scalar(field, rng)] * rng.choice((1, 1, 2, 40)))


def _copy(target: Message, source: Message) -> None:
    data = source.SerializeToString()  # it may lie within the target
    target.ParseFromString(data)


def _set(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return
    value = _scalar(field, rng)
    old = getattr(message, field.name)
    if isinstance(value, bytes) and rng.random() < 0.7:
        value = old[: rng.randrange(len(old) + 1)] + rng.choice((b"", b"\0", b"\xff" * 4))
    setattr(message, field.name, value)


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), 1e30))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    value = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.randrange(0, 24)
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT32:
        return max(-(2**31), min(value, 2**31 - 1))
    return abs(value) if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else value
