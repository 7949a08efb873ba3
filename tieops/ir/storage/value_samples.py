"""Sample the values of a stored tensor: whether it is constant, or a mask."""

from __future__ import annotations

import numpy as np
import onnx_ir

from tieops.ir.storage.ranged_tensors import RangedTensor, elements_at
from tieops.ir.view import Shape

__all__ = ["is_mask", "is_uniform"]

MAX_VECTOR = 1 << 20
"""Vectors up to this size are looked at, where only their values tell a mask from a bias."""
MASKING = -1e3
"""What masks add is this or less; a masked score is gone after a softmax."""


def is_uniform(value: onnx_ir.Value, wanted: float | None = None) -> bool:
    """Return whether every element of a stored tensor is the same number.

    A few elements decide for most tensors. Of one that lies in a remote file no more is read, and
    it counts as not uniform.

    Args:
        value: What is stored.
        wanted: The number; any if left out.
    """
    tensor = value.const_value
    if tensor is None or not tensor.size or tensor.dtype == onnx_ir.DataType.STRING:
        return False
    shape = tensor.shape.numpy()
    ends = [np.array([0, size - 1, size // 2]) for size in shape]
    few = np.asarray(elements_at(tensor, ends)).reshape(-1)
    if not (few == few[0]).all() or (wanted is not None and float(few[0]) != wanted):
        return False
    if isinstance(tensor, RangedTensor) and not (tensor.is_small or tensor.is_read):
        return False
    return bool((tensor.numpy() == few[0]).all())


def is_mask(shape: Shape, value: onnx_ir.Value, *, keeps: float) -> bool:
    """Return whether a row does nothing but shut places out, or nothing at all: a mask.

    A vector of one axis needs no look at its values: masks have the axes of what they mask.
    """
    if len(shape) < 2 or shape[-1] == 1 or value.const_value is None:
        return False
    if value.const_value.size > MAX_VECTOR:
        return False
    found = np.unique(value.const_value.numpy().astype(np.float64))
    shut = found[found != keeps]
    if keeps:
        return found.size == 2 and shut.tolist() == [0.0]
    return not shut.size or (shut.size == 1 and bool(shut[0] <= MASKING))
