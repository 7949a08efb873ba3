"""Check what a path may be written over: nothing, a regular file, or a link to one.

Writing replaces a file in one step. A device, a FIFO or a socket at the target would become a
regular file, and writing into a FIFO in place would wait for a reader. So every writer checks its
target here before it computes or writes anything.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from tieops.errors import ExportError, printable
from tieops.system.file_names import unfit_here

__all__ = ["check_target"]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_DESCRIPTORS = re.compile(r"/proc/[^/]+(?:/task/[^/]+)?/fd|/dev/fd")
"""Folders whose entries stand for the open files of a process."""
_STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr")


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a target that is neither absent, nor a regular file, nor a link to a regular file.

    Nothing is opened. A link is judged by what it leads to.

    Args:
        path: Where somebody is about to write.

    Raises:
        ExportError: For directories, devices, FIFOs and sockets; links to them or to nothing;
            names of open descriptors, or that Windows gives to devices; paths in what is not a
            folder, or that the system refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_target(os.path.join(folder, "m.onnx"))
        ...     check_target(folder)
        Traceback (most recent call last):
        ...
        tieops.errors.ExportError: cannot write ...got a directory
          the system says: Is a directory
          fix: name a file in it; nothing was written
    """
    text = os.fspath(path)
    if not Path(text).name:
        raise ExportError(
            f"expected the path of a file, got {text!r}", None, "give a path such as m.onnx"
        )
    unfit = unfit_here(Path(text).name)
    if unfit is not None:
        raise ExportError(
            f"cannot write {printable(text)}: the name is not a valid file name",
            {"why": unfit},
            "choose another name; nothing was written",
        )
    try:
        # Before its own status: through a redirection, such a name is a link to a regular file.
        folder = os.path.realpath(os.path.dirname(os.path.abspath(text)))
        if os.path.abspath(text) in _STREAMS or _DESCRIPTORS.fullmatch(folder):
            raise _refused(text, "the name of an open descriptor")
        found = os.lstat(text)
        if stat.S_ISLNK(found.st_mode):
            found = _behind(text)
    except FileNotFoundError:
        return  # whoever writes into its folder reports if that is missing
    except (OSError, ValueError) as error:
        says = error.strerror if isinstance(error, OSError) else str(error)
        raise ExportError(
            f"cannot write {printable(text)}",
            {"the system says": says},
            "choose another path; nothing was written",
        ) from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise _refused(text, kind)


def _behind(link: str) -> os.stat_result:
    try:
        return os.stat(link)
    except FileNotFoundError:
        raise _refused(link, "a link to nothing") from None


def _refused(path: str, kind: str) -> ExportError:
    what = f"cannot write {printable(path)}: expected a regular file or nothing there, got {kind}"
    if kind == "a directory":
        says = {"the system says": os.strerror(errno.EISDIR)}
        return ExportError(what, says, "name a file in it; nothing was written")
    return ExportError(what, None, "choose another path, or remove what is there; it is unchanged")
