"""Indexing with data: gathers, scatters and sorts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.literals import one
from tieops.exporters.torch.ops.registry import op

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Return indices counted from the start; ONNX counts negative ones from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@op("Gather", scalars=(1,))
def gather(
    x: Tensor, indices: Tensor | int, *, axis: int = 0, padding_idx: int | None = None
) -> Tensor:
    """Take entries along an axis; rows of a matrix as an embedding does, which trains fast.

    The row ``padding_idx`` gets no gradient; ONNX has no such thing, from_torch notes it. A row
    that the table does not have, which a file may note, means nothing.
    """
    if not isinstance(indices, Tensor):
        return x.select(axis, int(indices))
    axis = axis % x.dim()
    places = _from_start(indices, x.shape[axis])
    if axis == 0 and x.dim() == 2:
        known = padding_idx is not None and padding_idx < x.shape[0]
        return functional.embedding(places, x, padding_idx if known else None)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@op("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Take one entry along an axis for each element of ``indices``."""
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


@op("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Take the entries whose leading places the last axis of ``indices`` holds."""
    places = indices.to(torch.int64).unbind(-1)
    if not batch_dims:
        return x[places]
    batch = torch.Size(x.shape[:batch_dims])
    rest = indices.dim() - 1 - batch_dims
    grids = [
        torch.arange(size, device=x.device).reshape(-1, *(1,) * (batch_dims - 1 - i + rest))
        for i, size in enumerate(batch)
    ]
    return x[(*grids, *places)]


@op("ScatterElements", "Scatter")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Write one entry along an axis for each element of ``indices``."""
    places = _from_start(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])


@op("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Write entries at the leading places that the last axis of ``indices`` holds."""
    places = tuple(_from_start(p, x.shape[i]) for i, p in enumerate(indices.unbind(-1)))
    if reduction in ("none", "add"):
        return x.index_put(places, updates, accumulate=reduction == "add")
    # One number a place, so that several updates of one place meet there.
    leading = x.shape[: len(places)]
    flat = torch.zeros_like(places[0])
    for place, size in zip(places, leading, strict=True):
        flat = flat * size + place
    rows = x.reshape(-1, *x.shape[len(places) :])
    values = updates.reshape(flat.numel(), *rows.shape[1:])
    index = flat.reshape(-1, *(1,) * (rows.dim() - 1)).expand_as(values)
    return rows.scatter_reduce(0, index, values, _REDUCTIONS[reduction]).reshape(x.shape)


@op("TensorScatter")
def tensor_scatter(
    past: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """Write a run of entries into a cache along an axis, beginning at one place for each batch."""
    axis = axis % past.dim()
    steps = torch.arange(update.shape[axis], device=past.device)
    places = steps.expand(past.shape[0], -1)
    if write_indices is not None:
        places = places + write_indices.unsqueeze(1)
    if mode == "circular":
        places = places % past.shape[axis]
    shape = [past.shape[0]] + [1] * (past.dim() - 1)
    shape[axis] = update.shape[axis]
    return past.scatter(axis, places.reshape(shape).expand_as(update), update)


@op("TopK", literals=(1,), many=True)
def top_k(
    x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the k largest or smallest and where they are; of equals the first."""
    count = one(k)
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@op("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """Return where elements are not zero, one row an axis."""
    return torch.nonzero(x).t()


@op("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """Keep entries where a condition holds; elements of the flattened input without an axis."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@op("OneHot", literals=(1,))
def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    """Return ``values[1]`` where an axis of size ``depth`` is at the index, else ``values[0]``."""
    count = int(one(depth))
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    shape = [1] * (indices.dim() + 1)
    shape[axis] = count
    places = torch.arange(count, device=indices.device).reshape(shape)
    wanted = _from_start(indices, count).unsqueeze(axis)
    return torch.where(places == wanted, values[1], values[0])


@op("Unique", many=True)
def unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what is there without repeats, where it was first, what it became, and how often."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    found, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = torch.argsort(first)
        found, first, counts = found.index_select(axis, order), first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return found, first, inverse, counts
