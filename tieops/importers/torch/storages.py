"""Compare the storages of torch tensors exactly: the same range, a permutation, or a slice.

An address alone is not evidence: a packed projection starts where its first slice does. Two tensors
are tied if and only if one is a view of the other by offset, sizes and strides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from tieops.ir.view import Reshape, Shape, Slice, Step, Transpose, View

__all__ = ["Alias", "find_aliases"]


@dataclass(frozen=True)
class Alias:
    """A tensor that is a view of another one."""

    name: str
    base: str
    view: View
    """How to read ``base`` so as to see this tensor."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in its storage, in elements."""

    name: str
    offset: int
    shape: Shape
    strides: Shape

    @property
    def end(self) -> int:
        spans = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((size - 1) * stride for size, stride in spans) + 1

    @property
    def dense(self) -> bool:
        """Whether it covers each element of its range once, in some order of axes."""
        expected = 1
        for stride, size in sorted(zip(self.strides, self.shape, strict=True)):
            if size != 1:
                if stride != expected:
                    return False
                expected *= size
        return True


def find_aliases(tensors: Mapping[str, torch.Tensor]) -> list[Alias]:
    """Find which tensors are views of which other one.

    Args:
        tensors: Tensors by name; where two are equal views the first keeps the bytes.

    Returns:
        One ``Alias`` for each tensor that need not be stored. Tensors that share storage without
        sharing elements, or that overlap in a way that no chain of slice, reshape and transpose
        expresses, are left alone.
    """
    by_storage: defaultdict[tuple[object, ...], list[_Place]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), storage.nbytes(), tensor.dtype, str(tensor.device))
        place = _Place(name, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
        by_storage[key].append(place)
    aliases: list[Alias] = []
    for places in by_storage.values():
        if len(places) > 1:
            aliases += _aliases(places)
    order = {name: position for position, name in enumerate(tensors)}
    return sorted(aliases, key=lambda alias: order[alias.name])


def _aliases(places: list[_Place]) -> Iterator[Alias]:
    # The largest first, so that a slice finds what it is a slice of; equals keep their order.
    sizes = {place.name: torch.Size(place.shape).numel() for place in places}
    bases: list[_Place] = []
    for place in sorted(places, key=lambda place: -sizes[place.name]):
        for base in bases:
            view = _view_of(base, place) if base.dense else None
            if view is not None:
                yield Alias(place.name, base.name, view)
                break
        else:
            bases.append(place)


def _view_of(base: _Place, part: _Place) -> View | None:
    """Return the view of ``base`` that is ``part``, or None."""
    if part.offset < base.offset or part.end > base.end:
        return None
    if _is_same(base, part):
        return View(base.shape)
    return _axis_slices(base, part) or _flat_slice(base, part)


def _is_same(base: _Place, part: _Place) -> bool:
    """Return whether two tensors are one; the stride of an axis of size 1 says nothing."""
    strides = zip(base.strides, part.strides, base.shape, strict=False)
    return (
        base.offset == part.offset
        and base.shape == part.shape
        and all(mine == theirs or size == 1 for mine, theirs, size in strides)
    )


def _axis_slices(base: _Place, part: _Place) -> View | None:
    """Express ``part`` by a slice along the axes of ``base`` and an order of those axes."""
    axes = sorted(range(len(base.shape)), key=lambda axis: -base.strides[axis])
    rest = part.offset - base.offset
    starts: dict[int, int] = {}
    for axis in axes:
        if base.shape[axis] == 1:
            starts[axis] = 0
            continue
        starts[axis], rest = divmod(rest, base.strides[axis])
    if rest:
        return None
    ranges = {axis: (starts[axis], starts[axis] + 1, 1) for axis in axes}
    order: list[int] = []
    for size, stride in zip(part.shape, part.strides, strict=True):
        if size == 1:
            continue
        axis = next(
            (
                a
                for a in axes
                if a not in order
                and base.shape[a] > 1
                and stride % base.strides[a] == 0
                and starts[a] + (size - 1) * (stride // base.strides[a]) < base.shape[a]
                and stride >= base.strides[a]
            ),
            None,
        )
        if axis is None or stride == 0:
            return None
        step = stride // base.strides[axis]
        ranges[axis] = (starts[axis], starts[axis] + (size - 1) * step + 1, step)
        order.append(axis)
    sliced = Slice(tuple(ranges[axis] for axis in range(len(base.shape))))
    rest_axes = [axis for axis in range(len(base.shape)) if axis not in order]
    view = View(base.shape).then(sliced)
    # Axes that the part does not have are of size 1 now: where they stand makes no difference.
    if len(part.shape) == len(base.shape) and not rest_axes:
        return view.then(Transpose(tuple(order)))
    return view.then(Transpose((*order, *rest_axes))).then(Reshape(part.shape))


def _flat_slice(base: _Place, part: _Place) -> View | None:
    """Express a contiguous part of a contiguous base that has another shape."""
    if base.strides != _row_major(base.shape) or part.strides != _row_major(part.shape):
        return None
    total = torch.Size(base.shape).numel()
    start = part.offset - base.offset
    steps: list[Step] = [
        Reshape((total,)),
        Slice(((start, start + torch.Size(part.shape).numel(), 1),)),
        Reshape(part.shape),
    ]
    view = View(base.shape)
    for step in steps:
        view = view.then(step)
    return view


def _row_major(shape: Shape) -> Shape:
    strides: list[int] = []
    size = 1
    for each in reversed(shape):
        strides.append(size)
        size *= max(each, 1)
    return tuple(reversed(strides))
