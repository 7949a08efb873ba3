"""Mapping files to read them, and what the system is told of how they are read."""

from __future__ import annotations

import mmap
import os
import sys
import weakref

__all__ = ["advise", "can_give_back", "give_back", "map_file", "mappings_of"]


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
    pages = mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=offset)
    status = os.fstat(descriptor)
    _mapped[pages] = status.st_dev, status.st_ino
    return pages


_mapped: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Mappings that are in use, and which file each is of: where mapped files cannot be replaced."""


def mappings_of(path: str | os.PathLike[str]) -> list[mmap.mmap]:
    """Return what this process has mapped of a file, by whatever name, and somebody still holds."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    file = status.st_dev, status.st_ino
    return [pages for pages, of in list(_mapped.items()) if of == file]


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
