"""Compare arrays bit for bit, in any order of axes, in blocks that fit the cache.

In tieops, equal means equal in every bit: +0.0 is not -0.0, and a NaN equals the same NaN.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

from tieops.ir.view import Shape
from tieops.progress import advance
from tieops.system.processes import processors

__all__ = ["PAIR", "Bits", "Packed", "bit_equal", "bits", "blocks", "unsigned"]

Array = np.ndarray[Any, Any]
BLOCK_BYTES = 1 << 18
"""Comparison goes block by block: large enough to be fast, small enough to stay in the cache."""
TILE_BYTES = 1 << 16
LINE_BYTES = 128
"""A transposed tile is so narrow along one array's lines: all of a fetched line is used at once."""
SHARED_BYTES = 64 << 20
"""From this size on several threads compare: numpy computes without holding Python's lock."""
MAX_THREADS = 4
BLOCKS_A_TURN = 16
PAIR = np.dtype([("low", "u8"), ("high", "u8")])
"""The bits of an element of 16 bytes."""


class Packed:
    """Elements of 2 or 4 bits as a file packs them, unpacked where they are looked at.

    Args:
        data: The bytes, of shape (n,) and dtype uint8; the first element is in the lowest bits.
        width: Bits an element, 2 or 4.
        shape: The elements' shape.
        strides: Elements from one place to the next along each axis; by default rows in order.

    Example:
        >>> Packed(np.array([0x21, 0x43], np.uint8), 4, (2, 2)).transpose((1, 0))[:, :]
        array([[1, 3],
               [2, 4]], dtype=uint8)
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, data: Array, width: int, shape: Shape, strides: Sequence[int] | None = None
    ) -> None:
        rows = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
        self.data, self.width, self.shape = data, width, shape
        self.strides = tuple(rows if strides is None else strides)
        self.in_order = self.strides == tuple(rows)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return int(np.prod(self.shape, dtype=np.int64))

    def transpose(self, order: Sequence[int]) -> Packed:
        """Return the same elements with their axes in another order; nothing is read."""
        shape, strides = ([each[axis] for axis in order] for each in (self.shape, self.strides))
        return Packed(self.data, self.width, tuple(shape), strides)

    def __getitem__(self, key: slice | tuple[slice | Array, ...]) -> Array:
        """Return elements, one a byte; ``key`` has one slice or one array of places an axis."""
        keys = key if isinstance(key, tuple) else (key,)
        keys = (*keys, *[slice(None)] * (len(self.shape) - len(keys)))
        flat: Any = np.int64(0)
        for axis, (each, size, stride) in enumerate(
            zip(keys, self.shape, self.strides, strict=True)
        ):
            if isinstance(each, slice):
                places = np.arange(*each.indices(size), dtype=np.int64) * stride
                flat = flat + places.reshape(-1, *[1] * (len(self.shape) - 1 - axis))
            else:
                flat = flat + np.asarray(each, np.int64) % size * stride
        per_byte = 8 // self.width
        shift = (flat % per_byte * self.width).astype(np.uint8)
        return (self.data[flat // per_byte] >> shift) & np.uint8((1 << self.width) - 1)


Bits: TypeAlias = "Array | Packed"
"""Bit patterns that can be sliced, transposed and compared."""


def bits(array: Array) -> Array:
    """Return the array's bit patterns: unsigned integers of the same width, no copy.

    Example:
        >>> bool((bits(np.array([0.0])) == bits(np.array([-0.0]))).all())
        False
    """
    if array.dtype.kind in "uib" and array.dtype.itemsize <= 8:
        return array
    width = array.dtype.itemsize
    if width in (1, 2, 4, 8):
        return array.view(f"u{width}")
    return array.view("u8").reshape(*array.shape, width // 8)


def unsigned(array: Array) -> Array:
    """Return a view of the same shape whose elements compare by their bits; strides may be any."""
    width = array.dtype.itemsize
    if array.dtype.kind in "OSU" or width not in (1, 2, 4, 8, 16):
        return array
    return array.view(PAIR if width == 16 else f"u{width}")


def bit_equal(one: Bits, other: Bits) -> bool:
    """Return whether two arrays have the same shape and dtype and the same bits everywhere.

    Args:
        one: Any array; may be a transposed view.
        other: Any array; may be a transposed view.

    Compared in blocks, so that a transposed comparison needs no transposed copy and stops at the
    first block that differs.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.size == 0:
        return True
    if one.dtype.kind in "OSU":
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    if isinstance(one, Packed) or isinstance(other, Packed):
        return _packed_equal(one, other)
    one, other = unsigned(one), unsigned(other)
    if one.flags.c_contiguous and other.flags.c_contiguous:
        one, other = one.reshape(-1), other.reshape(-1)
    elif other.flags.c_contiguous:
        one, other = other, one  # numpy walks in the first one's order: half the time
    if one.ctypes.data == other.ctypes.data and one.strides == other.strides:
        return True  # copies of a graph share their weights
    return _blocks_equal(one, other)


def _blocks_equal(one: Bits, other: Bits) -> bool:
    inner = [_inner(each) for each in (one, other)]
    itemsize = one.dtype.itemsize
    if inner[0] == inner[1]:
        cuts = blocks(one.shape, itemsize)
    else:
        cuts = _tiles(one.shape, inner[0], inner[1], itemsize)
    threads = min(MAX_THREADS, processors())
    if one.size * itemsize < SHARED_BYTES or threads == 1:
        return all(_equal_at(one, other, cut) for cut in cuts)
    return _equal_together(one, other, cuts, threads)


def _equal_at(one: Bits, other: Bits, cut: tuple[slice, ...]) -> bool:
    part = one[cut]
    advance(part.nbytes)
    return bool((part == other[cut]).all())


def _equal_together(
    one: Bits, other: Bits, cuts: Iterator[tuple[slice, ...]], threads: int
) -> bool:
    """Compare in several threads, which take the next blocks in turns until one differs."""
    lock, over = threading.Lock(), threading.Event()

    def work() -> bool:
        while not over.is_set():
            with lock:
                mine = list(itertools.islice(cuts, BLOCKS_A_TURN))
            if not mine:
                return True
            if not all(_equal_at(one, other, cut) for cut in mine):
                over.set()
                return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        try:
            return all(each.result() for each in [pool.submit(work) for _ in range(threads)])
        finally:
            over.set()


def _packed_equal(one: Bits, other: Bits) -> bool:
    if not (isinstance(one, Packed) and isinstance(other, Packed)):
        return False
    if not (one.in_order and other.in_order and one.width == other.width):
        return _blocks_equal(one, other)
    # Packed alike: bytes are compared, and the elements of the last one, beside which may lie
    # bits that belong to nothing.
    whole = one.size * one.width // 8
    first = whole * 8 // one.width
    rest = [Packed(each.data, each.width, (each.size,))[first:] for each in (one, other)]
    return bool((rest[0] == rest[1]).all()) and _blocks_equal(one.data[:whole], other.data[:whole])


def _inner(array: Bits) -> int:
    """Return the axis along which neighbours in memory lie; of axes of size 1 none."""
    strides = [
        (abs(stride) if size > 1 else np.inf, -axis)
        for axis, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True))
    ]
    return -min(strides)[1] if strides else 0


def blocks(shape: Shape, itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Yield blocks that cover a shape, the same ones for every array of it.

    They are nearly square over the last two axes: both orders of reading stay within the cache.
    """
    budget = max(1, BLOCK_BYTES // itemsize)
    if len(shape) < 2:
        sizes = [min(budget, size) for size in shape]
    else:
        side = max(1, int(budget**0.5))
        columns = min(shape[-1], max(side, budget // max(shape[-2], 1)))
        rows = min(shape[-2], max(1, budget // columns))
        sizes = [1] * (len(shape) - 2) + [rows, columns]
        _fill(sizes, shape, budget, range(len(shape) - 3, -1, -1))
    yield from _grid(shape, sizes, range(len(shape)))


def _tiles(shape: Shape, one: int, other: int, itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Yield tiles for two arrays whose lines in memory run along two different axes.

    A tile is one or two cache lines wide along the first array's lines and long along the second
    one's. The next tile goes on along the first one's lines: pages are used up before others come.
    """
    budget = max(1, TILE_BYTES // itemsize)
    sizes = [1] * len(shape)
    sizes[one] = min(shape[one], max(1, LINE_BYTES // itemsize))
    sizes[other] = min(shape[other], max(1, budget // sizes[one]))
    sizes[one] = min(shape[one], max(1, budget // sizes[other]))
    rest = [axis for axis in reversed(range(len(shape))) if axis not in (one, other)]
    if sizes[one] == shape[one] and sizes[other] == shape[other]:
        _fill(sizes, shape, budget, rest)
    yield from _grid(shape, sizes, [*reversed(rest), other, one])


def _fill(sizes: list[int], shape: Shape, budget: int, axes: Sequence[int]) -> None:
    """Enlarge a block along further axes, one after the other, while all of those before are in."""
    inner = [axis for axis in range(len(shape)) if axis not in axes]
    if any(sizes[axis] < shape[axis] for axis in inner):
        return
    for axis in axes:
        sizes[axis] = max(1, min(shape[axis], budget // max(int(np.prod(sizes)), 1)))
        if sizes[axis] < shape[axis]:
            return


def _grid(shape: Shape, sizes: Sequence[int], order: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    starts = [range(0, shape[axis], max(1, sizes[axis])) for axis in order]
    places = sorted(range(len(order)), key=lambda place: order[place])
    for corner in itertools.product(*starts):
        yield tuple(
            slice(corner[place], corner[place] + sizes[axis]) for axis, place in enumerate(places)
        )
