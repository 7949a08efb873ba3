"""What an operator makes of numbers: which pass them on, which add and scale, which count places.

Coarser than views: these say where a number may come from and go to, not which element is which.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from tieops.ir.operators.predicates import is_standard

__all__ = [
    "batch_axes",
    "counts_places",
    "differs",
    "is_copy",
    "is_elementwise",
    "is_lookup",
    "is_negation",
    "is_product",
    "is_quantizer",
    "is_sinusoid",
    "is_sum",
    "is_unknown",
    "normalizes_alone",
    "passes_on",
    "scales",
    "vector_role",
]

_PASSING = frozenset((
    "Cast", "CastLike", "Concat", "Dropout", "Expand", "Flatten", "Identity", "Pad", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))  # fmt: skip
_ELEMENTWISE = frozenset(("Add", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Sum"))
_PRODUCTS = frozenset(("Einsum", "FusedMatMul", "Gemm", "MatMul"))
_PLACES = frozenset(("CumSum", "NonZero", "Shape", "Size"))
_WITH_CACHES = frozenset((
    "GroupQueryAttention", "MultiHeadAttention", "QuickGelu", "RotaryEmbedding",
))  # fmt: skip
_VECTOR_ROLES = {"Add": "bias", "Mul": "weight"}


def passes_on(node: onnx_ir.Node) -> bool:
    """Return whether a node's result holds its input's numbers, moved, repeated or cast."""
    return node.op_type in _PASSING


def is_elementwise(node: onnx_ir.Node) -> bool:
    """Return whether a node adds, scales or compares its inputs element by element."""
    return node.op_type in _ELEMENTWISE


def is_product(node: onnx_ir.Node) -> bool:
    """Return whether a node multiplies matrices."""
    return node.op_type in _PRODUCTS


def is_lookup(node: onnx_ir.Node) -> bool:
    """Return whether a node reads rows of a table by number."""
    return node.op_type in ("Gather", "GatherND")


def batch_axes(node: onnx_ir.Node, index: int, shape: Sequence[int]) -> int:
    """Return how many axes of a product's operand pair up with the other's and are kept.

    A weight of experts or heads has one; what is computed for each row of a batch has more.

    Args:
        node: A product of matrices.
        index: Which of its first two inputs.
        shape: That input's shape.
    """
    attribute = node.attributes.get("equation")
    if attribute is None:
        return sum(size > 1 for size in shape[:-2])
    if attribute.is_ref():
        return 0
    equation = attribute.as_string()
    left, _, kept = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if index >= len(operands) or len(operands[index]) != len(shape):
        return 0  # with an ellipsis: its axes are not known from here
    others = "".join(each for place, each in enumerate(operands) if place != index)
    labels = zip(operands[index], shape, strict=True)
    return sum(size > 1 and label in others and label in kept for label, size in labels)


def is_sum(node: onnx_ir.Node) -> bool:
    """Return whether a node adds or subtracts two values."""
    return node.op_type in ("Add", "Sub")


def differs(node: onnx_ir.Node) -> bool:
    """Return whether a node subtracts one value from another."""
    return node.op_type == "Sub"


def scales(node: onnx_ir.Node) -> bool:
    """Return whether a node multiplies two values element by element."""
    return node.op_type == "Mul"


def is_negation(node: onnx_ir.Node) -> bool:
    """Return whether a node changes the sign of its input."""
    return node.op_type == "Neg"


def is_sinusoid(node: onnx_ir.Node) -> bool:
    """Return whether a node takes the sine or the cosine."""
    return node.op_type in ("Cos", "Sin")


def counts_places(node: onnx_ir.Node) -> bool:
    """Return whether a node's result counts elements or says where they are."""
    return node.op_type in _PLACES


def is_copy(node: onnx_ir.Node) -> bool:
    """Return whether a node only gives a value another name."""
    return node.op_type == "Identity"


def is_quantizer(node: onnx_ir.Node) -> bool:
    """Return whether a node turns numbers into fewer bits, or back, by a scale."""
    return node.op_type in ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear")


def is_unknown(node: onnx_ir.Node) -> bool:
    """Return whether this is somebody's own operator, of which nothing is known.

    Those of ONNX Runtime that take sines, cosines and scales beside weights are known.
    """
    return not is_standard(node) and node.op_type not in _WITH_CACHES


def normalizes_alone(node: onnx_ir.Node) -> bool:
    """Return whether exporters use a node to normalize groups, and scale its result after it."""
    return node.op_type == "InstanceNormalization"


def vector_role(node: onnx_ir.Node) -> str:
    """Return what a stored vector is that this node reads beside data: a bias, a gain or nothing.

    Example:
        >>> x, b = onnx_ir.Value(name="x"), onnx_ir.Value(name="b")
        >>> vector_role(onnx_ir.node("Add", [x, b])), vector_role(onnx_ir.node("Div", [x, b]))
        ('bias', '')
    """
    return _VECTOR_ROLES.get(node.op_type, "")
