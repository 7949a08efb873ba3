"""How ONNX Runtime's CUDA provider runs operators: by cuDNN, or on the CPU on purpose."""

from __future__ import annotations

from tieops.ir.operators.predicates import Operator
from tieops.ir.operators.roles import GATE_ORDERS

__all__ = ["NEEDS_CUDNN", "computes_shapes", "is_copied_by_cudnn", "needs_cudnn"]

NEEDS_CUDNN = frozenset(
    {"AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "FusedConv", "GRU",
     "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LRN", "LSTM", "MaxPool", "RNN"}
)  # fmt: skip
"""What CUDA's kernels compute by cuDNN, whatever the sizes. Some reductions need it too."""
_OF_SHAPES = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal",
     "Expand", "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less",
     "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceMax",
     "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterElements", "ScatterND", "Shape",
     "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip


def needs_cudnn(node: Operator) -> bool:
    """Return whether a node cannot run on CUDA without cuDNN."""
    return node.op_type in NEEDS_CUDNN


def is_copied_by_cudnn(node: Operator) -> bool:
    """Return whether cuDNN reads the weights of a node in a copy of its own: a recurrent layer."""
    return node.op_type in GATE_ORDERS


def computes_shapes(node: Operator) -> bool:
    """Return whether a node is arithmetic of shapes, if it runs on the CPU beside CUDA.

    Judged by the operator: CUDA has kernels for all of these, and ONNX Runtime prefers the CPU for
    what only sizes go through.
    """
    return not node.domain and node.op_type in _OF_SHAPES
