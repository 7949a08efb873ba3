"""protobuf's wire format: the numbers and keys that its readers and writers share.

The format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
import re
from functools import cache

__all__ = ["FIXED32", "FIXED64", "LENGTH", "MAX_DEPTH", "VARINT", "VARINT_BYTES", "more_of",
           "read_varint", "varint"]  # fmt: skip

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
