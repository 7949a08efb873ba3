"""Predicates on nodes, under the names that the other packages use.

They take nodes of an ``onnx_ir`` graph and of a protobuf message alike. Numeric properties of
operators are in ``traits``.
"""

from __future__ import annotations

import onnx_ir

from tieops.ir.operators.identity import Operator, operator_name

__all__ = [
    "is_addition",
    "is_arithmetic",
    "is_cast",
    "is_concat",
    "is_constant_operator",
    "is_convolution",
    "is_cut",
    "is_dequantization",
    "is_gather",
    "is_gemm",
    "is_identity",
    "is_if",
    "is_linear_product",
    "is_lookup",
    "is_loop",
    "is_matmul",
    "is_permutation",
    "is_plain_product",
    "is_random",
    "is_range",
    "is_recurrent",
    "is_reshape",
    "is_reshaping",
    "is_running_statistic",
    "is_scan",
    "is_shape",
    "is_size_query",
    "is_slice",
    "is_split",
    "is_transpose",
    "is_view",
    "keeps_integers",
    "only_moves",
    "says_little",
    "takes_scalar_axes",
]

_CUTS = frozenset(("Slice", "Split"))
_PERMUTATIONS = frozenset(("Identity", "Transpose"))
_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
_CONVERSIONS = frozenset(("Cast", "DequantizeLinear"))
_VIEWS = _CUTS | _PERMUTATIONS | _RESHAPES | _CONVERSIONS
_MOVES = _CUTS | _PERMUTATIONS | _RESHAPES | {"Concat"}
_LINEAR_PRODUCTS = frozenset(("Gemm", "MatMul", "MatMulInteger", "com.microsoft.FusedMatMul"))
_RANDOM = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
))  # fmt: skip
_LITTLE = frozenset((
    "Shape", "Size", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Transpose",
    "Identity", "Cast", "CastLike", "Slice", "Split", "Concat", "Gather", "GatherND",
    "GatherElements", "Where", "Range", "ConstantOfShape",
))  # fmt: skip


# What moves elements.


def is_view(node: Operator) -> bool:
    """Return whether a node only moves, casts or dequantizes the elements of its first input.

    Example:
        >>> is_view(onnx_ir.node("Slice", [None])), is_view(onnx_ir.node("Relu", [None]))
        (True, False)
    """
    return operator_name(node) in _VIEWS


def only_moves(node: Operator) -> bool:
    """Return whether a node moves elements and changes none: a view without casts, or a Concat."""
    return operator_name(node) in _MOVES


def is_cut(node: Operator) -> bool:
    """Return whether a node takes regular blocks of its first input and may leave elements out."""
    return operator_name(node) in _CUTS


def is_permutation(node: Operator) -> bool:
    """Return whether a node at most permutes the axes of its input."""
    return operator_name(node) in _PERMUTATIONS


def is_transpose(node: Operator) -> bool:
    """Return whether a node is a Transpose."""
    return operator_name(node) == "Transpose"


def is_reshaping(node: Operator) -> bool:
    """Return whether a node gives the same elements, in the same order, another shape."""
    return operator_name(node) in _RESHAPES


def is_reshape(node: Operator) -> bool:
    """Return whether a node is a Reshape."""
    return operator_name(node) == "Reshape"


def is_identity(node: Operator) -> bool:
    """Return whether a node only gives a value another name."""
    return operator_name(node) == "Identity"


def is_split(node: Operator) -> bool:
    """Return whether a node is a Split."""
    return operator_name(node) == "Split"


def is_slice(node: Operator) -> bool:
    """Return whether a node is a Slice."""
    return operator_name(node) == "Slice"


def is_cast(node: Operator) -> bool:
    """Return whether a node is a Cast."""
    return operator_name(node) == "Cast"


def is_concat(node: Operator) -> bool:
    """Return whether a node joins tensors along an axis."""
    return operator_name(node) == "Concat"


def takes_scalar_axes(node: Operator) -> bool:
    """Return whether runtimes allow the operand of a node to be a scalar: Squeeze, Unsqueeze."""
    return operator_name(node) in ("Squeeze", "Unsqueeze")


def keeps_integers(node: Operator) -> bool:
    """Return whether a node does the same to narrow integers that are held in wider ones."""
    return is_view(node) or only_moves(node) or is_lookup(node)


# What computes with learnables.


def is_matmul(node: Operator) -> bool:
    """Return whether a node is a MatMul."""
    return operator_name(node) == "MatMul"


def is_gemm(node: Operator) -> bool:
    """Return whether a node is a Gemm, which transposes and adds a bias by itself."""
    return operator_name(node) == "Gemm"


def is_plain_product(node: Operator) -> bool:
    """Return whether a node multiplies matrices of floats: MatMul or Gemm."""
    return is_matmul(node) or is_gemm(node)


def is_linear_product(node: Operator) -> bool:
    """Return whether a node is a product that an Add may complete to a Linear layer."""
    return operator_name(node) in _LINEAR_PRODUCTS


def is_convolution(node: Operator) -> bool:
    """Return whether a node is a plain Conv."""
    return operator_name(node) == "Conv"


def is_addition(node: Operator) -> bool:
    """Return whether a node is an Add."""
    return operator_name(node) == "Add"


def is_arithmetic(op_type: str) -> bool:
    """Return whether an operator computes with two tensors element by element: + - * /."""
    return op_type in ("Add", "Sub", "Mul", "Div")


def is_gather(node: Operator) -> bool:
    """Return whether a node is a Gather."""
    return operator_name(node) == "Gather"


def is_lookup(node: Operator) -> bool:
    """Return whether a node takes rows of its first input by ids: a Gather or a GatherND."""
    return operator_name(node) in ("Gather", "GatherND")


def is_recurrent(node: Operator) -> bool:
    """Return whether a node is an LSTM, a GRU or an RNN."""
    return operator_name(node) in ("LSTM", "GRU", "RNN")


def is_running_statistic(node: Operator, index: int) -> bool:
    """Return whether an input is a running mean or variance, which a forward pass may write."""
    return operator_name(node) == "BatchNormalization" and index in (3, 4)


def is_dequantization(node: Operator) -> bool:
    """Return whether a node is a DequantizeLinear."""
    return operator_name(node) == "DequantizeLinear"


# Constants, sizes, chance.


def is_constant_operator(node: Operator) -> bool:
    """Return whether a node is a Constant, in whatever attribute it holds its value."""
    return operator_name(node) == "Constant"


def is_shape(node: Operator) -> bool:
    """Return whether a node is a Shape."""
    return operator_name(node) == "Shape"


def is_size_query(node: Operator) -> bool:
    """Return whether a node reads the sizes of its input alone: Shape or Size."""
    return operator_name(node) in ("Shape", "Size")


def is_range(node: Operator) -> bool:
    """Return whether a node is a Range."""
    return operator_name(node) == "Range"


def is_random(node: onnx_ir.Node) -> bool:
    """Return whether a node draws random numbers: a Dropout does if it is training, or might be.

    Example:
        >>> is_random(onnx_ir.node("RandomNormal", [])), is_random(onnx_ir.node("Dropout", [None]))
        (True, False)
    """
    if operator_name(node) != "Dropout":
        return operator_name(node) in _RANDOM
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return False  # off by default (since opset 7, before which nobody exports today)
    tensor = None if mode.is_graph_input() else onnx_ir.convenience.get_const_tensor(mode)
    return tensor is None or bool(tensor.numpy().any())


def says_little(op_type: str) -> bool:
    """Return whether an operator tells little about a model: it moves elements, or reads sizes."""
    return op_type in _LITTLE


# Control flow.


def is_if(node: Operator) -> bool:
    """Return whether a node is an If."""
    return operator_name(node) == "If"


def is_loop(node: Operator) -> bool:
    """Return whether a node is a Loop."""
    return operator_name(node) == "Loop"


def is_scan(node: Operator) -> bool:
    """Return whether a node is a Scan."""
    return operator_name(node) == "Scan"
