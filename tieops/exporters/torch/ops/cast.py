"""Casts, by value or by bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tieops.exporters.torch.ops.registry import op

_FLOAT8 = (
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
)  # fmt: skip


@op("Cast", since=6)
def cast(x: Tensor, *, to: torch.dtype, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Convert values; those too large for an 8-bit float become its largest, or not a number."""
    if to in _FLOAT8 and x.is_floating_point():
        return _to_float8(x, to, bool(saturate))
    if x.is_floating_point() and not (to.is_floating_point or to.is_complex or to == torch.bool):
        # By way of the widest integer: what is outside of a narrower one wraps everywhere alike.
        return x.to(torch.int64).to(to)
    return x.to(to)


def _to_float8(x: Tensor, to: torch.dtype, saturate: bool) -> Tensor:
    wide, edge = x.to(torch.float32), torch.finfo(to).max
    if not saturate:
        # What rounds to more than the largest number; torch takes the largest then.
        ulp = torch.finfo(to).eps * 2.0 ** math.floor(math.log2(edge))
        beyond = wide.abs() > edge + ulp / 2
        return torch.where(beyond & (to == torch.float8_e4m3fn), torch.nan, wide).to(to)
    return torch.where(wide.isnan(), wide, wide.clamp(-edge, edge)).to(to)


@op("CastLike")
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Convert values to the dtype of another tensor."""
    return cast(x, to=target.dtype, saturate=saturate)


@op("BitCast")
def bit_cast(x: Tensor, *, to: torch.dtype) -> Tensor:
    """Take the bits for those of another dtype."""
    return x.contiguous().view(to)
