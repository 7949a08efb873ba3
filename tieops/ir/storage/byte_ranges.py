"""The byte range of a stored tensor, by which two tensors are known to be one."""

from __future__ import annotations

import os
from collections.abc import Hashable

import onnx_ir

from tieops.ir.storage.ranged_tensors import RangedTensor
from tieops.ir.walk import stored_values

__all__ = ["LISTED_WEIGHTS", "OVERRIDABLE_FROM", "storage_key", "stored_bytes"]


OVERRIDABLE_FROM = 4
"""The IR version from which on an input with a stored value is one that a caller may override."""
LISTED_WEIGHTS = "tieops.listed_weights"
"""On a model in memory: the older version that it had, in which all its weights were inputs.

In memory they are none, so that they can be edited; a file that is written lists them again.
"""


def storage_key(tensor: onnx_ir.TensorProtocol) -> Hashable:
    """Return what two tensors have in common if, and only if, they are one range of bytes."""
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return os.path.realpath(tensor.path), tensor.offset or 0, int(tensor.nbytes)
    if isinstance(tensor, RangedTensor):
        return id(tensor.source), tensor.offset, int(tensor.nbytes)
    return id(tensor)


def stored_bytes(model: onnx_ir.Model) -> int:
    """Return the bytes of all stored tensors; those of one range of bytes count once."""
    sizes = {
        storage_key(value.const_value): int(value.const_value.nbytes)
        for value in stored_values(model)
        if value.const_value is not None
    }
    return sum(sizes.values())
