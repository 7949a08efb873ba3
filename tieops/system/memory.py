"""The memory that this process uses, from ``/proc`` on Linux."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path

from tieops.system.file_bytes import read_at
from tieops.system.opening import open_to_read

__all__ = ["address_space_bytes", "process_memory", "resident_file_bytes", "trim_heap"]


def process_memory() -> tuple[dict[str, int], str]:
    """Return the bytes that this process holds, and why some of them are not known.

    Returns:
        ``private_bytes`` (anonymous), ``file_bytes`` (of mapped files) and ``proportional_bytes``
        (both, what is shared divided by its users), those of them that the system tells.
    """
    if sys.platform != "linux":
        return {}, f"the process's memory: no /proc on {sys.platform}"
    try:
        status = _kilobytes("/proc/self/status")
        found = {"private_bytes": status["RssAnon"], "file_bytes": status["RssFile"]}
    except (OSError, KeyError) as error:
        return {}, f"the process's memory: /proc does not tell ({error})"
    try:
        found["proportional_bytes"] = _kilobytes("/proc/self/smaps_rollup")["Pss"]
    except OSError as error:
        return found, f"shared pages: {error.strerror}"
    return found, ""


def _kilobytes(path: str) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text("utf-8").splitlines())
    return {
        words[0].rstrip(":"): int(words[1]) * 1024
        for words in lines
        if len(words) == 3 and words[2] == "kB"
    }


def resident_file_bytes() -> int | None:
    """Return the file pages of this process that are in memory; None if unknown."""
    pages = _statm_pages()
    return None if pages is None else pages[2] * mmap.PAGESIZE


def address_space_bytes() -> int | None:
    """Return the address space of this process; None if unknown."""
    pages = _statm_pages()
    return None if pages is None else pages[0] * mmap.PAGESIZE


def _statm_pages() -> list[int] | None:
    if sys.platform != "linux":
        return None
    try:
        return [int(count) for count in read_at(_statm(), 256, 0).split()[:3]]
    except (OSError, ValueError):
        return None


@functools.cache
def _statm() -> int:
    """Return what tells of this process's memory, left open.

    After each run it is read, when all that Python needs to open a file has left the caches: that
    takes a tenth of a millisecond, reading what is open a fifth of it.
    """
    return open_to_read("/proc/self/statm")


def _close_statm() -> None:
    """Close it in a child that was forked: it tells of the parent."""
    if _statm.cache_info().currsize:
        os.close(_statm())
        _statm.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_statm)


def trim_heap() -> None:
    """Return freed memory to the system; glibc keeps it for later, other C libraries less of it."""
    # On Windows CDLL(None) is a TypeError.
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
