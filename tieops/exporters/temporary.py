"""Temporary files: new, locked for as long as their writer lives, and swept when it was killed.

A killed writer leaves its files behind. The lock goes with the process, so a file of ours that is
not locked belongs to nobody: there is no age to guess and no process id that another may have.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tieops.errors import ExportError

__all__ = [
    "Temporary",
    "folder_lock",
    "free_name",
    "is_abandoned",
    "left_over",
    "temporary",
    "try_lock",
]

LOCK_WAIT_S = 60.0
"""Another writer holds a folder for as long as a rename takes."""
_NAME = re.compile(r"\.tieops-[0-9a-f]{16}\.(?:data|model|file)\.tmp")


@dataclass(frozen=True, eq=False)
class Temporary:
    """A new file that nobody else has, open and locked.

    Args:
        path: Its name in the folder of what it will be.
        descriptor: The open file.
    """

    path: Path
    descriptor: int


def is_temporary(name: str) -> bool:
    """Tell whether a file has the name of a temporary one of ours."""
    return _NAME.fullmatch(name) is not None


def free_name(folder: Path, kind: str) -> Path:
    """Return a temporary name that nobody has; the kind is ``data``, ``model`` or ``file``."""
    return folder / f".tieops-{secrets.token_hex(8)}.{kind}.tmp"


@contextmanager
def temporary(folder: Path, kind: str, mode: int | None = None) -> Generator[Temporary]:
    """Create a file that was not there and lock it; what still has its name afterwards goes.

    Args:
        folder: Where.
        kind: ``data``, ``model``, or ``file`` for anything else.
        mode: Permissions, of the file that it will replace; by default those of a new file.
    """
    path, descriptor = _create(folder, kind)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        yield Temporary(path, descriptor)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        _close(descriptor)


def _create(folder: Path, kind: str) -> tuple[Path, int]:
    while True:
        path = free_name(folder, kind)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Another writer may have swept it away before it was locked.
        if try_lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def left_over(folder: Path) -> list[Path]:
    """Return the temporary files in a folder whose writer is gone."""
    with os.scandir(folder) as entries:
        ours = [folder / entry.name for entry in entries if is_temporary(entry.name)]
    return [path for path in sorted(ours) if is_abandoned(path)]


def is_abandoned(path: Path) -> bool:
    """Tell whether a file is a regular one of this user that no living writer has locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        return ours and try_lock(descriptor) is True
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path) -> Generator[None]:
    """Let one writer at a time rename and remove files in a folder.

    Where the file system knows no locks, nobody waits.

    Raises:
        ExportError: If another writer does not come to an end.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + LOCK_WAIT_S
    try:
        while try_lock(descriptor) is False:
            if time.monotonic() > until:
                raise ExportError(
                    f"another writer holds the folder {folder}",
                    {"waited": f"{LOCK_WAIT_S:.0f} s"},
                    "end it, or write into another folder; what was there is unchanged",
                )
            time.sleep(0.005)
        yield
    finally:
        _unlock(descriptor)
        _close(descriptor)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file; False if somebody else has locked it, None where there are no locks."""
    import fcntl  # not at the top: reading works where there is none

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _close(descriptor: int) -> None:
    """Close a file; what can go wrong with its bytes has been told by fsync."""
    with suppress(OSError):
        os.close(descriptor)


def _unlock(descriptor: int) -> None:
    """Unlock by name: a process that was forked meanwhile has the descriptor too."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
