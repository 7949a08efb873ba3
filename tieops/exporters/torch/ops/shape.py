"""Moving elements: reshapes, transposes, slices, joins, pads, and constant fills."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.literals import Ints, Numbers, one, several
from tieops.exporters.torch.ops.registry import op


@op("Reshape", literals=(1,))
def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """Reshape; a zero keeps the input's size, unless it is allowed to be one."""
    shape = several(shape)
    if not allowzero:
        shape = [x.shape[i] if _is(0, size) else size for i, size in enumerate(shape)]
    return x.reshape(tuple(shape))


def _is(number: int, size: Any) -> bool:
    # A size that is not known while tracing is not a constant, and must not be compared with one.
    return isinstance(size, int) and size == number


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Return a matrix: the axes before one are rows, the others columns."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Transpose")
def transpose(x: Tensor, *, perm: Ints | None = None) -> Tensor:
    """Reorder axes; reverse them by default."""
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.dim()))))


@op("Squeeze", literals=(1,))
def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """Remove axes of size one."""
    return x.squeeze() if axes is None else x.squeeze(several(axes))


@op("Unsqueeze", literals=(1,))
def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """Add axes of size one, counted in the result."""
    axes = several(axes)
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("Expand", literals=(1,))
def expand(x: Tensor, shape: Any) -> Tensor:
    """Broadcast to a shape; a size of one leaves the input's."""
    shape = several(shape)
    missing = len(shape) - x.dim()
    sizes = (1,) * missing + tuple(x.shape)
    wanted = (1,) * -missing + tuple(shape)
    return x.expand(
        [have if _is(1, want) else want for have, want in zip(sizes, wanted, strict=True)]
    )


@op("Tile", literals=(1,), since=6)
def tile(x: Tensor, repeats: Any) -> Tensor:
    """Repeat along each axis."""
    return x.repeat(several(repeats))


@op("Concat")
def concat(*inputs: Tensor, axis: int = 1) -> Tensor:
    """Join along an axis, which only opset 1 may leave out."""
    return torch.cat(inputs, axis)


@op("Split", literals=(1,), many=True)
def split(
    x: Tensor,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Cut into parts of the sizes given, or equal ones, of which the last may be smaller."""
    if split is not None:
        return torch.split(x, list(split), axis)
    each = -(-x.shape[axis] // (num_outputs or outputs))
    return torch.split(x, each, axis)


@op("Slice", literals=(1, 2, 3, 4))
def slice_axes(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """Cut out a range along each axis that is named."""
    for i, (start, end) in enumerate(zip(several(starts), several(ends), strict=True)):
        axis = several(axes)[i] if axes is not None else i
        step = several(steps)[i] if steps is not None else 1
        if step > 0:
            index = [slice(None)] * (axis % x.dim()) + [slice(start, end, step)]
            x = x[tuple(index)]
        else:
            places = range(x.shape[axis])[start:end:step]
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


@op("Pad", literals=(1, 2, 3))
def pad(
    x: Tensor,
    pads: Ints,
    value: Numbers | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Pad or, by negative sizes, crop; ``pads`` holds all beginnings, then all ends."""
    places = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    count = len(places)
    sizes = {axis: (pads[i], pads[i + count]) for i, axis in enumerate(places)}
    if mode != "constant":
        for axis, (before, after) in sizes.items():
            x = _pad_axis(x, axis, before, after, mode)
        return x
    flat = [size for axis in reversed(range(x.dim())) for size in sizes.get(axis, (0, 0))]
    return functional.pad(x, flat, value=0 if value is None else one(value))


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    if not before and not after:
        return x
    size = x.shape[axis]
    places = torch.arange(-before, size + after, device=x.device)
    if mode == "wrap":
        places = places % size
    elif mode == "edge":
        places = places.clamp(0, size - 1)
    else:
        period = max(2 * (size - 1), 1)
        places = places % period
        places = torch.minimum(places, period - places)
    return x.index_select(axis, places)


@op("ConstantOfShape", literals=(0,))
def constant_of_shape(
    shape: Any,
    *,
    value: float = 0.0,
    dtype: torch.dtype = torch.float32,
    like: Tensor | None = None,
) -> Tensor:
    """Return a tensor of one number: float zero by default."""
    return torch.full(several(shape), value, dtype=dtype, device=device_of(like))


@op("Range", literals=(0, 1, 2))
def arange(
    start: Numbers,
    limit: Numbers,
    delta: Numbers,
    *,
    dtype: torch.dtype | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Return numbers from ``start`` up to, but without, ``limit``."""
    numbers = (one(start), one(limit), one(delta))
    return torch.arange(*numbers, dtype=dtype, device=device_of(like))


@op("EyeLike")
def eye_like(x: Tensor, *, dtype: torch.dtype | None = None, k: int = 0) -> Tensor:
    """Return ones on the k-th diagonal of a matrix of the input's shape."""
    ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
    return ones.triu(k).tril(k)


@op("Trilu", literals=(1,))
def trilu(x: Tensor, k: Any = 0, *, upper: int = 1) -> Tensor:
    """Keep a triangle of each matrix."""
    return x.triu(one(k)) if upper else x.tril(one(k))


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Move blocks of channels to places."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return functional.pixel_shuffle(x, b)
    blocks = x.reshape(n, b, b, c // (b * b), h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Move blocks of places to channels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return functional.pixel_unshuffle(x, b)
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@op("CenterCropPad", literals=(1,))
def center_crop_pad(x: Tensor, shape: Ints, *, axes: Ints | None = None) -> Tensor:
    """Crop or pad around the middle."""
    for i, size in enumerate(shape):
        axis = axes[i] if axes is not None else i
        extra = size - x.shape[axis]
        if extra > 0:
            x = pad(x, (extra // 2, extra - extra // 2), axes=(axis,))
        else:
            x = x.narrow(axis, -extra // 2, size)
    return x


@op("ReverseSequence")
def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """Reverse the beginning of each sequence."""
    x = x.movedim((time_axis, batch_axis), (0, 1))
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    found = x[places, torch.arange(x.shape[1], device=x.device)]
    return found.movedim((0, 1), (time_axis, batch_axis))


@op("Shape")
def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    """Return sizes as Python integers."""
    return tuple(x.shape)[start:end]


@op("Size")
def size_of(x: Tensor) -> int:
    """Return the number of elements as a Python integer."""
    return math.prod(x.shape)


def device_of(like: Any) -> torch.device | None:
    """Return the device of a tensor that stands for where the program runs."""
    return like.device if isinstance(like, Tensor) else None
