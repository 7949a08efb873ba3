"""Check the file of an ONNX model before opening it, and recognise other kinds of files."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tieops.errors import UntrustedFileError
from tieops.ir.notation import printable
from tieops.ir.storage.data_files import MAX_PROTO_BYTES
from tieops.system.mapping import map_file, may_stay_mapped
from tieops.system.opening import open_to_read
from tieops.untrusted.limits import Limits, raising
from tieops.untrusted.onnx_tensors import shown

__all__ = ["ModelFile", "check_size", "read_file", "refuse_other_formats"]

MAPPED_FROM = 1 << 20
"""Files from this size on are mapped where they can be, and their large weights stay in them."""


@dataclass(frozen=True)
class ModelFile:
    """A file that was read.

    Args:
        data: What it holds; a large file is mapped.
        path: Where it was asked for, from the root.
        real: Its real path: where it is once links are followed.
        device: The file system that it is on.
        inode: Its number there.
    """

    data: bytes | mmap.mmap
    path: str
    real: str
    device: int
    inode: int


def read_file(path: Path, limits: Limits) -> ModelFile:
    """Read a regular file of a limited size, whatever lies at the path.

    Raises:
        UntrustedFileError: If there is none, or something else: a FIFO or a device would hang.
    """
    name = printable(str(path)) if len(str(path)) <= 200 else shown(path.name)
    try:
        _refuse_others(os.stat(path), name)
        descriptor = open_to_read(path)
    except (OSError, ValueError) as error:
        says = error.strerror if isinstance(error, OSError) else str(error)
        raise UntrustedFileError(
            f"cannot open {name}", {"the system says": says}, "check the path"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)  # again: it may have been swapped in between
        _refuse_others(status, name)
        check_size(status.st_size, name, limits)
        if status.st_size >= MAPPED_FROM and may_stay_mapped():
            data = map_file(descriptor, status.st_size)
        else:
            data = file.read(status.st_size + 1)
    real = os.path.realpath(path)
    if len(data) != status.st_size or not _is_at(real, status):
        raise UntrustedFileError(
            f"{name} changed while it was read", None, "wait until it is whole, and read it again"
        )
    return ModelFile(data, os.path.abspath(path), real, status.st_dev, status.st_ino)


def _refuse_others(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UntrustedFileError(
            f"{name} is a directory, not a regular file", None, "pass the .onnx file in it"
        )
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(f"{name} is not a regular file", None, "pass an .onnx file")


def check_size(size: int, name: str, limits: Limits) -> None:
    """Refuse a size that no .onnx file has, or that is above the limit.

    Raises:
        UntrustedFileError: With both sizes.
    """
    if size == 0:
        raise UntrustedFileError(f"{name} is empty", None, "write or copy it again")
    if size > MAX_PROTO_BYTES:
        raise UntrustedFileError(
            f"{name} is larger than one protobuf message can be",
            {"size": size, "limit": MAX_PROTO_BYTES},
            "save it with external data",
        )
    if size > limits.file_bytes:
        raise UntrustedFileError(
            f"{name} is larger than the limit",
            {"size": size, "limit": limits.file_bytes},
            f"if you trust the file: {raising('file_bytes')}",
        )


def _is_at(real: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(real), status)
    except OSError:
        return False


_DOWNLOAD = "the download went wrong: get the file itself"
_UNPACK = "unpack it first"
_FORMATS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch file?)", "use from_torch for a PyTorch file"),
    (0, b"PK\x05\x06", "an empty zip archive", "get the file again"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "run git lfs pull"),
    (0, b"\x1f\x8b", "a gzip file", _UNPACK),
    (0, b"BZh", "a bzip2 file", _UNPACK),
    (0, b"\xfd7zXZ\0", "an xz file", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x89HDF", "an HDF5 file (Keras?)", "export the model to ONNX"),
    (0, b"\x93NUMPY", "an array of numpy", "pass the model"),
    (0, b"GGUF", "a GGUF file", "export the model to ONNX"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX"),
    (4, b"ORTM", "a model in ONNX Runtime's own format", "pass the .onnx file it was made of"),
    (0, b"%PDF", "a PDF file", _DOWNLOAD),
    (0, b"\x7fELF", "a program", "pass the model"),
    (0, b"\x89PNG", "a picture", "pass the model"),
    (0, b"\xff\xd8\xff", "a picture", "pass the model"),
)
_HTML = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")


def refuse_other_formats(data: bytes | mmap.mmap, name: str) -> None:
    """Refuse a file of another kind, by its name, with what to do about it.

    Raises:
        UntrustedFileError: For web pages, archives, pickles, safetensors and the like.
    """
    found = _format_of(data)
    if found is not None:
        raise UntrustedFileError(f"no ONNX model in {name}, but {found[0]}", None, found[1])


def _format_of(data: bytes | mmap.mmap) -> tuple[str, str] | None:
    for at, magic, what, fix in _FORMATS:
        if data[at : at + len(magic)] == magic:
            return what, fix
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(_HTML):
        return "an HTML page", _DOWNLOAD
    if head.startswith((b"{", b"[")):
        return "a JSON text", "pass the model"
    if head.startswith((b"< ir_version", b"<ir_version", b"<\nir_version")):
        return "the text form of a model", "pass onnx.parser.parse_model(text)"
    if data[:1] == b"\x80" and data[1:2] in b"\2\3\4\5":
        return "a pickle, which is never run", "export the model to ONNX"
    if data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8:
        return "a safetensors file: weights without a graph", "export the model to ONNX"
    return None
