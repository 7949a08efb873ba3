"""List and check untrusted zip archives before a library reads them.

Readers of zip files disagree on what they trust: the directory at the end or the header before each
entry, the first of two entries with one name or the last. So an archive is accepted only if all of
these agree, and if its entries fill it without gaps.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tieops.errors import UntrustedFileError
from tieops.ir.notation import brief_bytes, printable
from tieops.system.opening import open_to_read

__all__ = ["ArchiveLimits", "check_archive", "check_contents", "open_regular"]

_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_DESCRIPTOR = 1 << 3
_ZIP64_END = struct.Struct("<4sQ2H2I4Q4sIQI")
"""What stands before the end of a zip64 archive: its own end, and where that is."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ArchiveLimits:
    """How much an archive may hold.

    Attributes:
        entries: Its entries.
        name_length: The characters of an entry's name.
        unpacked_bytes: What its compressed entries hold unpacked, together. torch compresses only
            the source text of TorchScript; stored entries are never larger than the file.
    """

    entries: int = 100_000
    name_length: int = 1024
    unpacked_bytes: int = 64_000_000


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a FIFO or a device is never waited for.

    Raises:
        UntrustedFileError: If there is none, or it is something else.
    """
    try:
        descriptor = open_to_read(path)
    except (OSError, ValueError) as error:
        missing = not os.path.exists(path)
        raise UntrustedFileError(
            f"{printable(str(path))} " + ("does not exist" if missing else "cannot be opened"),
            {"the system says": getattr(error, "strerror", None) or error},
            f"check the path; the folder is {printable(str(path.parent.resolve()))}",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UntrustedFileError(
            f"{printable(str(path))} is not a regular file", None, "pass a file"
        )
    return os.fdopen(descriptor, "rb")


def check_archive(
    file: BinaryIO, name: str, limits: ArchiveLimits | None = None
) -> Mapping[str, zipfile.ZipInfo]:
    """Check what an archive says of its entries, without unpacking any.

    Args:
        file: The archive.
        name: What errors call it.
        limits: How much it may hold.

    Returns:
        Its entries by name, in the order in which they lie in the file.

    Raises:
        UntrustedFileError: If it is damaged, or if two readers could read it differently: entries
            of one name, that overlap, leave gaps or disagree with their headers, encrypted ones,
            links, names that lead out of a folder; and if it holds more than the limits allow.
    """
    limits = limits or ArchiveLimits()
    try:
        with zipfile.ZipFile(file) as archive:
            found, start = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _refused(name, "damaged", "zipfile says", error) from error
    size = os.fstat(file.fileno()).st_size
    _check_end(file, name, size, start, len(found))
    if len(found) > limits.entries:
        raise _refused(name, "too large", "entries", f"{len(found)}; the limit is {limits.entries}")
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in sorted(found, key=lambda entry: entry.header_offset):
        _check_name(name, entry, limits)
        if entry.filename in entries:
            raise _refused(name, "ambiguous", "two entries of one name", entry.filename)
        entries[entry.filename] = entry
    _check_sizes(name, list(entries.values()), limits)
    place = 0
    for entry in entries.values():
        if entry.header_offset != place:
            why = "overlap" if entry.header_offset < place else "leave a gap"
            raise _refused(name, "damaged", f"entries {why}", entry.filename)
        place = _entry_end(file, name, entry)
    if place != start:
        why = "the last entry is longer than the archive" if place > start else "a gap at the end"
        raise _refused(name, "damaged", "why", why)
    return entries


def check_contents(file: BinaryIO, name: str, entries: Mapping[str, zipfile.ZipInfo]) -> None:
    """Read all entries once and compare their checksums; torch does not.

    Raises:
        UntrustedFileError: If one does not match, or cannot be unpacked.
    """
    with zipfile.ZipFile(file) as archive:
        for entry in entries.values():
            try:
                with archive.open(entry) as content:
                    while content.read(_BLOCK):
                        pass
            except (zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error) as error:
                raise _refused(name, "damaged", "zipfile says", error) from error


def _check_end(file: BinaryIO, name: str, size: int, start: int, count: int) -> None:
    """Check that the list of entries is the end of the file, and says how long it is."""
    file.seek(size - _END.size)
    magic, *told, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise _refused(name, "damaged", "why", "bytes follow the archive's end")
    end = size - _END.size
    wanted = [0, 0, count, count, end - start, start]
    file.seek(max(0, end - _ZIP64_END.size))
    ends = file.read(min(end, _ZIP64_END.size))
    if ends[56:60] == b"PK\x06\x07":
        # torch writes this form always; the old one may say the same, or leave it to this.
        end -= _ZIP64_END.size
        wanted[4] = end - start
        first, length, _, _, *large, second, disk, place, disks = _ZIP64_END.unpack(ends)
        sound = (first, length, second) == (b"PK\x06\x06", 44, b"PK\x06\x07")
        sound = sound and (disk, place, disks) == (0, end, 1) and large == wanted
        unsaid = [0xFFFF] * 4 + [0xFFFF_FFFF] * 2
        told = [w if t == u else t for t, w, u in zip(told, wanted, unsaid, strict=True)]
    else:
        sound = True
    if not sound or told != wanted:
        raise _refused(
            name, "damaged", "why", "the list of its entries is not where and what it says"
        )


def _check_name(name: str, entry: zipfile.ZipInfo, limits: ArchiveLimits) -> None:
    told = entry.orig_filename
    if len(told) > limits.name_length:
        raise _refused(name, "too large", "an entry's name", f"{len(told)} characters")
    parts = told.split("/")
    if told != entry.filename or not told.isprintable() or "\\" in told:
        raise _refused(name, "unsafe", "an entry's name", told)
    if {"", ".", ".."} & set(parts) or ":" in parts[0]:
        raise _refused(name, "unsafe", "an entry leads out of the archive", told)
    kind = entry.external_attr >> 16
    if stat.S_IFMT(kind) not in (0, stat.S_IFREG):
        raise _refused(name, "unsafe", "no regular file", told)


def _check_sizes(name: str, entries: list[zipfile.ZipInfo], limits: ArchiveLimits) -> None:
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise _refused(name, "encrypted", "entry", entry.filename)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(name, "unsupported", "compression", f"{entry.compress_type}")
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
            raise _refused(name, "damaged", "a stored entry of two sizes", entry.filename)
    unpacked = sum(e.file_size for e in entries if e.compress_type != zipfile.ZIP_STORED)
    if unpacked > limits.unpacked_bytes:
        told = f"{brief_bytes(unpacked)}; the limit is {brief_bytes(limits.unpacked_bytes)}"
        raise _refused(name, "too large", "unpacks to", told)


def _entry_end(file: BinaryIO, name: str, entry: zipfile.ZipInfo) -> int:
    """Return where an entry ends, once its own header says what the list says."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise _refused(name, "damaged", "no header", entry.filename)
    _, _, flags, method, _, _, *numbers, name_length, extra_length = _LOCAL.unpack(header)
    told = file.read(name_length)
    encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
    described = bool(flags & _DESCRIPTOR)
    sizes = _local_sizes(file.read(extra_length), numbers)
    wanted = [entry.CRC, entry.compress_size, entry.file_size]
    if (
        (flags, method) != (entry.flag_bits, entry.compress_type)
        or told != entry.filename.encode(encoding, "replace")
        or (sizes != wanted and not (described and sizes == [0, 0, 0]))
    ):
        raise _refused(name, "ambiguous", "list and header disagree", entry.filename)
    end = entry.header_offset + _LOCAL.size + name_length + extra_length + entry.compress_size
    return end + _descriptor_length(file, name, entry, end) if described else end


def _local_sizes(extra: bytes, numbers: list[int]) -> list[int]:
    """Return CRC, compressed and plain size, from the zip64 field where they are there."""
    crc, packed, plain = numbers
    while len(extra) >= 4 and 0xFFFF_FFFF in (packed, plain):
        tag, length = struct.unpack_from("<2H", extra)
        if tag == 1 and length >= 16:
            plain, packed = struct.unpack_from("<2Q", extra, 4)
        extra = extra[4 + length :]
    return [crc, packed, plain]


def _descriptor_length(file: BinaryIO, name: str, entry: zipfile.ZipInfo, place: int) -> int:
    """Return the length of what repeats an entry's sizes after it, once it is right."""
    file.seek(place)
    data = file.read(24)
    wanted = (entry.CRC, entry.compress_size, entry.file_size)
    for form in ("<4sI2Q", "<4s3I"):
        length = struct.calcsize(form)
        told = struct.unpack(form, data[:length]) if len(data) >= length else ()
        if told == (b"PK\x07\x08", *wanted):
            return length
    raise _refused(name, "ambiguous", "list and descriptor disagree", entry.filename)


def _refused(name: str, how: str, label: str, fact: object) -> UntrustedFileError:
    return UntrustedFileError(
        f"{printable(name)} is a damaged archive"
        if how == "damaged"
        else f"{printable(name)} is an archive that tieops does not open: {how}",
        {label: printable(str(fact))[:200]},
        "copy the file again" if how == "damaged" else "save it again with torch",
    )
