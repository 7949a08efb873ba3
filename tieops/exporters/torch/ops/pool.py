"""Pooling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.conv import pad_ends, window_pads
from tieops.exporters.torch.ops.literals import Ints
from tieops.exporters.torch.ops.registry import op

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _windows(
    x: Tensor,
    kernel: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints | None,
    auto_pad: str,
    ceil_mode: int,
) -> tuple[list[int], list[int], list[int]]:
    """Return the padding before and after, and how far the last windows reach past that."""
    before, after = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    over = [0] * len(kernel)
    if ceil_mode:
        for i, k in enumerate(kernel):
            span = (k - 1) * dilations[i] + 1
            room = x.shape[2 + i] + before[i] + after[i] - span
            steps = -(-room // strides[i])
            # A window that begins in the padding at the end is left out.
            if steps * strides[i] >= x.shape[2 + i] + before[i]:
                steps -= 1
            over[i] = max(steps * strides[i] - room, 0)
    return before, after, over


@op("MaxPool", many=True)
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Return the largest of each window and, if asked for, where it is in the flat input."""
    rank = len(kernel_shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    before, after, over = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if (
        outputs == 1
        and before == after
        and not any(over)
        and all(2 * b <= k for b, k in zip(before, kernel_shape, strict=True))
    ):
        return (_pool(x, kernel_shape, strides, before, dilations),)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    ends = [a + o for a, o in zip(after, over, strict=True)]
    padded = pad_ends(x, before, ends, lowest)
    if outputs == 1:
        return (_pool(padded, kernel_shape, strides, [0] * rank, dilations),)
    values, places = _MAX[rank](padded, kernel_shape, strides, 0, dilations, return_indices=True)
    return values, _unpadded(places, x.shape, padded.shape, before, storage_order)


def _pool(x: Tensor, kernel: Ints, strides: Ints, padding: Ints, dilations: Ints) -> Tensor:
    if x.is_floating_point():
        return _MAX[len(kernel)](x, kernel, strides, padding, dilations)
    # Torch pools floats; double precision holds the integers that are pooled.
    return _MAX[len(kernel)](x.to(torch.float64), kernel, strides, padding, dilations).to(x.dtype)


def _unpadded(
    places: Tensor, sizes: Ints, padded: Ints, before: Ints, storage_order: int
) -> Tensor:
    """Turn places in one padded channel into places in the whole input."""
    rank = len(before)
    axes: list[Tensor] = []
    for i in reversed(range(rank)):
        axes.append(places % padded[2 + i] - before[i])
        places = torch.div(places, padded[2 + i], rounding_mode="floor")
    inside = torch.zeros_like(places)
    for i in reversed(range(rank)) if storage_order else range(rank):
        inside = inside * sizes[2 + i] + axes[rank - 1 - i]
    each = 1
    for size in sizes[2:]:
        each *= size
    channel = torch.arange(sizes[0] * sizes[1], device=places.device)
    return inside + each * channel.reshape(sizes[0], sizes[1], *(1,) * rank)


@op("AveragePool")
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Return the average of each window, of what is in the input or of the padding too."""
    rank = len(kernel_shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    before, after, over = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if (
        before == after
        and not any(over)
        and set(dilations) == {1}
        and all(2 * b <= k for b, k in zip(before, kernel_shape, strict=True))
        and rank in _AVERAGE
    ):
        return _AVERAGE[rank](x, kernel_shape, strides, before, False, bool(count_include_pad))
    counted = torch.ones_like(x[:1, :1])
    if count_include_pad:
        counted = pad_ends(counted, before, after, 1.0)
        counted = pad_ends(counted, [0] * rank, over)
    else:
        counted = pad_ends(counted, before, [a + o for a, o in zip(after, over, strict=True)])
    padded = pad_ends(x, before, [a + o for a, o in zip(after, over, strict=True)])
    return _summed(padded, kernel_shape, strides, dilations) / _summed(
        counted, kernel_shape, strides, dilations
    )


def _summed(x: Tensor, kernel: Ints, strides: Ints, dilations: Ints) -> Tensor:
    """Sum each window, one axis after the other."""
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        x = x.unfold(2 + i, (k - 1) * d + 1, s)[..., ::d].sum(-1)
    return x


@op("LpPool")
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Return the p-norm of each window."""
    rank = len(kernel_shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    before, after, over = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    padded = pad_ends(x.abs() ** p, before, [a + o for a, o in zip(after, over, strict=True)])
    return _summed(padded, kernel_shape, strides, dilations) ** (1 / p)


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """Average over all places."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """Return the largest of all places."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """Return the p-norm over all places."""
    return (x.abs() ** p).sum(tuple(range(2, x.dim())), keepdim=True) ** (1 / p)


@op("MaxUnpool", literals=(2,))
def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Put what was the largest of each window back to where it was."""
    rank = len(kernel_shape)
    strides, pads = strides or (1,) * rank, pads or (0,) * (2 * rank)
    sizes = [
        (x.shape[2 + i] - 1) * strides[i] + kernel_shape[i] - pads[i] - pads[i + rank]
        for i in range(rank)
    ]
    shape = torch.Size((*x.shape[:2], *sizes))
    # Places count in the smallest output; a larger one has its elements at other places.
    flat = x.new_zeros(shape.numel()).scatter(0, places.reshape(-1), x.reshape(-1))
    found = flat.reshape(shape)
    if output_shape is None:
        return found
    return pad_ends(found, [0] * rank, [output_shape[2 + i] - sizes[i] for i in range(rank)])
