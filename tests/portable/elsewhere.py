"""The main job as another system has it: tieops sees its names alone, and its rules for files.

    python -m tests.portable.elsewhere windows FOLDER files

What tieops imports is replaced: ``os``, ``mmap``, ``signal`` and ``ctypes`` have the names of that
system, ``sys.platform`` is its, and modules that it lacks cannot be imported. Libraries of others
see the system as it is: they have been ported by others. Of Windows' rules for files these hold:
what is open or mapped by anybody in this process is neither renamed, replaced nor removed; folders
cannot be opened; descriptors are of text unless they are said to be binary; nothing is locked that
somebody may want to read. Processes that tieops starts live on the same system.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import importlib.machinery
import io
import mmap
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.portable.names import MODULES, ONLY_LINUX, WINDOWS

SYSTEM, ROOM = "TIEOPS_TEST_SYSTEM", "TIEOPS_TEST_ROOM"
"""In the environment, for processes that are started: which system, and whose files obey rules."""
O_BINARY, O_NOINHERIT = 1 << 28, 1 << 29
ADVICE = {"MADV_NORMAL", "MADV_RANDOM", "MADV_SEQUENTIAL", "MADV_WILLNEED", "MADV_DONTNEED",
          "MADV_FREE"}  # fmt: skip
_STEPS = ("pathlib", "io", "os", "codecs", "importlib", "_frozen_importlib", "tempfile", "shutil")


class _Proxy(types.ModuleType):
    """A module with names taken away, and others in place of its own."""

    def __init__(self, real: types.ModuleType, has: Callable[[str], bool], **own: object) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(_real=real, _has=has, **own)

    def __getattr__(self, name: str) -> object:
        if not name.startswith("_") and not self._has(name):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} here")
        return getattr(self._real, name)


class WindowsMmap(mmap.mmap):
    """A mapping as Windows has it: other arguments, and no advice."""

    def __new__(
        cls, fileno: int, length: int, tagname: str | None = None, access: int = 0, offset: int = 0
    ) -> WindowsMmap:
        del tagname
        return super().__new__(cls, fileno, length, access=access, offset=offset)

    @property
    def madvise(self) -> object:
        raise AttributeError("madvise")


def _windows_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: None = None) -> int:
    if dir_fd is not None:
        raise NotImplementedError("dir_fd")
    assert flags & O_BINARY, f"{path} is opened as text"
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return os.open(path, (flags & ~(O_BINARY | O_NOINHERIT)) | os.O_NOCTTY | os.O_CLOEXEC, mode)


def _sendfile(*_: object) -> int:
    raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))


def _windows_library(name: str | None, *rest: Any, **options: Any) -> ctypes.CDLL:
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return ctypes.CDLL(name, *rest, **options)


def _proxies(system: str) -> dict[str, types.ModuleType]:
    if system == "windows":
        has = {name: lambda key, known=known: key in known for name, known in WINDOWS.items()}
        return {
            "os": _Proxy(
                os, has["os"], name="nt", open=_windows_open, O_BINARY=O_BINARY,
                O_NOINHERIT=O_NOINHERIT, supports_dir_fd=set(), supports_follow_symlinks={os.stat},
            ),
            "mmap": _Proxy(mmap, has["mmap"], mmap=WindowsMmap),
            "signal": _Proxy(signal, has["signal"]),
            "ctypes": _Proxy(ctypes, lambda key: True, CDLL=_windows_library),
            "sys": _Proxy(sys, lambda key: True, platform="win32"),
        }  # fmt: skip
    return {
        "os": _Proxy(os, lambda key: key not in ONLY_LINUX, sendfile=_sendfile),
        "mmap": _Proxy(mmap, lambda key: not key.startswith("MADV_") or key in ADVICE),
        "sys": _Proxy(sys, lambda key: True, platform="darwin"),
    }


def _holders(path: Any, directory: int | None) -> list[str]:
    """Return how this process holds a file, through Python or through any library."""
    at = os.fspath(path)
    at = os.fsdecode(at)
    if directory is not None:
        at = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), at)
    room = os.environ[ROOM]
    at = os.path.abspath(at)
    if not at.startswith(room + os.sep) or not os.path.isfile(at) or os.path.islink(at):
        return []
    status, found = os.stat(at), []
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(number)), status):
                found.append("open")
        except OSError:
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            words = line.split(maxsplit=5)
            if len(words) == 6 and int(words[4]) == status.st_ino and room in words[5]:
                found.append("mapped")
    return found


def _keep_what_is_held() -> None:
    """Let nothing that is open or mapped be renamed, replaced or removed."""

    def held(name: str, ends: Sequence[str]) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*paths: Any, **options: Any) -> Any:
            for path, key in zip(paths, ends, strict=False):
                how = _holders(path, options.get(key))
                if how:
                    raise PermissionError(errno.EACCES, f"Permission denied ({how[0]})", str(path))
            if name == "rename" and os.path.lexists(paths[1]):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(paths[1]))
            return real(*paths, **options)

        return call

    for name in ("rename", "replace"):
        setattr(os, name, held(name, ("src_dir_fd", "dst_dir_fd")))
    for name in ("remove", "unlink"):
        setattr(os, name, held(name, ("dir_fd",)))


def _lock_as_windows() -> None:
    """Locks keep everybody else from reading: so nothing is in what tieops locks."""
    import filelock

    real = filelock.lock_descriptor

    def lock(fd: int, *, blocking: bool = True, poll_interval: float = 0.05) -> bool:
        assert os.fstat(fd).st_size == 0, "a file with something in it is locked"
        return real(fd, blocking=blocking, poll_interval=poll_interval)

    filelock.lock_descriptor = lock


def _no_proc() -> None:
    """Let tieops find no ``/proc``; libraries of others, and this file, read it."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not str(arguments[0]).startswith("/proc"):
            return
        frame = sys._getframe(1)
        while frame is not None and str(frame.f_globals.get("__name__")).startswith(_STEPS):
            frame = frame.f_back
        if frame is not None and str(frame.f_globals.get("__name__")).startswith("tieops."):
            raise FileNotFoundError(errno.ENOENT, "there is no /proc here", arguments[0])

    sys.addaudithook(look)


class _Finder:
    """Gives every module of tieops an ``import`` of its own."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "tieops":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
            spec.loader.names = self._names
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    names: dict[str, Any]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__builtins__"] = self.names
        super().exec_module(module)


def install(system: str, room: Path) -> None:
    """Let this process, and those that it starts, be on another system.

    Args:
        system: ``windows`` or ``darwin``.
        room: The folder whose files obey the system's rules.
    """
    assert "tieops" not in sys.modules
    os.environ |= {SYSTEM: system, ROOM: str(room)}
    proxies = _proxies(system)
    lacks = MODULES if system == "windows" else frozenset[str]()

    def importing(
        name: str, names: Any = None, local: Any = None, wanted: Any = (), level: int = 0
    ) -> Any:
        if level == 0 and name in proxies:
            return proxies[name]
        if level == 0 and name in lacks:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return builtins.__import__(name, names, local, wanted, level)

    sys.meta_path.insert(0, _Finder({**vars(builtins), "__import__": importing}))
    _no_proc()
    if system == "windows":
        _keep_what_is_held()
        _lock_as_windows()


def install_from_environment() -> None:
    """Do so in a process that was started by one of another system."""
    if SYSTEM in os.environ and "tieops" not in sys.modules:
        install(os.environ[SYSTEM], Path(os.environ[ROOM]))


def main(system: str, folder: str, job: str) -> None:
    """Do a job in a folder on another system, and say so at the end."""
    room = Path(folder).resolve()
    start = room / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text(
        "from tests.portable.elsewhere import install_from_environment as i\ni()\n", "utf-8"
    )
    here = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join((str(start), here))
    sys.path[:0] = [str(start), here]
    temporary = room / "temporary"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    install(system, room)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    from tests.portable import jobs

    work = room / "work"
    work.mkdir()
    getattr(jobs, job)(work)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
