"""Replace files in one step: a file appears whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tieops.errors import ExportError
from tieops.exporters.temporary import free_name, temporary
from tieops.ir.storage.data_files import is_temporary
from tieops.system.folders import keep_name, remove, replace
from tieops.system.write_targets import check_target

__all__ = [
    "MAKE_ROOM",
    "as_export_error",
    "mode_of",
    "new_file",
    "replace_all",
    "without_values",
]

MAKE_ROOM = "make room or choose another folder; existing files are unchanged"


@contextmanager
def as_export_error(path: Path) -> Generator[None]:
    """Turn what stops the writing of a file, the system or torch, into an ExportError."""
    try:
        yield
    except OSError as error:
        facts: dict[str, object] = {"the system says": error.strerror or error}
        about = None if error.filename is None else Path(os.fsdecode(error.filename))
        if about not in (None, path, path.parent) and not is_temporary(about.name):
            facts["about"] = about  # not what is written, but what is read for it
        raise ExportError(
            f"cannot write {path}",
            facts,
            MAKE_ROOM,
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


def mode_of(path: Path) -> int | None:
    """Return the permissions of a file that is about to be replaced; None if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else None


@contextmanager
def new_file(path: Path) -> Generator[BinaryIO]:
    """Write a file that takes the place of what is at a path when the block ends without an error.

    Args:
        path: The target; a link is replaced.

    Raises:
        ExportError: If the target may not be written to, or the system says no; what was there is
            unchanged.
    """
    check_target(path)
    with as_export_error(path), temporary(path.parent, "file", mode_of(path)) as made:
        with open(made.descriptor, "wb", closefd=False) as file:
            yield file
        os.fsync(made.descriptor)
        made.close()
        check_target(path)
        _put(made.path, path)


def replace_all(staged: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Rename each temporary file over its target; if one fails, put the ones before it back.

    Returns:
        Second, temporary names of what was replaced. Whoever removes the data of these models
        removes them afterwards: if it is killed before, they tell the next writer which data is of
        no use any more.
    """
    kept: list[Path | None] = []
    try:
        for _, target in staged:
            kept.append(_kept(target, copy=len(staged) > 1))
        for new, target in staged:
            _put(new, target)
    except BaseException:
        for (new, target), old in zip(staged, kept, strict=False):
            if new.exists():  # this one was not renamed
                if old is not None:
                    remove(old)
            elif old is not None:
                replace(old, target)
            elif len(staged) > 1:  # one alone is renamed last, and has no way back to go
                target.unlink(missing_ok=True)
        raise
    return [old for old in kept if old is not None]


def _put(new: Path, target: Path) -> None:
    try:
        replace(new, target)
    except PermissionError as error:
        raise ExportError(
            f"cannot write {target}: it cannot be replaced",
            {"the system says": error.strerror or error, "held by": _HOLDER},
            "close what has it open, or choose another name; existing files are unchanged",
        ) from error


_HOLDER = "a program or session that has it open, if it is not read-only"


def _kept(target: Path, *, copy: bool) -> Path | None:
    """Return a second name for what is about to be replaced, or None if nothing is."""
    if not os.path.lexists(target):
        return None
    kept = free_name(target.parent, "model")
    return kept if keep_name(target, kept, copy=copy) else None
