"""Resampling: Resize, one axis at a time, and GridSample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.registry import op

_MODES = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic"}


@op("Resize", literals=(1, 2, 3), since=11)
def resize(
    x: Tensor,
    roi: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Resample to sizes, or by scales."""
    places = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    if sizes:
        wanted, factors = _fitted(x, places, sizes, keep_aspect_ratio_policy)
    else:
        factors = list(scales or ())
        wanted = [math.floor(x.shape[a] * f) for a, f in zip(places, factors, strict=True)]
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    outside: Tensor | None = None
    for i, axis in enumerate(places):
        region = (roi[i], roi[i + len(places)]) if crop and roi else None
        if region is None and factors[i] == 1 and wanted[i] == x.shape[axis]:
            continue
        size = x.shape[axis]
        at = _coordinates(
            size, wanted[i], factors[i], region, coordinate_transformation_mode, x.device
        )
        if mode == "nearest":
            x = x.index_select(axis, _nearest(at, nearest_mode).clamp(0, size - 1))
        else:
            a = cubic_coeff_a if mode == "cubic" else None
            shrink = min(factors[i], 1.0) if antialias else 1.0
            x = _interpolate(x, axis, at, a, shrink, bool(exclude_outside))
        if region is not None:
            beyond = ((at < 0) | (at > size - 1)).reshape(-1, *(1,) * (x.dim() - 1 - axis))
            outside = beyond if outside is None else outside | beyond
    return x if outside is None else torch.where(outside, extrapolation_value, x).to(x.dtype)


@op("Resize", literals=(1,), since=10)
@op("Upsample", literals=(1,))
def upsample(x: Tensor, scales: Sequence[float], *, mode: str = "nearest") -> Tensor:
    """Resample by scales, as it was before opset 11."""
    return resize(
        x, None, scales, mode=mode, nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


def _fitted(
    x: Tensor, places: Sequence[int], sizes: Sequence[int], policy: str
) -> tuple[list[int], list[float]]:
    factors = [size / x.shape[axis] for axis, size in zip(places, sizes, strict=True)]
    if policy == "stretch":
        return list(sizes), factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(factor * x.shape[axis] + 0.5) for axis in places], [factor] * len(factors)


def _coordinates(
    size: int,
    wanted: int,
    factor: float,
    region: tuple[float, float] | None,
    mode: str,
    device: torch.device,
) -> Tensor:
    """Return where each place of the result is in the input."""
    at = torch.arange(wanted, dtype=torch.float64, device=device)
    length = factor * size
    if region is not None:
        begin, end = region
        if wanted == 1:
            return at + 0.5 * (begin + end) * (size - 1)
        return begin * (size - 1) + at * (end - begin) * (size - 1) / (length - 1)
    if mode == "align_corners":
        return at if length == 1 else at * (size - 1) / (length - 1)
    if mode == "asymmetric":
        return at / factor
    if mode == "tf_half_pixel_for_nn":  # in opsets 11 and 12
        return (at + 0.5) / factor
    if mode == "pytorch_half_pixel" and length == 1:
        return at - 0.5
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - wanted / length) + (at + 0.5) / factor - 0.5
    return (at + 0.5) / factor - 0.5


def _nearest(at: Tensor, mode: str) -> Tensor:
    if mode == "round_prefer_floor":
        at = torch.ceil(at - 0.5)
    elif mode == "round_prefer_ceil":
        at = torch.floor(at + 0.5)
    else:
        at = torch.floor(at) if mode == "floor" else torch.ceil(at)
    return at.to(torch.int64)


def _interpolate(
    x: Tensor, axis: int, at: Tensor, a: float | None, shrink: float, exclude: bool
) -> Tensor:
    """Weigh the neighbours along an axis: linearly, or by a cubic of parameter ``a``.

    Args:
        x: The input.
        axis: Along which to interpolate.
        at: (wanted,), where in the input.
        a: The cubic's parameter; None for linear.
        shrink: How much wider the kernel is than one place, inverted; 1 without antialiasing.
        exclude: Give no weight to neighbours outside of the input; else they repeat its ends.
    """
    size = x.shape[axis]
    reach = math.ceil((1 if a is None else 2) / shrink)
    steps = torch.arange(1 - reach, 1 + reach, device=x.device)
    neighbours = torch.floor(at).to(torch.int64).unsqueeze(1) + steps
    distance = (shrink * (neighbours - at.unsqueeze(1))).abs()
    weights = (1 - distance).clamp(min=0) if a is None else _cubic(distance, a)
    if exclude:
        weights = torch.where((neighbours < 0) | (neighbours >= size), 0, weights)
    weights = weights / weights.sum(1, keepdim=True)
    found = x.index_select(axis, neighbours.clamp(0, size - 1).reshape(-1))
    found = found.unflatten(axis, neighbours.shape)
    shape = (*neighbours.shape, *(1,) * (x.dim() - 1 - axis))
    return (found * weights.reshape(shape).to(x.dtype)).sum(axis + 1)


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0))


@op("GridSample")
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """Sample images or volumes at places given in units of their half size."""
    return functional.grid_sample(
        x, grid, _MODES.get(mode, mode), padding_mode, bool(align_corners)
    )


@op("AffineGrid", literals=(1,))
def affine_grid(theta: Tensor, size: Sequence[int], *, align_corners: int = 0) -> Tensor:
    """Return the places that an affine map gives, for GridSample."""
    return functional.affine_grid(theta, list(size), bool(align_corners))
