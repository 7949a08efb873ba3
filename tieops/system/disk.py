"""Check whether bytes fit on a disk, where the file system stores every byte."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["too_few_free"]

_MOUNTS = Path("/proc/self/mountinfo")
_PLAIN = ("ext2", "ext3", "ext4", "tmpfs", "xfs")
"""File systems that never compress; of these XFS may share blocks."""
_FICLONE = 0x40049409
"""Of Linux on x86 and Arm; Python names it from 3.12 on."""


def too_few_free(descriptor: int, nbytes: int) -> int | None:
    """Return the bytes that are free beside an open file, which is empty, if they are too few.

    None where they are enough, and where that is not known: the file system may compress or share
    blocks, it does not tell its size, or the system makes room when it has to, as macOS does.

    Args:
        descriptor: The open file.
        nbytes: How many bytes are to go to it.
    """
    if sys.platform != "linux" or not hasattr(os, "fstatvfs"):
        return None
    status = os.fstatvfs(descriptor)
    free = status.f_bfree * status.f_frsize
    if nbytes <= free or not status.f_blocks or not _writes_every_byte(descriptor):
        return None
    return free


def _writes_every_byte(descriptor: int) -> bool:
    """Return whether a file system is known to neither share blocks of a copy nor compress.

    An empty file is asked to share the blocks of itself: that tells, and writes nothing.
    """
    try:
        import fcntl
    except ImportError:
        return False
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
