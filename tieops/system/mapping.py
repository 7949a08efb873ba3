"""Map files for reading, and advise the system how they are read."""

from __future__ import annotations

import mmap
import os
import sys
import weakref

from tieops.system.opening import most_held_open

__all__ = ["advise", "can_give_back", "give_back", "map_file", "may_stay_mapped"]


def map_file(descriptor: int, length: int = 0, offset: int = 0) -> mmap.mmap:
    """Map an open file, or a part of it, to read.

    Args:
        descriptor: The file; the mapping outlives it.
        length: How many bytes; by default all from the offset on.
        offset: Where it begins, a multiple of ``mmap.ALLOCATIONGRANULARITY``.

    Raises:
        OSError: If it cannot be mapped.
        ValueError: If it is empty, or shorter than that.
    """
    if sys.version_info >= (3, 13) and os.name == "posix":
        # Else each mapping keeps a descriptor of its own, and those run out before memory does.
        options = {"trackfd": False}
    else:
        options = {}
    pages = mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=offset, **options)
    _mapped.add(pages)
    return pages


_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
"""Mappings that somebody still holds."""


def may_stay_mapped() -> bool:
    """Return whether a file may stay mapped for as long as somebody likes.

    Not on Windows, where it could not be replaced meanwhile; and not where so many are mapped that
    there would soon be no descriptors left: then it is read into memory.
    """
    return os.name == "posix" and len(_mapped) < most_held_open()


def advise(pages: mmap.mmap, advice: str, start: int = 0, stop: int | None = None) -> None:
    """Tell the system how a mapping is going to be read; where it takes no advice, nothing.

    Args:
        pages: The mapping.
        advice: "normal", "random" or "willneed".
        start: Where what is told of begins.
        stop: Where it ends; by default with the mapping.
    """
    number = getattr(mmap, f"MADV_{advice.upper()}", None)
    stop = len(pages) if stop is None else stop
    if number is not None and start < stop:
        begin = start - start % mmap.PAGESIZE
        pages.madvise(number, begin, stop - begin)


def can_give_back() -> bool:
    """Return whether pages leave memory when they are given back: elsewhere it is but a wish."""
    return sys.platform == "linux" and hasattr(mmap, "MADV_DONTNEED")


def give_back(pages: mmap.mmap) -> None:
    """Drop a mapping's pages from memory; they are read again from the file where they are touched.

    Where the system cannot (`can_give_back`), they stay until it needs the room.
    """
    # Without this a page that is touched again brings its neighbours in with it.
    advise(pages, "random")
    if can_give_back():
        pages.madvise(mmap.MADV_DONTNEED)
