"""Numeric traits of operators: which add, scale or multiply, and which count positions.

They are coarser than views: they say where a number may come from and go, not which element it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from tieops.ir.operators.identity import is_of_runtime, is_standard, operator_name

__all__ = [
    "batch_axes",
    "counts_positions",
    "factors_of",
    "is_elementwise",
    "is_multiplication",
    "is_negation",
    "is_product",
    "is_pure",
    "is_quantizer",
    "is_sinusoid",
    "is_subtraction",
    "is_sum",
    "is_unknown",
    "normalizes_alone",
    "reads_type_alone",
    "vector_role",
]

_ELEMENTWISE = frozenset(("Add", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Sum"))
_PRODUCTS = frozenset((
    "Einsum", "Gemm", "MatMul", "com.microsoft.FusedGemm", "com.microsoft.FusedMatMul",
))  # fmt: skip
_FACTORS = {
    **dict.fromkeys(_PRODUCTS, (0, 1)),
    **dict.fromkeys(("MatMulInteger", "com.microsoft.MatMulNBits"), (0, 1)),
    "QLinearMatMul": (0, 3),
}
_POSITIONS = frozenset(("CumSum", "NonZero", "Shape", "Size"))
_LIKE = {"CastLike": 1, "EyeLike": 0, "RandomNormalLike": 0, "RandomUniformLike": 0}
"""By operator, the input whose type and shape it takes, and none of its elements."""
_WITH_CACHES = frozenset((
    "com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention",
    "com.microsoft.QuickGelu", "com.microsoft.RotaryEmbedding",
))  # fmt: skip
_QUANTIZERS = frozenset((
    "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "com.microsoft.DequantizeLinear",
    "com.microsoft.QuantizeLinear",
))  # fmt: skip
_VECTOR_ROLES = {"Add": "bias", "Mul": "weight"}


def is_elementwise(node: onnx_ir.Node) -> bool:
    """Return whether a node adds, scales or compares its inputs element by element."""
    return operator_name(node) in _ELEMENTWISE


def is_product(node: onnx_ir.Node) -> bool:
    """Return whether a node multiplies matrices of floats."""
    return operator_name(node) in _PRODUCTS


def factors_of(node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None]:
    """Return the two matrices that a node multiplies, quantized ones too; nothing if it does not.

    Example:
        >>> x, w = onnx_ir.Value(name="x"), onnx_ir.Value(name="w")
        >>> [each.name for each in factors_of(onnx_ir.node("MatMulInteger", [x, w]))]
        ['x', 'w']
    """
    places = _FACTORS.get(operator_name(node), ())
    return [node.inputs[place] for place in places if place < len(node.inputs)]


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
    return operator_name(node) in ("Add", "Sub")


def is_subtraction(node: onnx_ir.Node) -> bool:
    """Return whether a node subtracts one value from another."""
    return operator_name(node) == "Sub"


def is_multiplication(node: onnx_ir.Node) -> bool:
    """Return whether a node multiplies two values element by element."""
    return operator_name(node) == "Mul"


def is_negation(node: onnx_ir.Node) -> bool:
    """Return whether a node changes the sign of its input."""
    return operator_name(node) == "Neg"


def is_sinusoid(node: onnx_ir.Node) -> bool:
    """Return whether a node takes the sine or the cosine."""
    return operator_name(node) in ("Cos", "Sin")


def counts_positions(node: onnx_ir.Node) -> bool:
    """Return whether a node's result counts elements or says where they are."""
    return operator_name(node) in _POSITIONS


def reads_type_alone(node: onnx_ir.Node, index: int) -> bool:
    """Return whether a node takes the type or the shape of an input, and none of its elements."""
    return _LIKE.get(operator_name(node)) == index


def is_quantizer(node: onnx_ir.Node) -> bool:
    """Return whether a node turns numbers into fewer bits, or back, by a scale."""
    return operator_name(node) in _QUANTIZERS


def is_unknown(node: onnx_ir.Node) -> bool:
    """Return whether this is somebody's own operator, of which nothing is known.

    Those of ONNX Runtime that take sines, cosines and scales beside weights are known.
    """
    return not is_standard(node) and operator_name(node) not in _WITH_CACHES


def is_pure(node: onnx_ir.Node) -> bool:
    """Return whether a node computes its outputs from its inputs alone, as far as is known.

    Somebody's own operator may read anything.
    """
    return is_of_runtime(node)


def normalizes_alone(node: onnx_ir.Node) -> bool:
    """Return whether exporters use a node to normalize groups, and scale its result after it."""
    return operator_name(node) == "InstanceNormalization"


def vector_role(node: onnx_ir.Node) -> str:
    """Return what a stored vector is that this node reads beside data: a bias, a gain or nothing.

    Example:
        >>> x, b = onnx_ir.Value(name="x"), onnx_ir.Value(name="b")
        >>> vector_role(onnx_ir.node("Add", [x, b])), vector_role(onnx_ir.node("Div", [x, b]))
        ('bias', '')
    """
    return _VECTOR_ROLES.get(operator_name(node), "")
