"""Questions about what a node is, by the names that the rest asks under.

They take nodes of a graph and those of a protobuf message.
"""

from __future__ import annotations

from typing import Protocol

import onnx_ir

__all__ = [
    "Operator",
    "is_addition",
    "is_arithmetic",
    "is_cast",
    "is_concat",
    "is_constant_operator",
    "is_convolution",
    "is_cut",
    "is_dequantization",
    "is_gemm",
    "is_if",
    "is_linear_product",
    "is_lookup",
    "is_loop",
    "is_matmul",
    "is_matrix_product",
    "is_permutation",
    "is_quantization",
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
    "is_standard",
    "is_transpose",
    "is_view",
    "keeps_integers",
    "only_moves",
    "says_little",
    "takes_scalar_axes",
]

STANDARD_DOMAINS = ("", "ai.onnx")


class Operator(Protocol):
    """What has an operator: a node of a graph, or of a protobuf message."""

    @property
    def op_type(self) -> str:
        """The operator's name."""
        ...

    @property
    def domain(self) -> str:
        """The domain that the name is of."""
        ...


_CUTS = frozenset(("Slice", "Split"))
_PERMUTATIONS = frozenset(("Identity", "Transpose"))
_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
_CONVERSIONS = frozenset(("Cast", "DequantizeLinear"))
_VIEWS = _CUTS | _PERMUTATIONS | _RESHAPES | _CONVERSIONS
_MOVES = _CUTS | _PERMUTATIONS | _RESHAPES | {"Concat"}
_RANDOM = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
))  # fmt: skip
_LITTLE = frozenset((
    "Shape", "Size", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Transpose",
    "Identity", "Cast", "CastLike", "Slice", "Split", "Concat", "Gather", "GatherND",
    "GatherElements", "Where", "Range", "ConstantOfShape",
))  # fmt: skip


def is_standard(node: Operator) -> bool:
    """Return whether a node is of ONNX's own domain."""
    return node.domain in STANDARD_DOMAINS


def _is_one_of(node: Operator, *names: str) -> bool:
    return node.op_type in names and node.domain in STANDARD_DOMAINS


# What moves elements.


def is_view(node: Operator) -> bool:
    """Return whether a node only moves, casts or dequantizes the elements of its first input.

    Example:
        >>> is_view(onnx_ir.node("Slice", [None])), is_view(onnx_ir.node("Relu", [None]))
        (True, False)
    """
    return node.op_type in _VIEWS and is_standard(node)


def only_moves(node: Operator) -> bool:
    """Return whether a node moves elements and changes none: a view without casts, or a Concat."""
    return node.op_type in _MOVES and is_standard(node)


def is_cut(node: Operator) -> bool:
    """Return whether a node takes regular blocks of its first input and may leave elements out."""
    return node.op_type in _CUTS and is_standard(node)


def is_permutation(node: Operator) -> bool:
    """Return whether a node at most permutes the axes of its input."""
    return node.op_type in _PERMUTATIONS and is_standard(node)


def is_transpose(node: Operator) -> bool:
    """Return whether a node is a Transpose."""
    return _is_one_of(node, "Transpose")


def is_reshaping(node: Operator) -> bool:
    """Return whether a node gives the same elements, in the same order, another shape."""
    return node.op_type in _RESHAPES and is_standard(node)


def is_reshape(node: Operator) -> bool:
    """Return whether a node is a Reshape."""
    return _is_one_of(node, "Reshape")


def is_slice(node: Operator) -> bool:
    """Return whether a node is a Slice."""
    return _is_one_of(node, "Slice")


def is_cast(node: Operator) -> bool:
    """Return whether a node is a Cast."""
    return _is_one_of(node, "Cast")


def is_concat(node: Operator) -> bool:
    """Return whether a node joins tensors along an axis."""
    return _is_one_of(node, "Concat")


def takes_scalar_axes(node: Operator) -> bool:
    """Return whether runtimes allow the operand of a node to be a scalar: Squeeze, Unsqueeze."""
    return _is_one_of(node, "Squeeze", "Unsqueeze")


def keeps_integers(node: Operator) -> bool:
    """Return whether a node does the same to narrow integers that are held in wider ones."""
    return is_view(node) or only_moves(node) or is_lookup(node)


# What computes with learnables.


def is_matmul(node: Operator) -> bool:
    """Return whether a node is a MatMul."""
    return _is_one_of(node, "MatMul")


def is_gemm(node: Operator) -> bool:
    """Return whether a node is a Gemm, which transposes and adds a bias by itself."""
    return _is_one_of(node, "Gemm")


def is_matrix_product(node: Operator) -> bool:
    """Return whether a node multiplies matrices of floats: MatMul or Gemm."""
    return is_matmul(node) or is_gemm(node)


def is_linear_product(node: Operator) -> bool:
    """Return whether a node is a product that an Add may complete to a Linear layer."""
    return node.op_type in ("MatMul", "FusedMatMul", "MatMulInteger", "Gemm")


def is_convolution(node: Operator) -> bool:
    """Return whether a node is a plain Conv."""
    return _is_one_of(node, "Conv")


def is_addition(node: Operator) -> bool:
    """Return whether a node is an Add."""
    return _is_one_of(node, "Add")


def is_arithmetic(op_type: str) -> bool:
    """Return whether an operator computes with two tensors element by element: + - * /."""
    return op_type in ("Add", "Sub", "Mul", "Div")


def is_lookup(node: Operator) -> bool:
    """Return whether a node takes rows of its first input by ids: a Gather."""
    return _is_one_of(node, "Gather")


def is_recurrent(node: Operator) -> bool:
    """Return whether a node is an LSTM, a GRU or an RNN."""
    return _is_one_of(node, "LSTM", "GRU", "RNN")


def is_running_statistic(node: Operator, index: int) -> bool:
    """Return whether an input is a running mean or variance, which a forward pass may write."""
    return _is_one_of(node, "BatchNormalization") and index in (3, 4)


def is_dequantization(node: Operator) -> bool:
    """Return whether a node is a DequantizeLinear."""
    return _is_one_of(node, "DequantizeLinear")


def is_quantization(node: Operator) -> bool:
    """Return whether a node quantizes, dequantizes, or computes with quantized numbers."""
    name = node.op_type
    return "Quantize" in name or name.startswith("QLinear") or name.endswith("Integer")


# Constants, sizes, chance.


def is_constant_operator(node: Operator) -> bool:
    """Return whether a node is a Constant, in whatever attribute it holds its value."""
    return _is_one_of(node, "Constant")


def is_shape(node: Operator) -> bool:
    """Return whether a node is a Shape."""
    return _is_one_of(node, "Shape")


def is_size_query(node: Operator) -> bool:
    """Return whether a node reads the sizes of its input alone: Shape or Size."""
    return _is_one_of(node, "Shape", "Size")


def is_range(node: Operator) -> bool:
    """Return whether a node is a Range."""
    return _is_one_of(node, "Range")


def is_random(node: onnx_ir.Node) -> bool:
    """Return whether a node draws random numbers: a Dropout does if it is training, or might be.

    Example:
        >>> is_random(onnx_ir.node("RandomNormal", [])), is_random(onnx_ir.node("Dropout", [None]))
        (True, False)
    """
    if not _is_one_of(node, "Dropout"):
        return node.op_type in _RANDOM and is_standard(node)
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
    return _is_one_of(node, "If")


def is_loop(node: Operator) -> bool:
    """Return whether a node is a Loop."""
    return _is_one_of(node, "Loop")


def is_scan(node: Operator) -> bool:
    """Return whether a node is a Scan."""
    return _is_one_of(node, "Scan")
