"""Mapping files to read them, and what the system is told of how they are read."""

from __future__ import annotations

import gc
import math
import mmap
import os
import sys
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FileSlice", "MappedFile", "advise", "can_give_back", "give_back", "let_go", "map_file"]


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
    return mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=offset)


class MappedFile:
    """A mapped file that is read for as long as somebody holds it, and can be taken into memory.

    Args:
        data: The mapping, of the whole file; or bytes that were in memory from the beginning.
        device: The file system that the file is on.
        inode: Its number there.

    Attributes:
        data: Its bytes: the mapping, or a copy of them once the file had to be let go.
    """

    def __init__(self, data: mmap.mmap | bytes, device: int, inode: int) -> None:
        self.data = data
        self._identity = device, inode
        _held.add(self)

    def is_of(self, status: os.stat_result) -> bool:
        """Return whether it is a mapping of the file with this status."""
        is_mapped = isinstance(self.data, mmap.mmap)
        return is_mapped and self._identity == (status.st_dev, status.st_ino)

    def take_into_memory(self) -> weakref.ref[mmap.mmap] | None:
        """Copy the bytes, and return what tells whether somebody still has the mapping."""
        pages = self.data
        if not isinstance(pages, mmap.mmap):
            return None
        self.data = pages[:]
        return weakref.ref(pages)


@dataclass(frozen=True, eq=False)
class FileSlice:
    """A read-only array in a mapped file, which is made anew each time that it is asked for.

    It is not the array itself, because an array keeps its mapping: where mapped files cannot be
    replaced, the file is taken into memory first. ``onnx_ir`` takes it for an array.

    Args:
        file: The file.
        offset: Where the array begins.
        dtype: Its type.
        shape: Its sizes.
    """

    file: MappedFile
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        count = math.prod(self.shape)
        found = np.frombuffer(self.file.data, self.dtype, count, self.offset).reshape(self.shape)
        if dtype is not None and found.dtype != dtype:
            return found.astype(dtype)
        return found.copy() if copy else found

    def __reduce__(self) -> tuple[Any, ...]:
        return np.array, (np.array(self),)  # a mapping does not go to another process

    def __repr__(self) -> str:
        return repr(np.asarray(self))


_held: weakref.WeakSet[MappedFile] = weakref.WeakSet()


def let_go(path: str | os.PathLike[str]) -> bool:
    """Take into memory what models of this process have mapped of a file.

    Windows does not replace a file that is mapped.

    Returns:
        Whether it is mapped still: arrays that were handed out of a mapping keep it.
    """
    try:
        status = os.stat(path)
    except OSError:
        return False
    if not any(each.is_of(status) for each in list(_held)):
        return False
    gc.collect()  # what was read of a model has cycles: most of it is nobody's any more
    taken = [each.take_into_memory() for each in list(_held) if each.is_of(status)]
    return any(each is not None and each() is not None for each in taken)


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
