"""Room on a disk: told before a file is written that cannot fit, not when the disk is full."""

from __future__ import annotations

import errno
import os
import sys

from tieops.errors import ExportError
from tieops.exporters.files import MAKE_ROOM
from tieops.ir.brief import brief_bytes, printable

__all__ = ["check_room"]

_FICLONE = 0x40049409
"""Of Linux on x86 and Arm; Python names it from 3.12 on."""


def check_room(descriptor: int, nbytes: int, name: str) -> None:
    """Refuse to write more bytes than the file system has free, where it is sure that they count.

    A sparse file of terabytes takes no room where it lies, and fills the disk that it is copied to.

    Args:
        descriptor: An open file, which is empty and which the bytes are to go to.
        nbytes: How many.
        name: What to call the file.

    Raises:
        ExportError: With the bytes that are wanted and those that are free.
    """
    status = os.fstatvfs(descriptor)
    free = status.f_bfree * status.f_frsize
    # Some file systems do not tell their size. On macOS the system makes room when it has to.
    if nbytes <= free or not status.f_blocks or sys.platform != "linux":
        return
    if _writes_every_byte(descriptor):
        raise ExportError(
            f"cannot write {printable(name)}: {os.strerror(errno.ENOSPC)}",
            {"bytes wanted": brief_bytes(nbytes), "bytes free": brief_bytes(free)},
            MAKE_ROOM,
        )


def _writes_every_byte(descriptor: int) -> bool:
    """Tell whether a file system neither shares blocks of a copy nor compresses.

    Those that compress (Btrfs, newer ZFS) share blocks too. An empty file is asked to share the
    blocks of itself: that tells, and writes nothing.
    """
    import fcntl  # not at the top: reading works where there is none

    try:
        fcntl.ioctl(descriptor, getattr(fcntl, "FICLONE", _FICLONE), descriptor)
    except OSError as error:
        return error.errno == errno.EOPNOTSUPP
    return False
