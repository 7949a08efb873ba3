"""Sequences of tensors, as Python lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tieops.exporters.torch.ops.literals import one
from tieops.exporters.torch.ops.registry import op
from tieops.exporters.torch.ops.shape import device_of

Tensors = Sequence[Tensor]


@op("SequenceConstruct")
def sequence_construct(*inputs: Tensor) -> list[Tensor]:
    """Make a sequence."""
    return list(inputs)


@op("SequenceEmpty")
def sequence_empty(*, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Make a sequence of nothing."""
    return []


@op("SequenceInsert", literals=(2,))
def sequence_insert(x: Tensors, tensor: Tensor, position: Any = None) -> list[Tensor]:
    """Insert before a position, or at the end."""
    found = list(x)
    found.insert(len(found) if position is None else int(one(position)), tensor)
    return found


@op("SequenceErase", literals=(1,))
def sequence_erase(x: Tensors, position: Any = -1) -> list[Tensor]:
    """Remove one, by default the last."""
    found = list(x)
    del found[int(one(position))]
    return found


@op("SequenceAt", literals=(1,))
def sequence_at(x: Tensors, position: Any) -> Tensor:
    """Take one."""
    return x[int(one(position))]


@op("SequenceLength")
def sequence_length(x: Tensors, *, like: Tensor | None = None) -> Tensor:
    """Count."""
    return torch.tensor(len(x), device=device_of(like))


@op("ConcatFromSequence")
def concat_from_sequence(x: Tensors, *, axis: int, new_axis: int = 0) -> Tensor:
    """Join along an axis, or along a new one."""
    return torch.stack(list(x), axis) if new_axis else torch.cat(list(x), axis)


@op("SplitToSequence", literals=(1,))
def split_to_sequence(
    x: Tensor, split: int | Sequence[int] | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    """Cut into parts of the sizes given, of one size, or of size one."""
    if split is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if keepdims else [part.squeeze(axis) for part in parts]
    return list(torch.split(x, split if isinstance(split, int) else list(split), axis))
