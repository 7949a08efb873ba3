"""Find which of many parts of one tensor overlap, without comparing every pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tieops.ir.view import share

__all__ = ["sharing_groups"]

Footprint = np.ndarray[Any, Any]
MAX_COMPARED = 1_000_000
"""So many pairs of parts that no axis tells apart are compared; what is left counts as shared."""
MAX_SPLITS = 16
"""So often a set of parts is split again; more depth than boxes on a grid need."""


def sharing_groups(
    parts: Sequence[Sequence[Footprint | None]], ground: Footprint
) -> list[list[int]]:
    """Group the readers of one tensor: two that share an element, and so on, are one group.

    Args:
        parts: For each reader the parts of the tensor that it reads, as ``View.footprint`` tells
            them: views of ``ground``; None is a part that cannot be told.
        ground: A contiguous uint8 array of the tensor's shape; its pages are not touched.

    Returns:
        The readers by position, each in one group, in order. Parts that lie apart along some axis
        are told apart by sorting. Where a million comparisons of others did not settle it, the
        rest counts as shared.

    Example:
        >>> ground = np.empty((4, 2), np.uint8)
        >>> sharing_groups([[ground[:2]], [ground[2:]], [ground[1:2, :1]]], ground)
        [[0, 2], [1]]
    """
    joined = _Joined(len(parts))
    if any(part is None for each in parts for part in each):
        return [list(range(len(parts)))]
    first: dict[object, int] = {}
    distinct: list[tuple[int, Footprint]] = []
    for reader, each in enumerate(parts):
        for part in each:
            if part is None or not part.size:
                continue
            key = (part.__array_interface__["data"][0], part.shape, part.strides)
            if key in first:
                joined.join(first[key], reader)
            else:
                first[key] = reader
                distinct.append((reader, part))
    budget = MAX_COMPARED
    for cluster, is_one in _clusters(distinct, ground):
        if is_one:
            for reader, _ in cluster[1:]:
                joined.join(cluster[0][0], reader)
        else:
            budget = _compare(cluster, joined, budget)
    return joined.groups()


class _Joined:
    """Sets of readers that were joined (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, reader: int) -> int:
        while self._parent[reader] != reader:
            self._parent[reader] = self._parent[self._parent[reader]]
            reader = self._parent[reader]
        return reader

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for reader in range(len(self._parent)):
            found.setdefault(self.root(reader), []).append(reader)
        return list(found.values())


def _compare(cluster: Sequence[tuple[int, Footprint]], joined: _Joined, budget: int) -> int:
    """Join those of a cluster that share memory; return how many more pairs may be compared."""
    groups: list[list[tuple[int, Footprint]]] = []
    for item in cluster:
        mine: list[list[tuple[int, Footprint]]] = []
        for group in groups:
            for other in group:
                budget -= 1
                if budget < 0 or share(other[1], item[1]):
                    joined.join(other[0], item[0])
                    mine.append(group)
                    break
        merged = [each for group in mine for each in group]
        groups = [group for group in groups if not any(group is each for each in mine)]
        groups.append([*merged, item])
    return budget


def _clusters(
    items: Sequence[tuple[int, Footprint]], ground: Footprint
) -> Iterator[tuple[list[tuple[int, Footprint]], bool]]:
    """Split parts into clusters such that parts of two clusters share nothing.

    Yields:
        A cluster, and whether it is known that its parts are one group.
    """
    bounds, steps = _bounds([part for _, part in items], ground)
    pending = [(np.arange(len(items)), 0)] if items else []
    while pending:
        cluster, depth = pending.pop()
        for axis in range(bounds.shape[1] if depth < MAX_SPLITS else 0):
            pieces = _apart(cluster, bounds[cluster, axis])
            if len(pieces) == 1 and axis:
                pieces = _by_remainder(cluster, bounds[cluster, axis, 0], steps[cluster, axis])
            if len(pieces) > 1:
                pending += [(piece, depth + 1) for piece in reversed(pieces)]
                break
        else:
            cluster = np.sort(cluster)
            yield [items[index] for index in cluster], _is_one(bounds[cluster], steps[cluster])


def _by_remainder(
    cluster: np.ndarray[Any, Any], firsts: np.ndarray[Any, Any], steps: np.ndarray[Any, Any]
) -> list[Any]:
    """Split a cluster whose parts all take each n-th place of an axis, by where they begin."""
    step = int(steps[0])
    if step < 2 or (steps != step).any():
        return [cluster]
    rest = firsts % step
    order = np.argsort(rest, kind="stable")
    return np.split(cluster[order], np.flatnonzero(np.diff(rest[order])) + 1)


def _is_one(bounds: np.ndarray[Any, Any], steps: np.ndarray[Any, Any]) -> bool:
    """Return whether parts that no axis tells apart are one group, without comparing them.

    So it is where they take the same places of all axes but one, along which they were not told
    apart, and take all places from their first to their last there or each n-th, from one on.
    """
    own = [axis for axis in range(1, steps.shape[1]) if (bounds[:, axis] != bounds[0, axis]).any()]
    if (steps[:, 1:] != steps[0, 1:]).any() or not steps[0, 1:].all():
        return False
    return len(own) <= 1


def _apart(cluster: np.ndarray[Any, Any], spans: np.ndarray[Any, Any]) -> list[Any]:
    """Split a cluster where no span goes on: sorted by where they begin."""
    order = np.argsort(spans[:, 0], kind="stable")
    reach = np.maximum.accumulate(spans[order, 1])
    cuts = np.flatnonzero(spans[order[1:], 0] > reach[:-1]) + 1
    return np.split(cluster[order], cuts)


def _bounds(
    parts: Sequence[Footprint], ground: Footprint
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the first and last place of each part, in memory and along each axis, and its steps.

    A part whose strides are not multiples of the tensor's is not a box: all that is known of it is
    where it begins and ends in memory.

    Returns:
        Integers of shape (parts, 1 + axes, 2); both ends belong to the part. And of shape (parts,
        1 + axes): each n-th place between them is taken; 0 where that is not known.
    """
    base, _ = np.lib.array_utils.byte_bounds(ground)
    bounds = np.empty((len(parts), 1 + ground.ndim, 2), np.int64)
    steps = np.zeros((len(parts), 1 + ground.ndim), np.int64)
    for row, step, part in zip(bounds, steps, parts, strict=True):
        low, high = np.lib.array_utils.byte_bounds(part)
        row[0] = low - base, high - 1 - base
        box = _box(part, low - base, ground)
        row[1:] = [(0, size - 1) for size in ground.shape] if box is None else [e[:2] for e in box]
        step[1:] = 0 if box is None else [each[2] for each in box]
    return bounds, steps


def _box(part: Footprint, low: int, ground: Footprint) -> list[tuple[int, int, int]] | None:
    """Return first place, last place and step along each axis; None if the part is not a box."""
    strides, shape = ground.strides, ground.shape
    box: list[tuple[int, int, int]] = []
    for stride, size in zip(strides, shape, strict=True):
        place = low // stride % size
        box.append((place, place, 1))
    for size, stride in zip(part.shape, part.strides, strict=True):
        if size == 1:
            continue
        span = abs(stride)
        axis = next((i for i, own in enumerate(strides) if own <= span and shape[i] > 1), None)
        if axis is None or span % strides[axis]:
            return None
        first, last, _ = box[axis]
        step = span // strides[axis] if first == last else 0  # two axes of the part lie along one
        last += span // strides[axis] * (size - 1)
        if last >= shape[axis]:
            return None
        box[axis] = (first, last, step)
    return box
