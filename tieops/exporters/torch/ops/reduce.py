"""Reductions and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tieops.exporters.torch.ops.literals import one, several
from tieops.exporters.torch.ops.registry import op

Axes = tuple[int, ...]


def _over_axes(function: Callable[[Tensor, Axes, bool], Tensor]) -> Callable[..., Tensor]:
    """Give ``function(x, axes, keep)`` the arguments that ONNX's reductions have."""

    def reduction(
        x: Tensor, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if axes is not None and len(several(axes)):
            return function(x, several(axes), bool(keepdims))
        if not noop_with_empty_axes and x.dim():
            return function(x, tuple(range(x.dim())), bool(keepdims))
        # Over no axis at all, the function is still applied to each element.
        return function(x.unsqueeze(-1), (-1,), False)

    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(reduction, attribute, getattr(function, attribute))
    return reduction


@op("ReduceSum", literals=(1,))
@_over_axes
def reduce_sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Sum."""
    return torch.sum(x, axes, keep, dtype=x.dtype)


@op("ReduceMean", literals=(1,))
@_over_axes
def reduce_mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Average; of integers, truncated."""
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    total = torch.sum(x, axes, keep, dtype=x.dtype)
    return torch.div(total, x.numel() // max(total.numel(), 1), rounding_mode="trunc")


@op("ReduceProd", literals=(1,))
@_over_axes
def reduce_prod(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Product."""
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


@op("ReduceMax", literals=(1,))
@_over_axes
def reduce_max(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Maximum."""
    return _extreme(torch.amax, x, axes, keep, -torch.inf)


@op("ReduceMin", literals=(1,))
@_over_axes
def reduce_min(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Minimum."""
    return _extreme(torch.amin, x, axes, keep, torch.inf)


def _extreme(function: Any, x: Tensor, axes: Axes, keep: bool, of_nothing: float) -> Tensor:
    if x.dtype == torch.bool:
        return _extreme(function, x.to(torch.float32), axes, keep, of_nothing) > 0
    if any(x.shape[axis] == 0 for axis in axes):  # which torch refuses
        return torch.sum(x, axes, keep) + of_nothing
    return function(x, axes, keep)


@op("ReduceL1", literals=(1,))
@_over_axes
def reduce_l1(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Sum of absolute values."""
    return torch.sum(torch.abs(x), axes, keep, dtype=x.dtype)


@op("ReduceL2", literals=(1,))
@_over_axes
def reduce_l2(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Root of the sum of squares."""
    return torch.sqrt(torch.sum(x * x, axes, keep)).to(x.dtype)


@op("ReduceSumSquare", literals=(1,))
@_over_axes
def reduce_sum_square(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Sum of squares."""
    return torch.sum(x * x, axes, keep, dtype=x.dtype)


@op("ReduceLogSum", literals=(1,))
@_over_axes
def reduce_log_sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Logarithm of the sum."""
    return torch.log(torch.sum(x, axes, keep)).to(x.dtype)


@op("ReduceLogSumExp", literals=(1,))
@_over_axes
def reduce_log_sum_exp(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Logarithm of the sum of exponentials, without overflow."""
    return torch.logsumexp(x, axes, keep).to(x.dtype)


@op("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Return where the maximum is: of equals the first, or the last."""
    return _arg(torch.argmax, x, axis, bool(keepdims), bool(select_last_index))


@op("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Return where the minimum is: of equals the first, or the last."""
    return _arg(torch.argmin, x, axis, bool(keepdims), bool(select_last_index))


def _arg(function: Any, x: Tensor, axis: int, keep: bool, last: bool) -> Tensor:
    if not last:
        return function(x, axis, keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keep)


@op("CumSum", literals=(1,))
def cum_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum."""
    return _running(torch.cumsum, x, axis, bool(exclusive), bool(reverse), 0)


@op("CumProd", literals=(1,))
def cum_prod(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product."""
    return _running(torch.cumprod, x, axis, bool(exclusive), bool(reverse), 1)


def _running(
    function: Any, x: Tensor, axis: Any, exclusive: bool, reverse: bool, neutral: int
) -> Tensor:
    along = int(one(axis))
    if reverse:
        x = x.flip(along)
    if exclusive:
        first = torch.full_like(x.narrow(along, 0, 1), neutral)
        x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
    found = function(x, along, dtype=x.dtype)
    return found.flip(along) if reverse else found
