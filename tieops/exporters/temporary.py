"""Temporary files that are locked while their writer lives, and removed if it was killed.

A killed writer leaves its files behind. Its locks go with the process, so a temporary file without
a lock belongs to nobody; neither its age nor a process id, which may be reused, says so reliably.

The lock is on an empty file beside the temporary one. On Windows a lock also prevents reading, and
an open file cannot be renamed; so a temporary file is closed once it is written, and its lock is
held until it has its final name.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tieops.errors import ExportError
from tieops.ir.storage.data_files import TEMPORARY, is_temporary
from tieops.system.folders import close_file, lock_folder, remove
from tieops.system.locks import is_free, try_lock, unlock
from tieops.system.opening import create_new, is_ours, open_regular, open_to_rewrite
from tieops.system.positions import write_at

__all__ = [
    "Temporary",
    "folder_lock",
    "free_name",
    "is_abandoned",
    "left_over",
    "remove_left_over",
    "temporary",
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
