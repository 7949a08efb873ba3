"""Random numbers; ``torch.manual_seed`` replaces a seed in the file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tieops.exporters.torch.ops.registry import op
from tieops.exporters.torch.ops.shape import device_of


@op("RandomNormal")
def random_normal(
    *,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(tuple(shape), dtype=dtype, device=device_of(like)) * scale + mean


@op("RandomUniform")
def random_uniform(
    *,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Return evenly distributed numbers."""
    return torch.rand(tuple(shape), dtype=dtype, device=device_of(like)) * (high - low) + low


@op("RandomNormalLike")
def random_normal_like(
    x: Tensor,
    *,
    dtype: torch.dtype | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Return normally distributed numbers in the shape of a tensor."""
    return torch.randn_like(x, dtype=dtype or x.dtype) * scale + mean


@op("RandomUniformLike")
def random_uniform_like(
    x: Tensor,
    *,
    dtype: torch.dtype | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    """Return evenly distributed numbers in the shape of a tensor."""
    return torch.rand_like(x, dtype=dtype or x.dtype) * (high - low) + low


@op("Bernoulli")
def bernoulli(x: Tensor, *, dtype: torch.dtype | None = None, seed: float | None = None) -> Tensor:
    """Return ones with the probabilities given, zeros otherwise."""
    return torch.bernoulli(x).to(dtype or x.dtype)


@op("Multinomial")
def multinomial(
    x: Tensor,
    *,
    dtype: torch.dtype = torch.int32,
    sample_size: int = 1,
    seed: float | None = None,
) -> Tensor:
    """Draw classes from logarithms of probabilities that need not add up to one."""
    return torch.multinomial(torch.softmax(x, -1), sample_size, replacement=True).to(dtype)
