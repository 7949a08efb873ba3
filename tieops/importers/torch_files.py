"""PyTorch files, told apart and opened without ever running a pickle."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from tieops.errors import UntrustedFileError

__all__ = ["read_torch_file"]


_LOAD_ERRORS = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError,
                AssertionError, pickle.UnpicklingError, zipfile.BadZipFile)  # fmt: skip
"""What torch.export.load raises on archives that it did not write."""


def read_torch_file(
    path: str | os.PathLike[str],
) -> torch.export.ExportedProgram | torch.jit.ScriptModule:
    """Open a ``.pt2`` (torch.export) or a TorchScript archive, whatever its suffix says.

    Raises:
        UntrustedFileError: If the file needs a pickle to be executed (a whole pickled module, a
            checkpoint), or is no PyTorch archive at all; the text says what to do instead.
    """
    path = Path(path)
    names = _members(path)
    tails = {name.partition("/")[2] for name in names}
    if {"serialized_exported_program.json", "archive_format"} & ({*names} | tails) or any(
        tail.startswith("models/") and tail.endswith(".json") for tail in tails
    ):
        return _read_exported_program(path, names)
    if any(tail.startswith("code/") for tail in tails) and "constants.pkl" in tails:
        with warnings.catch_warnings():
            # torch marks TorchScript as deprecated; whoever has such a file knows.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu")
    if "data.pkl" in tails:
        raise UntrustedFileError(
            f"{path.name} is a pickle: tieops does not execute it",
            {"holds": "a checkpoint or a pickled module, not a program"},
            "build the module, load_state_dict(torch.load(path, weights_only=True)) and pass the "
            "module to from_torch, or save the program with torch.export.save",
        )
    raise UntrustedFileError(
        f"{path.name} is a zip archive, but none that PyTorch wrote",
        {"members": ", ".join(names[:4]) or "none"},
        "pass a .pt2 of torch.export.save or a TorchScript archive of torch.jit.save",
    )


def _members(path: Path) -> list[str]:
    if not path.exists():
        raise UntrustedFileError(
            f"{path} does not exist", {"folder": path.parent.resolve()}, "check the path"
        )
    if not path.is_file():
        raise UntrustedFileError(f"{path} is not a regular file", None, "pass a file")
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(b"PK"):
        what = "a pickle from before PyTorch 1.6" if head[:1] == b"\x80" else "no zip archive"
        raise UntrustedFileError(
            f"{path.name} is {what}: tieops does not execute it",
            {"first bytes": head[:8].hex(" ") or "none"},
            "use from_onnx for ONNX"
            if path.suffix.lower() == ".onnx"
            else "pass a .pt2 of torch.export.save or a TorchScript archive of torch.jit.save",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UntrustedFileError(
            f"{path.name} is a damaged archive", {"zipfile says": error}, "copy the file again"
        ) from error
    if members and members[0].header_offset:
        raise UntrustedFileError(
            f"{path.name} is a damaged archive",
            {"why": "what ends the file is the end of an archive within this one"},
            "copy the file again",
        )
    return [member.filename for member in members]


def _read_exported_program(path: Path, names: list[str]) -> torch.export.ExportedProgram:
    with zipfile.ZipFile(path) as archive:
        for name in names:
            if not name.endswith("_config.json"):
                continue
            try:
                config = json.loads(archive.read(name)).get("config", {})
                pickled = [fqn for fqn, entry in config.items() if entry.get("use_pickle")]
            except (ValueError, AttributeError, RecursionError) as error:
                raise UntrustedFileError(
                    f"{path.name} has no readable {name}", {"json says": error}, "save it again"
                ) from error
            if pickled:
                raise UntrustedFileError(
                    f"{path.name} holds pickled objects: tieops does not execute them",
                    {"pickled": ", ".join(pickled[:4])},
                    "load it yourself with torch.export.load and pass the ExportedProgram",
                )
    try:
        with _weights_only():
            return torch.export.load(path)
    except _LOAD_ERRORS as error:
        raise UntrustedFileError(
            f"{path.name} is no program that torch can load without unpickling",
            {"torch says": (str(error).strip().splitlines() or [type(error).__name__])[0]},
            "load it yourself with torch.export.load and pass the ExportedProgram",
        ) from error


@contextmanager
def _weights_only() -> Generator[None]:
    """Keep torch.export.load from falling back to an unrestricted unpickler for sample inputs."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before
