"""Replace files in one step: a file appears whole or not at all.

It is written under a temporary name first. A killed writer leaves its files behind. Its locks go
with the process, so a temporary file without a lock belongs to nobody; neither its age nor a
process id, which may be reused, says so reliably.

The lock is on an empty file beside the temporary one. On Windows a lock also prevents reading, and
an open file cannot be renamed; so a temporary file is closed once it is written, and its lock is
held until it has its final name.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tieops.errors import ExportError
from tieops.ir.storage.data_files import TEMPORARY, is_temporary
from tieops.system.file_bytes import write_at
from tieops.system.folders import close_file, keep_name, lock_folder, remove, replace
from tieops.system.locks import is_free, try_lock, unlock
from tieops.system.opening import create_new, is_ours, open_regular, open_to_rewrite
from tieops.system.write_targets import check_target

__all__ = [
    "FREE_SPACE",
    "Temporary",
    "as_export_error",
    "folder_lock",
    "free_name",
    "left_over",
    "mode_of",
    "new_file",
    "remove_left_over",
    "replace_all",
    "temporary",
    "without_values",
]

LOCK_WAIT_S = 60.0
"""Another writer holds a folder for as long as a rename takes."""


@dataclass(eq=False)
class Temporary:
    """A new file that nobody else has, open to be written, and locked.

    Args:
        path: Its name in the folder of what it will be.
        descriptor: The open file; -1 once it is closed.
        status: What tells it from others, also under another name.
    """

    path: Path
    descriptor: int
    status: os.stat_result

    def rewrite(self, data: bytes) -> None:
        """Write all that the file holds, flush it to the disk, and close it.

        Raises:
            OSError: If the disk is full or broken.
        """
        if self.descriptor < 0:
            self.descriptor = open_to_rewrite(self.path, self.status)
        write_at(self.descriptor, data, 0)
        os.fsync(self.descriptor)
        self.close()

    def close(self) -> None:
        """Close the file, so that it can be given its name; it stays locked."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            close_file(descriptor)


def free_name(folder: Path, kind: str) -> Path:
    """Return a temporary name that nobody has; the kind is ``data``, ``model`` or ``file``."""
    return folder / f".tieops-{secrets.token_hex(8)}.{kind}.tmp"


def _lock_of(path: Path) -> Path | None:
    match = TEMPORARY.fullmatch(path.name)
    return path.with_name(f"{match[1]}.lock") if match else None


@contextmanager
def temporary(folder: Path, kind: str, mode: int | None = None) -> Generator[Temporary]:
    """Create a file that was not there and lock it; what still has its name afterwards goes.

    Args:
        folder: Where.
        kind: ``data``, ``model``, or ``file`` for anything else.
        mode: Permissions, of the file that it will replace; by default those of a new file.
    """
    path, lock = _locked(folder, kind)
    try:
        descriptor = create_new(path, mode)
        made = Temporary(path, descriptor, os.fstat(descriptor))
        try:
            yield made
        finally:
            made.close()
            remove(path)
    finally:
        _release(path, lock)


def _locked(folder: Path, kind: str) -> tuple[Path, int]:
    """Return a free name whose lock is ours, and the open lock."""
    while True:
        path = free_name(folder, kind)
        lock = _lock_of(path)
        assert lock is not None
        descriptor = create_new(lock)
        # Another writer may have swept it away before it was locked.
        if try_lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return path, descriptor
        close_file(descriptor)


def _release(path: Path, descriptor: int) -> None:
    """Remove a lock while it is held, or where nothing that is open can be removed, after that."""
    lock = _lock_of(path)
    assert lock is not None
    gone = remove(lock)
    unlock(descriptor)
    close_file(descriptor)
    if not gone:
        remove(lock)


def left_over(folder: Path) -> list[Path]:
    """Return the temporary files in a folder whose writer is gone, and their locks."""
    with os.scandir(folder) as entries:
        ours = [folder / entry.name for entry in entries if is_temporary(entry.name)]
    return [path for path in sorted(ours) if is_abandoned(path)]


def is_abandoned(path: Path) -> bool:
    """Return whether a file is a regular one of this user that no living writer has locked."""
    lock = _lock_of(path)
    if lock not in (None, path) and os.path.lexists(lock) and not _is(lock, _is_locked_by_nobody):
        return False
    return _is(path, _is_locked_by_nobody if lock == path else is_free)


def _is(path: Path, free: Callable[[int], bool]) -> bool:
    try:
        descriptor = open_regular(path)
    except OSError:
        return False
    try:
        return is_ours(os.fstat(descriptor)) and free(descriptor)
    finally:
        close_file(descriptor)


def _is_locked_by_nobody(descriptor: int) -> bool:
    return try_lock(descriptor) is True


def remove_left_over(path: Path) -> bool:
    """Remove a file whose writer is gone, and return whether it is gone.

    A lock is removed while it is ours: a writer that has made it, and not locked it yet, notices.
    """
    if _lock_of(path) != path:
        return remove(path)
    try:
        descriptor = open_regular(path)
    except OSError:
        return False
    try:
        free = try_lock(descriptor) is True
        gone = free and remove(path)
    finally:
        close_file(descriptor)
    return gone or (free and remove(path))  # Windows removes nothing that is open


@contextmanager
def folder_lock(folder: Path) -> Generator[None]:
    """Let one writer at a time rename and remove files in a folder.

    Where the file system knows no locks, nobody waits.

    Raises:
        ExportError: If another writer does not come to an end.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder, LOCK_WAIT_S))
        except TimeoutError as error:
            raise ExportError(
                f"another process is writing to the folder {folder}",
                {"waited": f"{LOCK_WAIT_S:.0f} s"},
                "stop it, or write to another folder; existing files are unchanged",
            ) from error
        yield


FREE_SPACE = "free disk space or choose another folder; existing files are unchanged"


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
            FREE_SPACE,
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
