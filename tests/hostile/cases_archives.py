"""PyTorch archives that lie about themselves, and pickles (P of the reference)."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import tieops
from tests.hostile.case import case
from tests.hostile.zips import Entry, zipped

FORMAT = Entry("m/archive_format", b"pt2")
MODEL = Entry("m/models/model.json", b"{}")


def refused(*words: str, **options: Any) -> Any:
    """Make a case of a builder of bytes, which are read as ``m.pt2``."""

    def register(build: Any) -> Any:
        def written(folder: Path) -> Path:
            path = folder / "m.pt2"
            path.write_bytes(build())
            return path

        name = options.pop("name", build.__name__)
        return case(*words, name=name, read=tieops.from_torch, **options)(written)

    return register


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hit",)


def checkpoint(content: bytes, *more: Entry) -> bytes:
    return zipped([Entry("m/data.pkl", content), *more, Entry("m/version", b"3\n")])


# Pickles


@refused("a pickle from before PyTorch 1.6", "torch.export.save")
def p02_legacy_pickle() -> bytes:
    return pickle.dumps(Trap())


@refused("is a pickle", "torch.export.save")
def p03_pickle_in_a_zip() -> bytes:
    return checkpoint(pickle.dumps(Trap()))


@refused("a tar archive from before", "torch.export.save")
def p04_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("pickle")
        info.size = len(pickle.dumps(Trap()))
        tar.addfile(info, io.BytesIO(pickle.dumps(Trap())))
    return buffer.getvalue()


def _rebuilt(shape: str, strides: str, key: str = "0", numel: int = 4) -> bytes:
    """Return a pickle, as text, of a tensor over a storage, as torch writes them."""
    return (
        "ctorch._utils\n_rebuild_tensor_v2\n(((Vstorage\nctorch\nFloatStorage\n"
        f"V{key}\nVcpu\nI{numel}\ntQI0\n{shape}{strides}I00\nNtR."
    ).encode()


@refused("is a pickle")
def p05_shape_lie() -> bytes:
    return checkpoint(_rebuilt("(I1000000\nt", "(I1\nt"), Entry("m/data/0", bytes(16)))


@refused("is a pickle")
def p06_numel_lie() -> bytes:
    return checkpoint(_rebuilt("(I4\nt", "(I1\nt", numel=10**9), Entry("m/data/0", bytes(16)))


@refused("is a pickle")
def p08_stride_bomb() -> bytes:
    content = _rebuilt("(I1000000\nI1000000\nt", "(I0\nI0\nt")
    return checkpoint(content, Entry("m/data/0", bytes(4)))


@refused("is a pickle")
def p09_key_traversal() -> bytes:
    return checkpoint(_rebuilt("(I4\nt", "(I1\nt", "../../secret"), Entry("m/data/0", bytes(16)))


@refused("is a pickle", memory_mb=64)
def p13_memo_bomb() -> bytes:
    nested: list[Any] = []
    for _ in range(30):
        nested = [nested, nested]
    return checkpoint(pickle.dumps(nested))


@refused("is a pickle")
def p14_cyclic() -> bytes:
    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic
    return checkpoint(pickle.dumps(cyclic))


@refused("is a pickle")
def p15_deep() -> bytes:
    return checkpoint(b"(l" * 100_000 + b"." * 1)


@refused("is a pickle", memory_mb=64)
def p19_bytearray() -> bytes:
    return checkpoint(b"c__builtin__\nbytearray\n(I1099511627776\ntR.")


# What is no archive


@refused("m.pt2 is empty")
def p18_empty() -> bytes:
    return b""


@refused("not a zip archive")
def p18_text() -> bytes:
    return b"hello\n"


@refused("Git LFS pointer", "git lfs pull")
def p18_lfs() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@case("is not a regular file", read=tieops.from_torch)
def p18_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "m.pt2")
    return folder / "m.pt2"


@case("is not a regular file", read=tieops.from_torch)
def p18_device(folder: Path) -> Path:
    (folder / "m.pt2").symlink_to("/dev/zero")
    return folder / "m.pt2"


@case("does not exist", read=tieops.from_torch)
def p18_a_name_of_control_characters(folder: Path) -> Path:
    return folder / "a\x1b[31m\n.pt2"


# Archives


@refused("unpacks to", "64.0 MB", memory_mb=64)
def p10_zip_bomb() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", bytes(1 << 28), deflated=True)])


@refused("damaged", memory_mb=64)
def p10_zip_bomb_that_lies() -> bytes:
    entry = Entry("m/x", bytes(1 << 26), deflated=True)
    entry.local = entry.central = {"size": 1000}
    return zipped([FORMAT, MODEL, entry])


@refused("two entries of one name", "m/models/model.json")
def p11_dup_entry() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/models/model.json", b'{"other": 1}')])


@refused("damaged", "CRC")
def p12_bad_crc() -> bytes:
    return zipped(
        [FORMAT, Entry("m/models/model.json", b"{}", local={"crc": 7}, central={"crc": 7})]
    )


@refused("encrypted")
def p20_encrypted() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"1234", flags=1)])


@refused("damaged")
def p20_beyond_the_end() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"1234", central={"offset": 10**6})])


@refused("damaged")
def p20_longer_than_the_file() -> bytes:
    lie = {"size": 10**6, "packed": 10**6}
    return zipped([FORMAT, MODEL, Entry("m/x", b"1234", local=lie, central=lie)])


for _title, _name in {
    "dotdot": "m/../../secret.bin",
    "absolute": "/etc/passwd",
    "empty_part": "m//x",
    "drive": "c:/x",
    "backslash": "m\\..\\x",
    "control": "m/\x1b[31mx",
    "bidi": "m/\u202etxt.exe",
    "newline": "m/a\nb",
    "folder": "m/x/",
}.items():
    refused("an archive that tieops does not open: unsafe", name=f"z_name_{_title}")(
        lambda _name=_name: zipped([FORMAT, MODEL, Entry(_name, b"1")])
    )


@refused("does not open")
def z_name_with_a_nul() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x\0.txt", b"1")])


@refused("too large", "an entry's name")
def z_long_name() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/" + "x" * 60_000, b"1")])


@refused("no regular file")
def z_symlink() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"../../secret.bin", central={"mode": 0o120777})])


@refused("list and header disagree")
def z_two_names() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"1", local={"name": b"m/y"})])


@refused("list and header disagree")
def z_two_sizes() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"12345678", local={"size": 4, "packed": 4})])


@refused("list and header disagree")
def z_two_methods() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"12345678", local={"method": 8})])


@refused("list and header disagree")
def z_two_flags() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"12345678", local={"flags": 1})])


@refused("list and descriptor disagree")
def z_descriptor_lie() -> bytes:
    told = struct.pack("<4s3I", b"PK\x07\x08", 1, 2, 3)
    zeros = {"crc": 0, "size": 0, "packed": 0}
    return zipped([FORMAT, MODEL, Entry("m/x", b"1", flags=0x808, local=zeros, descriptor=told)])


@refused("list and header disagree")
def z_zip64_lie() -> bytes:
    extra = struct.pack("<2H2Q", 1, 16, 1 << 40, 1 << 40)
    lie = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "extra": extra}
    return zipped([FORMAT, MODEL, Entry("m/x", b"1", local=lie)])


@refused("damaged")
def z_zip64_lie_in_the_list() -> bytes:
    extra = struct.pack("<2H2Q", 1, 16, 1 << 40, 1 << 40)
    lie = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "extra": extra}
    return zipped([FORMAT, MODEL, Entry("m/x", b"1", local=lie, central=lie)])


@refused("entries overlap")
def z_overlap() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"1"), Entry("m/y", b"2", central={"offset": 0})])


@refused("entries leave a gap")
def z_gap() -> bytes:
    return zipped([FORMAT, Entry("m/x", b"1", gap=b"hidden"), MODEL])


@refused("a gap at the end")
def z_gap_at_the_end() -> bytes:
    return zipped([FORMAT, MODEL, Entry("m/x", b"1", gap=b"hidden")])


@refused("damaged")
def z_prefix() -> bytes:
    return b"PK" + zipped([FORMAT, MODEL])


@refused("bytes follow the archive's end")
def z_suffix() -> bytes:
    return zipped([FORMAT, MODEL], after=b"more")


@refused("bytes follow the archive's end")
def z_comment() -> bytes:
    return zipped([FORMAT, MODEL], comment=b"hello")


@refused("the list of its entries")
def z_fewer_than_listed() -> bytes:
    return zipped([FORMAT, MODEL], here=1, total=1)


@refused("damaged")
def z_more_than_listed() -> bytes:
    return zipped([FORMAT, MODEL], here=60_000, total=60_000)


@refused("damaged")
def z_list_of_another_length() -> bytes:
    return zipped([FORMAT, MODEL], length=1 << 31)


@refused("too large", "entries", memory_mb=512)
def z_many_entries() -> bytes:
    return _zip64(120_000)


def _zip64(count: int) -> bytes:
    """Return an archive of more entries than the old end can count."""
    plain = zipped([Entry(f"m/{number}") for number in range(count)], here=0xFFFF, total=0xFFFF)
    body, end = plain[:-22], plain[-22:]
    length, offset = struct.unpack("<2I", end[12:20])
    first = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 20, 20, 0, 0, count, count, length, offset)
    return body + first + struct.pack("<4sIQI", b"PK\x06\x07", 0, len(body), 1) + end


@refused("folders")
def z_two_folders() -> bytes:
    return zipped([FORMAT, MODEL, Entry("n/x", b"1")])


@refused("none that PyTorch wrote")
def z_another_zip() -> bytes:
    return zipped([Entry("readme.txt", b"hello")])


@refused("compression")
def z_another_compression() -> bytes:
    entry = Entry("m/x", b"12345678", local={"method": 12}, central={"method": 12})
    return zipped([FORMAT, MODEL, entry])


@refused("a .pt2 of PyTorch 2.7 or older", "torch.export.save")
def z_old_program() -> bytes:
    return zipped([Entry("version", b"8.8"), Entry("serialized_exported_program.json", b"{}")])
