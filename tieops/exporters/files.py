"""Files that appear whole or not at all: placed under a free name, or renamed over old ones."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tieops.errors import ExportError
from tieops.exporters.temporary import free_name, is_temporary, temporary
from tieops.ir.targets import check_target

__all__ = [
    "MAKE_ROOM",
    "as_export_error",
    "mode_of",
    "new_file",
    "place",
    "remove",
    "replace_all",
    "sync_folder",
    "without_values",
]

MAKE_ROOM = "make room or choose another folder; what was there is unchanged"


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
        check_target(path)
        made.path.replace(path)


def place(made: Path, path: Path) -> None:
    """Give a file its name before any model refers to it, and none that was taken meanwhile.

    Raises:
        FileExistsError: If the name is taken.
    """
    try:
        os.link(made, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        made.rename(path)
    else:
        # Readers refuse data with two hard links: one name must be left when the model appears.
        made.unlink()


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
            new.replace(target)
    except BaseException:
        for (new, target), old in zip(staged, kept, strict=False):
            if new.exists():  # this one was not renamed
                if old is not None:
                    remove(old)
            elif old is not None:
                old.replace(target)
            elif len(staged) > 1:  # one alone is renamed last, and has no way back to go
                target.unlink(missing_ok=True)
        raise
    return [old for old in kept if old is not None]


def remove(path: Path) -> bool:
    """Remove a file, and tell whether it is gone; one that stays does no harm."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        return True
    return False


def _kept(target: Path, *, copy: bool) -> Path | None:
    """Return a second name for what is about to be replaced, or None if nothing is."""
    if not os.path.lexists(target):
        return None
    kept = free_name(target.parent, "model")
    try:
        os.link(target, kept, follow_symlinks=False)
    except OSError:  # a file system without hard links
        if not copy or target.is_dir():
            return None
        shutil.copy2(target, kept, follow_symlinks=False)
    return kept


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
