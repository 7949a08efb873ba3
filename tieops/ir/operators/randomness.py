"""Which operators draw random numbers."""

from __future__ import annotations

import onnx_ir

__all__ = ["is_random"]

_RANDOM_OPERATORS = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
))  # fmt: skip


def is_random(node: onnx_ir.Node) -> bool:
    """Return whether a node draws random numbers: a Dropout does if it is training, or might be.

    Example:
        >>> is_random(onnx_ir.node("RandomNormal", [])), is_random(onnx_ir.node("Dropout", [None]))
        (True, False)
    """
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type != "Dropout":
        return node.op_type in _RANDOM_OPERATORS
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return False  # off by default (since opset 7, before which nobody exports today)
    tensor = onnx_ir.convenience.get_const_tensor(mode)
    return tensor is None or bool(tensor.numpy().any())
