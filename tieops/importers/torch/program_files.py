"""Recognise and open PyTorch files without ever running a pickle."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tieops.errors import UntrustedFileError
from tieops.importers.torch.isolation import suppress_torch_logging
from tieops.ir.notation import printable
from tieops.untrusted.archives import check_archive, check_contents, open_regular
from tieops.untrusted.program_checks import check_payload, check_program

__all__ = ["read_torch_file"]

MAX_JSON_BYTES = 256_000_000

_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_PLAIN = {"archive_format", "archive_version", "byteorder", "version", _MODEL, _SAMPLES}
_PAYLOADS = {"weight": "data/weights/", "tensor": "data/constants/"}
_CONFIGS = {
    "weight": "data/weights/model_weights_config.json",
    "tensor": "data/constants/model_constants_config.json",
}
_TRUST = "if you trust who made it: from_torch(path, trust=True), or --trust on the command line"
_PROGRAMS = "pass a .pt2 of torch.export.save or a TorchScript archive of torch.jit.save"


def read_torch_file(
    path: str | os.PathLike[str], *, trust: bool = False
) -> torch.export.ExportedProgram | torch.jit.ScriptModule:
    """Open a ``.pt2`` (torch.export) or a TorchScript archive, whatever its suffix says.

    Args:
        path: The file.
        trust: The file may run code, as torch's loaders let it: TorchScript, pickled weights,
            custom operators. A checkpoint or a pickled module is refused all the same.

    Raises:
        UntrustedFileError: If the file is damaged, if torch would have to run code to open it (and
            it is not trusted), or if it is not a PyTorch program; the text says what to do instead.
    """
    path = Path(path)
    with open_regular(path) as file:
        _check_kind(file, path.name)
        entries = check_archive(file, path.name)
        roots = {entry.partition("/")[0] for entry in entries}
        tails = {entry.partition("/")[2]: info for entry, info in entries.items()}
        is_program = any(tail.startswith("models/") and tail.endswith(".json") for tail in tails)
        if not is_program and not {"archive_format", "constants.pkl"} & set(tails):
            raise _no_program(path.name, list(entries), tails)
        if len(roots) != 1:
            raise _damaged(path.name, "folders", ", ".join(sorted(roots)))
        check_contents(file, path.name, entries)
        file.seek(0)
        if not is_program and "archive_format" not in tails:
            return _read_torchscript(file, path.name, trust)
        if trust:
            return _loaded(file, path.name, trust=True)
        _check_program(file, path.name, tails)
        return _loaded(_without(file, tails[_SAMPLES]), path.name, trust=False)


def _check_kind(file: BinaryIO, name: str) -> None:
    """Refuse what is not a zip archive, by what it is."""
    head = file.read(512)
    if head.startswith(b"PK"):
        return
    kinds = {
        "empty": not head,
        "a pickle from before PyTorch 1.6": head[:1] == b"\x80",
        "a tar archive from before PyTorch 0.1.10": head[257:262] == b"ustar",
        "a Git LFS pointer, which git lfs pull replaces by the file": head.startswith(
            b"version https://git-lfs"
        ),
    }
    what = next((kind for kind, holds in kinds.items() if holds), "not a zip archive")
    raise UntrustedFileError(
        f"{printable(name)} is {what}: tieops does not execute it",
        {"first bytes": head[:8].hex(" ") or "none"},
        "use from_onnx for ONNX" if name.lower().endswith(".onnx") else _PROGRAMS,
    )


def _no_program(
    name: str, entries: list[str], tails: Mapping[str, zipfile.ZipInfo]
) -> UntrustedFileError:
    if "serialized_exported_program.json" in entries:
        return UntrustedFileError(
            f"{printable(name)} is a .pt2 of PyTorch 2.7 or older, which holds pickles",
            None,
            "if you trust who made it: torch.export.load it, and torch.export.save it again",
        )
    if "data.pkl" in tails:
        return UntrustedFileError(
            f"{printable(name)} is a pickle: tieops does not execute it",
            {"holds": "a checkpoint or a pickled module, not a program"},
            "build the module, load_state_dict(torch.load(path, weights_only=True)) and pass the "
            "module to from_torch, or save the program with torch.export.save",
        )
    return UntrustedFileError(
        f"{printable(name)} is a zip archive, but none that PyTorch wrote",
        {"members": ", ".join(map(printable, entries[:4])) or "none"},
        _PROGRAMS,
    )


def _read_torchscript(file: BinaryIO, name: str, trust: bool) -> torch.jit.ScriptModule:
    if not trust:
        raise UntrustedFileError(
            f"{printable(name)} is TorchScript, which runs code when it is opened",
            None,
            _TRUST,
        )
    with warnings.catch_warnings():
        # torch marks TorchScript as deprecated; whoever has such a file knows.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(file, map_location="cpu")
        except Exception as error:
            raise _unreadable(name, error) from error


def _check_program(file: BinaryIO, name: str, tails: Mapping[str, zipfile.ZipInfo]) -> None:
    """Check everything in a ``.pt2`` that torch would read."""
    for tail, info in tails.items():
        folder, _, base = tail.rpartition("/")
        kind, _, number = base.partition("_")
        payload = _PAYLOADS.get(kind) == folder + "/" and number.isdecimal()
        plain = tail in _PLAIN or tail in _CONFIGS.values() or folder in (".data", "extra")
        if not payload and not plain:
            raise UntrustedFileError(
                f"{printable(name)} holds more than a program and its weights",
                {"entry": printable(tail)},
                _TRUST,
            )
        if info.compress_type != zipfile.ZIP_STORED:
            raise _damaged(name, "a compressed entry, which torch does not write", tail)
    wanted = {_MODEL, _SAMPLES, *_CONFIGS.values()}
    if missing := wanted - set(tails):
        raise _damaged(name, "missing", ", ".join(sorted(missing)))
    check_program(_json(file, name, tails[_MODEL]), name)
    for kind, config in _CONFIGS.items():
        folder = _PAYLOADS[kind]
        sizes = {
            tail.removeprefix(folder): info.file_size
            for tail, info in tails.items()
            if tail.startswith(folder)
        }
        check_payload(_json(file, name, tails[config]), kind, sizes, name)


def _json(file: BinaryIO, name: str, info: zipfile.ZipInfo) -> Any:
    if info.file_size > MAX_JSON_BYTES:
        raise UntrustedFileError(
            f"{printable(name)} has a program of {info.file_size} bytes",
            {"limit": MAX_JSON_BYTES},
            _TRUST,
        )
    with zipfile.ZipFile(file) as archive:
        data = archive.read(info)
    try:
        return json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, f"json says of {info.filename}", error) from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _loaded(
    file: BinaryIO | io.RawIOBase, name: str, *, trust: bool
) -> torch.export.ExportedProgram:
    with suppress_torch_logging():
        try:
            program = torch.export.load(file)  # pyright: ignore[reportArgumentType]
        except Exception as error:
            raise _unreadable(name, error) from error
    if not trust:
        # They are source text, which a module of this program would execute.
        program._guards_code = []  # pyright: ignore[reportPrivateUsage]
    return program


def _unreadable(name: str, error: Exception) -> UntrustedFileError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UntrustedFileError(
        f"{printable(name)} is no program that torch can load",
        {"torch says": printable(first[:300])},
        "load it yourself with torch.export.load and pass the ExportedProgram",
    )


def _damaged(name: str, label: str, fact: object) -> UntrustedFileError:
    return UntrustedFileError(
        f"{printable(name)} is a damaged archive",
        {label: printable(str(fact)[:300])},
        "copy the file again, or save it again with torch",
    )


def _without(file: BinaryIO, info: zipfile.ZipInfo) -> io.RawIOBase:
    """Return an archive in which one entry is empty.

    The sample inputs are a pickle in an archive of its own, and nothing here needs them.
    """
    with zipfile.ZipFile(file) as archive:
        place = archive.start_dir
    name = info.orig_filename.encode()
    while True:
        file.seek(place)
        header = _CENTRAL.unpack(file.read(_CENTRAL.size))
        length, *rest = header[4:7]
        if file.read(length) == name:
            empty = bytes(12)  # checksum and both sizes
            file.seek(0)  # torch takes the archive to begin where the file stands
            return _Patched(file, {place + 16: empty, info.header_offset + 14: empty})
        place += _CENTRAL.size + length + sum(rest)


_CENTRAL = struct.Struct("<16s3I3H8sI")


class _Patched(io.RawIOBase):
    """A file with some of its bytes replaced, for readers; the file stays as it is."""

    def __init__(self, file: BinaryIO, patches: Mapping[int, bytes]) -> None:
        self._file, self._patches = file, patches

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        start = self._file.tell()
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
        for place, data in self._patches.items():
            first, last = max(place, start), min(place + len(data), start + count)
            if first < last:
                view[first - start : last - start] = data[first - place : last - place]
        return count
