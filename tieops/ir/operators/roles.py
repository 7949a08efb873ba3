"""Learnable inputs of operators, and the field's names for their roles.

The source for the standard domain is the ONNX operator reference; ``fused_roles`` has ONNX
Runtime's own operators.
"""

from __future__ import annotations

import functools

import onnx
import onnx_ir

from tieops.ir.operators.fused_roles import FUSED
from tieops.ir.operators.identity import Operator, operator_name

__all__ = [
    "GATE_ORDERS",
    "is_learnable_role",
    "is_statistic",
    "kind_of",
    "learnable_role",
    "role_of",
]

_NORM = {1: "weight", 2: "bias"}
_RECURRENT = {1: "weight", 2: "recurrent_weight", 3: "bias"}

_KINDS: dict[str, tuple[str, dict[int, str]]] = {
    "Gemm": ("Linear", {0: "weight", 1: "weight", 2: "bias"}),
    "MatMul": ("Linear", {0: "weight", 1: "weight"}),
    "MatMulInteger": ("Linear", {0: "weight", 1: "weight", 2: "zero_point", 3: "zero_point"}),
    "QLinearMatMul": ("Linear", {0: "weight", 3: "weight", 4: "weight_scale"}),
    "Gather": ("Embedding", {0: "weight"}),
    "Conv": ("Conv", {0: "weight", 1: "weight", 2: "bias"}),
    "ConvInteger": ("Conv", {1: "weight", 3: "zero_point"}),
    "QLinearConv": ("Conv", {3: "weight", 4: "weight_scale", 5: "zero_point", 8: "bias"}),
    "DeformConv": ("Conv", {1: "weight", 3: "bias"}),
    "CausalConvWithState": ("Conv", {1: "weight", 2: "bias"}),
    "ConvTranspose": ("ConvTranspose", {1: "weight", 2: "bias"}),
    "LSTM": ("LSTM", {**_RECURRENT, 7: "peephole"}),
    "GRU": ("GRU", _RECURRENT),
    "RNN": ("RNN", _RECURRENT),
    "LayerNormalization": ("LayerNorm", _NORM),
    "SimplifiedLayerNormalization": ("RMSNorm", {1: "weight"}),
    "RMSNormalization": ("RMSNorm", {1: "weight"}),
    "GroupNormalization": ("GroupNorm", _NORM),
    "InstanceNormalization": ("InstanceNorm", _NORM),
    "BatchNormalization": ("BatchNorm", {**_NORM, 3: "running_mean", 4: "running_var"}),
    "PRelu": ("PRelu", {1: "weight"}),
    "DequantizeLinear": ("DequantizeLinear", {0: "weight", 1: "scale", 2: "zero_point"}),
    **FUSED,
}
"""Operator to (kind of layer, input index to role)."""

GATE_ORDERS = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Which of torch's gates is the first, second... of ONNX's: i f g o -> i o f c; r z n -> z r h."""


def kind_of(node: Operator) -> str | None:
    """Return the kind of learnable layer that this operator is the core of, or None."""
    known = _KINDS.get(operator_name(node))
    return known[0] if known else None


def role_of(node: onnx_ir.Node, index: int) -> str:
    """Return what input ``index`` of ``node`` is: a learnable's role, or the schema's own name.

    Example:
        >>> x, w = onnx_ir.Value(name="x"), onnx_ir.Value(name="w")
        >>> role_of(onnx_ir.node("Gemm", [x, w]), 1), role_of(onnx_ir.node("Mul", [x, w]), 1)
        ('weight', 'b')
    """
    return (
        learnable_role(node, index)
        or _formal_name(node.op_type, node.domain, index)
        or f"input_{index}"
    )


def learnable_role(node: Operator, index: int) -> str | None:
    """Return the role that the operator reference gives an input; None if it is not a learnable."""
    known = _KINDS.get(operator_name(node))
    return known[1].get(index) if known else None


def is_learnable_role(node: Operator, index: int) -> bool:
    """Return whether the operator reference makes this input a learnable."""
    return learnable_role(node, index) is not None


def is_statistic(node: Operator, index: int) -> bool:
    """Return whether an input holds statistics of data, which no gradient changes."""
    return learnable_role(node, index) in ("running_mean", "running_var")


@functools.lru_cache(maxsize=4096)
def _formal_name(op_type: str, domain: str, index: int) -> str | None:
    try:
        schema = onnx.defs.get_schema(op_type, domain=domain)
    except onnx.defs.SchemaError:
        return None
    inputs = schema.inputs
    if not inputs:
        return None
    formal = inputs[min(index, len(inputs) - 1)]
    variadic = formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return f"{formal.name.lower()}_{index}" if variadic else formal.name.lower()
