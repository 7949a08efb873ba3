"""Check free disk space before writing."""

from __future__ import annotations

import errno
import os

from tieops.errors import ExportError
from tieops.exporters.files import MAKE_ROOM
from tieops.ir.notation import brief_bytes, printable
from tieops.system.disk import too_few_free

__all__ = ["check_room"]


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
    free = too_few_free(descriptor, nbytes)
    if free is not None:
        raise ExportError(
            f"cannot write {printable(name)}: {os.strerror(errno.ENOSPC)}",
            {"bytes wanted": brief_bytes(nbytes), "bytes free": brief_bytes(free)},
            MAKE_ROOM,
        )
