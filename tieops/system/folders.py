"""Names in a folder: create, replace and remove them, with one writer at a time.

On Windows, a file that is open or mapped can be neither renamed, replaced nor removed by any
process. So files are closed before they are renamed, and files that cannot be removed yet are left
to the next writer.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tieops.system.locks import try_lock, unlock
from tieops.system.opening import create_new, open_regular

__all__ = [
    "FOLDER_LOCK",
    "close_file",
    "give_name",
    "ignores_case",
    "keep_name",
    "lock_folder",
    "remove",
    "replace",
    "sync_folder",
    "temporary_folder",
]

FOLDER_LOCK = ".tieops-folder.lock"
"""The file that is locked where a folder cannot be."""
RETRY_S = 1.0
"""How long a file that another program has open is waited for: virus scanners and indexers of
Windows open what is new for a moment."""


@contextmanager
def temporary_folder() -> Generator[Path]:
    """Yield a folder that goes, with all that is in it, as far as the system lets go of it."""
    with tempfile.TemporaryDirectory(prefix="tieops-", ignore_cleanup_errors=True) as name:
        yield Path(name)
        if os.name == "nt":
            gc.collect()  # models that were read from it have cycles, and may have it mapped


def close_file(descriptor: int) -> None:
    """Close a file; fsync has already reported what can go wrong with its bytes."""
    with suppress(OSError):
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, where a folder can be opened; Windows does it by itself.

    Raises:
        OSError: If the disk is broken.
    """
    descriptor = _open_folder(folder)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_name(temporary: Path, path: Path) -> None:
    """Rename a file to a name that is free.

    Raises:
        FileExistsError: If the name is taken.
        OSError: If it cannot be renamed.
    """
    try:
        _link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.rename(path)
    else:
        # Readers refuse data with two hard links: one name must be left when the model appears.
        temporary.unlink()


def keep_name(path: Path, kept: Path, *, copy: bool) -> bool:
    """Give a file a second name, or where the file system has no hard links, a copy.

    Args:
        path: The file; a link is kept as a link.
        kept: The second name.
        copy: Whether it is worth a copy.

    Returns:
        Whether it has it.
    """
    try:
        if path.is_symlink():  # to follow one, or not to, is not on every system a choice
            kept.symlink_to(path.readlink())
        else:
            _link(path, kept)
    except OSError:
        if not copy or path.is_dir():
            return False
        shutil.copy2(path, kept, follow_symlinks=False)
    return True


def _link(path: Path, second: Path) -> None:
    if not hasattr(os, "link"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path))
    os.link(path, second)


def replace(temporary: Path, target: Path) -> None:
    """Rename a file over another one, in one step.

    Raises:
        PermissionError: If it may not be; on Windows also if somebody has the other file open or
            mapped, after it was waited for.
        OSError: If it cannot be.
    """
    until = time.monotonic() + RETRY_S
    while True:
        try:
            temporary.replace(target)
        except PermissionError:
            if os.name != "nt" or time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def remove(path: Path) -> bool:
    """Remove a file, and return whether it is gone; one that stays does no harm."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        return True
    return False


def ignores_case(path: Path) -> bool:
    """Return whether a file is also found under its name in the other case, as on macOS."""
    other = path.with_name(path.name.swapcase())
    if other.name == path.name:
        return False
    with suppress(OSError):
        return os.path.samestat(path.lstat(), other.lstat())
    return False


@contextmanager
def lock_folder(folder: Path, wait_s: float) -> Generator[None]:
    """Let one process at a time into a block; where the file system knows no locks, all of them.

    A folder is locked itself where it can be opened. Elsewhere (Windows) a file in it is, which
    goes with the last one that holds it.

    Args:
        folder: The folder.
        wait_s: How long to wait for others.

    Raises:
        TimeoutError: If another one does not come to an end.
        OSError: If the folder is not there, or cannot be written.
    """
    until = time.monotonic() + wait_s
    itself = _open_folder(folder)
    path = folder / FOLDER_LOCK
    descriptor = _open_lock(path, until) if itself is None else itself
    while True:
        while (locked := try_lock(descriptor)) is False:
            if time.monotonic() > until:
                close_file(descriptor)
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(folder))
            time.sleep(0.005)
        # Who held it before may have removed the file that we have opened: another one may have
        # made a new one by now, and would not see our lock.
        if locked is None or itself is not None or _is_at(path, descriptor):
            break
        close_file(descriptor)
        descriptor = _open_lock(path, until)
    try:
        yield
    finally:
        gone = itself is not None or remove(path)  # while it is locked, where that can be
        unlock(descriptor)
        close_file(descriptor)
        if not gone:
            remove(path)  # it stays where somebody else has it open, who removes it then


def _open_folder(folder: Path) -> int | None:
    if not hasattr(os, "O_DIRECTORY"):
        return None
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _open_lock(path: Path, until: float) -> int:
    while True:
        try:
            return create_new(path)
        except FileExistsError:
            with suppress(FileNotFoundError):
                return open_regular(path)
        except PermissionError:  # on Windows: somebody is about to remove it
            if time.monotonic() > until or os.name != "nt":
                raise
            time.sleep(0.005)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False
