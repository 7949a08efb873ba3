"""Files that appear whole or not at all: names that are free, data that nothing reads any more."""

from __future__ import annotations

import mmap
import os
import re
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from tieops.errors import ExportError
from tieops.importers.onnx import MAX_PROTO_BYTES

__all__ = [
    "DATA",
    "as_export_error",
    "free_data_path",
    "fresh",
    "mentions",
    "old_data",
    "place",
    "replace_all",
    "sync_folder",
    "without_values",
]

DATA = "tieops.data"
"""On a model: the data file that it shares with others, which is named after one of them."""


@contextmanager
def as_export_error(path: Path) -> Generator[None]:
    """Turn what stops the writing of a file, the system or torch, into an ExportError."""
    try:
        yield
    except OSError as error:
        facts: dict[str, object] = {"the system says": error.strerror or error}
        if error.filename is not None and not str(error.filename).endswith(".tmp"):
            facts["about"] = error.filename  # not what is written, but what is read for it
        raise ExportError(
            f"cannot write {path}",
            facts,
            "make room or choose another folder; what was there is unchanged",
        ) from error
    except NotImplementedError as error:  # torch's, for a tensor on the meta device
        raise without_values(path, str(error)) from error


def without_values(path: Path, reason: str) -> ExportError:
    """Return the error that says that a tensor cannot be stored."""
    return ExportError(
        f"cannot write {path}: a tensor has no values that can be stored",
        {"reading it says": reason},
        "materialise the model's parameters first (no meta tensors)",
    )


def fresh(path: Path) -> Path:
    """Create a file that was not there, and no link to one that was.

    Raises:
        ExportError: If there is no free name.
    """
    for attempt in range(1000):
        candidate = path.with_name(f"{path.name}{attempt or ''}")
        try:
            os.close(os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            continue
        return candidate
    raise ExportError(f"cannot find a free name beside {path}", None, "clean the folder up")


def free_data_path(path: Path) -> Path:
    """Return a name for the data of a model that no file has.

    Raises:
        ExportError: If there is none.
    """
    names = (f"{path.name}.data", *(f"{path.name}.{i}.data" for i in range(1, 1000)))
    for name in names:
        candidate = path.with_name(name)
        if not os.path.lexists(candidate):
            return candidate
    raise ExportError(f"cannot find a free data name beside {path}", None, "clean the folder up")


def place(temporary: Path, data_path: Path) -> None:
    """Give the data its name before any model refers to it, and none that was taken meanwhile."""
    try:
        os.link(temporary, data_path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        temporary.rename(data_path)
    else:
        # Readers refuse data with two hard links: one name must be left when the model appears.
        temporary.unlink()


def replace_all(staged: Sequence[tuple[Path, Path]]) -> None:
    """Rename each temporary file over its target; if one fails, put the ones before it back."""
    if len(staged) == 1:  # one rename needs no way back: it happens or it does not
        staged[0][0].replace(staged[0][1])
        return
    done: list[tuple[Path, Path | None]] = []
    try:
        for temporary, target in staged:
            done.append((target, _kept(target)))
            temporary.replace(target)
    except BaseException:
        for (target, kept), (temporary, _) in reversed(list(zip(done, staged, strict=False))):
            if temporary.exists():
                continue  # this one was not renamed
            if kept is None:
                target.unlink(missing_ok=True)
            else:
                kept.replace(target)
        raise
    finally:
        for _, kept in done:
            if kept is not None:
                kept.unlink(missing_ok=True)


def _kept(target: Path) -> Path | None:
    """Return a second name for what is about to be replaced, or None if nothing is."""
    if not os.path.lexists(target):
        return None
    kept = fresh(target.with_name(f".{target.name}.old.tmp"))
    kept.unlink()
    try:
        os.link(target, kept, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(target, kept, follow_symlinks=False)
    return kept


def old_data(paths: Sequence[Path]) -> list[Path]:
    """Return the data files of ours that only the models now at these paths refer to."""
    locations = {location for path in paths for location in _locations(path)}
    folder, names = paths[0].parent, {path.name for path in paths}
    others = [path for path in folder.glob("*.onnx") if path.name not in names]
    return [folder / each for each in sorted(locations) if not mentions(others, each)]


def _locations(path: Path) -> Iterable[str]:
    if not path.is_file() or path.stat().st_size > MAX_PROTO_BYTES:
        return ()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        return ()
    ours = re.compile(re.escape(path.name) + r"(\.\d+)?\.data")
    recorded = {
        entry.value
        for entry in proto.metadata_props
        if entry.key == DATA and re.fullmatch(r"[^/\\]+\.onnx(\.\d+)?\.data", entry.value)
    }
    return {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and (ours.fullmatch(entry.value) or entry.value in recorded)
    }


def mentions(models: Iterable[Path], location: str) -> bool:
    """Tell whether one of these models refers to a data file, as far as its bytes say."""
    for model in models:
        if not model.is_file():
            continue
        with model.open("rb") as file, suppress(ValueError, OSError):
            if mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(location.encode()) >= 0:
                return True
    return False


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
