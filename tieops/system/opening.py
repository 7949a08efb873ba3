"""Open files without waiting, without following links where they are not allowed, never as text."""

from __future__ import annotations

import errno
import os
import stat

from tieops.system.file_names import is_inside

__all__ = [
    "create_new",
    "is_ours",
    "is_too_many",
    "most_held_open",
    "open_below",
    "open_regular",
    "open_to_read",
    "open_to_rewrite",
]

# A FIFO would wait for a writer, a terminal could become ours, a child would inherit the file, and
# Windows would translate line ends and stop at the first Ctrl-Z.
_ALWAYS = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_NOINHERIT", "O_BINARY")
_NO_LINK = "O_NOFOLLOW"


def _flags(*names: str) -> int:
    """Return these flags of ``os.open`` together; those that the system does not know are none."""
    found = 0
    for name in names:
        found |= getattr(os, name, 0)
    return found


def open_to_read(path: str | os.PathLike[str]) -> int:
    """Open whatever lies at a path to read, without waiting for it; links are followed.

    Returns:
        A descriptor. The caller looks at what it is (``os.fstat``) and closes it.

    Raises:
        OSError: If it cannot be opened.
    """
    return os.open(path, os.O_RDONLY | _flags(*_ALWAYS))


def open_regular(path: str | os.PathLike[str], directory: int | None = None) -> int:
    """Open a file to read without waiting for it, and without following a link in its name.

    Args:
        path: The file.
        directory: A descriptor of the folder that a relative path starts at, where the system has
            such descriptors.

    Returns:
        A descriptor. The caller looks at what it is (``os.fstat``) and closes it.

    Raises:
        OSError: If it cannot be opened, or its last part is a symbolic link.
    """
    if directory is not None:
        flags = _flags(*_ALWAYS, _NO_LINK)
        return os.open(path, os.O_RDONLY | flags, dir_fd=directory)
    if hasattr(os, _NO_LINK):
        return os.open(path, os.O_RDONLY | _flags(*_ALWAYS, _NO_LINK))
    # Without that flag (Windows), what was opened has to be what the name itself stands for.
    named = os.lstat(path)
    if stat.S_ISLNK(named.st_mode):
        raise _is_link(path)
    descriptor = open_to_read(path)
    try:
        _check_same(descriptor, named, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_below(root: str, real: str) -> int:
    """Open a real path part by part, so that no folder in it can become a link meanwhile.

    Args:
        root: The real path of the folder that the file is inside of.
        real: The real path of the file.

    Raises:
        OSError: If it cannot be opened, or a part of it is a link by now.
    """
    if os.open not in os.supports_dir_fd or not hasattr(os, "O_DIRECTORY"):
        descriptor = open_regular(real)
        # Too late to prevent it, early enough to notice: nothing was read yet.
        if not is_inside(os.path.realpath(real), root):
            os.close(descriptor)
            raise _is_link(real)
        return descriptor
    *folders, last = os.path.relpath(real, root).split(os.sep)
    flags = getattr(os, "O_PATH", os.O_RDONLY) | _flags("O_DIRECTORY", "O_CLOEXEC")
    at = os.open(root, flags)
    try:
        for folder in folders:
            inner = os.open(folder, flags | _flags(_NO_LINK), dir_fd=at)
            os.close(at)
            at = inner
        return open_regular(last, at)
    finally:
        os.close(at)


def create_new(path: str | os.PathLike[str], mode: int | None = None) -> int:
    """Create a file that was not there, to write; nobody else can have it open.

    Args:
        path: Its name.
        mode: Permissions, on systems that have them in numbers; by default those of a new file.

    Raises:
        FileExistsError: If the name is taken, be it by a link that leads nowhere.
        OSError: If it cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags(*_ALWAYS, _NO_LINK)
    descriptor = os.open(path, flags, 0o666)
    # On Windows the mode is one bit, read-only, and a file with it cannot be renamed or removed.
    if mode is not None and os.name == "posix" and hasattr(os, "fchmod"):
        try:
            os.fchmod(descriptor, mode)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def open_to_rewrite(path: str | os.PathLike[str], status: os.stat_result) -> int:
    """Open a file of ours to write it anew, and empty it.

    Args:
        path: Its name.
        status: Its status when it was made, which says whether it still is the one.

    Raises:
        OSError: If it cannot be opened, or another file has the name by now.
    """
    descriptor = os.open(path, os.O_WRONLY | _flags(*_ALWAYS, _NO_LINK))
    try:
        _check_same(descriptor, status, path)
        os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def most_held_open() -> int:
    """Return how many files may be held open so that they stay readable without their name.

    A quarter of what the process may open, so that the rest of it never runs out. None on Windows,
    where a file that is open can be neither removed nor replaced: holding it would be in the way
    of whoever wants to, and its name cannot get lost while it is read.
    """
    try:
        import resource
    except ImportError:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft // 4


def is_too_many(error: Exception) -> bool:
    """Return whether a call failed because the process, or the system, has too many files open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def is_ours(status: os.stat_result) -> bool:
    """Return whether a file is a regular one, and this user's where files have numbered owners."""
    ours = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return ours and stat.S_ISREG(status.st_mode)


def _check_same(descriptor: int, status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not os.path.samestat(os.fstat(descriptor), status):
        raise _is_link(path)


def _is_link(path: str | os.PathLike[str]) -> OSError:
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
