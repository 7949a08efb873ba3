"""Room on a disk: told before a file is written that cannot fit, not when the disk is full."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

from tieops.errors import ExportError
from tieops.exporters.files import MAKE_ROOM
from tieops.ir.brief import brief_bytes, printable

__all__ = ["check_room"]

_MOUNTS = Path("/proc/self/mountinfo")
_PLAIN = ("ext2", "ext3", "ext4", "tmpfs", "xfs")
"""File systems that never compress; of these XFS may share blocks."""
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
    """Tell whether a file system is known to neither share blocks of a copy nor compress.

    An empty file is asked to share the blocks of itself: that tells, and writes nothing.
    """
    import fcntl  # not at the top: reading works where there is none

    if _kind(os.fstat(descriptor).st_dev) not in _PLAIN:
        return False
    try:
        fcntl.ioctl(descriptor, getattr(fcntl, "FICLONE", _FICLONE), descriptor)
    except OSError as error:
        return error.errno == errno.EOPNOTSUPP
    return False


def _kind(device: int) -> str:
    """Return the type of the file system on a device, or nothing where the system does not tell."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for line in _MOUNTS.read_text("utf-8", "surrogateescape").splitlines():
            # ID, parent, device, root, mount point, options; after a dash the type.
            mount, _, about = line.partition(" - ")
            if mount.split(" ")[2:3] == [number]:
                return about.partition(" ")[0]
    return ""
