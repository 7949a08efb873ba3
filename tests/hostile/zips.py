"""Zip archives written field by field, so that a case can lie in any of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entry", "zipped"]


@dataclass
class Entry:
    """An entry of an archive.

    Args:
        name: Its name in both headers.
        data: What it holds.
        deflated: Whether it is compressed.
        flags: The general purpose bits.
        local: Fields of the header before it that are not as they should be.
        central: Fields of the list at the end that are not.
        descriptor: What follows the data.
        gap: What follows that.
    """

    name: str
    data: bytes = b""
    deflated: bool = False
    flags: int = 0x800
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: bytes = b""
    gap: bytes = b""

    def packed(self) -> bytes:
        if not self.deflated:
            return self.data
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(self.data) + packer.flush()

    def fields(self) -> dict[str, Any]:
        return {
            "name": self.name.encode(),
            "flags": self.flags,
            "method": 8 if self.deflated else 0,
            "crc": zlib.crc32(self.data),
            "packed": len(self.packed()),
            "size": len(self.data),
            "extra": b"",
            "mode": 0,
        }


def zipped(
    entries: Iterable[Entry], *, comment: bytes = b"", after: bytes = b"", **end: int
) -> bytes:
    """Return the bytes of an archive; ``end`` replaces fields of the end's record."""
    body, listed, count = bytearray(), bytearray(), 0
    for entry in entries:
        count += 1
        told = entry.fields() | entry.local
        offset = entry.central.get("offset", len(body))
        body += struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 20, told["flags"], told["method"], 0, 0, told["crc"],
            told["packed"], told["size"], len(told["name"]), len(told["extra"]),
        ) + told["name"] + told["extra"]  # fmt: skip
        body += entry.packed() + entry.descriptor + entry.gap
        told = entry.fields() | entry.central
        listed += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 0x314, 20, told["flags"], told["method"], 0, 0,
            told["crc"], told["packed"], told["size"], len(told["name"]), len(told["extra"]), 0, 0,
            0, told["mode"] << 16, offset,
        ) + told["name"] + told["extra"]  # fmt: skip
    fields = {"here": count, "total": count, "length": len(listed), "offset": len(body)} | end
    last = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *fields.values(), len(comment))
    return bytes(body + listed) + last + comment + after
