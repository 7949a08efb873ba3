"""Find names of a module that share elements: one object, or overlapping views of a storage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tieops.ir.view import share
from tieops.torch.places import Place

__all__ = ["shared"]

Footprint = np.ndarray[Any, np.dtype[np.uint8]]


def shared(places: Iterable[Place]) -> list[list[Place]]:
    """Return the groups of places that share elements of one tensor, each of two or more.

    Two slices of one storage that do not meet share nothing. Where one slice overlaps two others,
    all three are one group.

    Args:
        places: Every name, in the module's order; the groups keep it.
    """
    found = list(places)
    by_object: dict[int, list[int]] = defaultdict(list)
    by_storage: dict[Hashable, dict[int, torch.Tensor]] = defaultdict(dict)
    for index, place in enumerate(found):
        by_object[id(place.tensor)].append(index)
        if _has_memory(place.tensor):
            storage = place.tensor.untyped_storage()
            key = (storage.data_ptr(), storage.nbytes(), str(place.tensor.device))
            by_storage[key][id(place.tensor)] = place.tensor
    union = _Union(len(found))
    for same in by_object.values():
        for one, other in pairwise(same):
            union.join(one, other)
    for tensors in by_storage.values():
        for one, other in _overlapping(list(tensors.values())):
            union.join(by_object[id(one)][0], by_object[id(other)][0])
    return [[found[index] for index in group] for group in union.groups() if len(group) > 1]


def _has_memory(tensor: torch.Tensor) -> bool:
    if type(tensor).__name__ in ("UninitializedParameter", "UninitializedBuffer"):
        return False
    return tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.numel() > 0


def _overlapping(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the pairs that share an element; all are views of one storage."""
    if len(tensors) < 2:
        return
    # Only addresses count, and the pages of the ground are never touched.
    ground = np.empty(tensors[0].untyped_storage().nbytes(), np.uint8)
    prints = sorted(((*_span(each), each) for each in tensors), key=lambda span: span[:2])
    reaching: list[tuple[int, torch.Tensor]] = []
    for start, end, tensor in prints:
        reaching = [(last, other) for last, other in reaching if last > start]
        for _, other in reaching:
            if share(_footprint(other, ground), _footprint(tensor, ground)):
                yield other, tensor
        reaching.append((end, tensor))


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one after its last."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    size, offset = tensor.element_size(), int(tensor.storage_offset())
    return offset * size, (offset + last + 1) * size


def _footprint(tensor: torch.Tensor, ground: Footprint) -> Footprint:
    start, end = _span(tensor)
    size = tensor.element_size()
    strides = (*(step * size for step in tensor.stride()), 1)
    shape = (*tensor.shape, size)
    return np.lib.stride_tricks.as_strided(ground[start:end], shape, strides, writeable=False)


class _Union:
    """Sets that grow together."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def _root(self, item: int) -> int:
        while self._parents[item] != item:
            item = self._parents[item]
        return item

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self._parents[high] = low

    def groups(self) -> list[list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for item in range(len(self._parents)):
            groups[self._root(item)].append(item)
        return list(groups.values())
