"""Infer output shapes from input shapes, also when one size is about to change.

A rule is exact or raises ``NotKnownError``: if an operand is not known before the run, neither is
the shape. A size is an integer, a symbol, ``None`` if it is unknown, or ``Resized`` for the axis
that a pass is about to resize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir

from tieops.ir.operators.identity import is_standard, operator_name
from tieops.ir.operators.moving_shapes import MOVING_RULES
from tieops.ir.operators.operands import (
    ABSENT,
    Missing,
    has_bound_attributes,
    is_given,
    known_floats,
    known_ints,
    operand,
)
from tieops.ir.operators.predicates import is_gather, is_shape, is_slice
from tieops.ir.operators.sizes import (
    NotKnownError,
    Resized,
    Rule,
    Shapes,
    Size,
    Sizes,
    bound_int,
    broadcast,
    common_size,
    drop_axes,
    existing_axes,
    existing_axis,
    given_ints,
    input_name,
    only_resized,
    sizes_of_input,
)

__all__ = ["output_shapes", "shape_operators", "shows_size"]


def output_shapes(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    """Return the shapes of a node's outputs.

    Args:
        node: The node.
        shapes: Those of its inputs.

    Raises:
        NotKnownError: If they depend on what is not known before the run, if ``Resized`` sizes do
            not fit the others, or if nothing is known about the operator.

    Example:
        >>> x = onnx_ir.Value(name="x")
        >>> output_shapes(onnx_ir.node("Transpose", [x], {"perm": [1, 0]}), [(3, Resized(10, 15))])
        [[Resized(old=10, new=15), 3]]
    """
    rule = _RULES.get(operator_name(node))
    if rule is None:
        raise NotKnownError(
            "shape propagation does not support this operator"
            if is_standard(node)
            else "tieops does not support this operator"
        )
    if not has_bound_attributes(node):
        raise NotKnownError("one of its attributes is set by the call of its function")
    return rule(node, shapes)


def shape_operators() -> frozenset[str]:
    """Return the operators that ``output_shapes`` has a rule for."""
    return frozenset(_RULES)


def _same(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    return [sizes_of_input(shapes)] * len(node.outputs)


def _quantized(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    scale = shapes[1] if len(shapes) > 1 else None
    whole = scale is not None and all(size == 1 for size in scale)
    if not whole and any(isinstance(size, Resized) for size in sizes):
        raise NotKnownError("its scale may have the old size")
    return [sizes]


def _broadcast(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    if "broadcast" in node.attributes or "axis" in node.attributes:
        raise NotKnownError("before opset 7 it broadcasts its second input along an axis")
    return [broadcast(node, shapes)]


def _reduced(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    axes = operand(node, 1, "axes")
    if axes is ABSENT:
        axes = ()
    if isinstance(axes, Missing):
        raise NotKnownError("the axes it reduces are not known")
    gone = existing_axes(axes, len(sizes))
    if not gone and not bound_int(node, "noop_with_empty_axes", 0):
        gone = list(range(len(sizes)))
    return [drop_axes(sizes, gone, keep=bool(bound_int(node, "keepdims", 1)))]


def _arg(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    axis = existing_axis(bound_int(node, "axis", 0), len(sizes))
    return [drop_axes(sizes, [axis], keep=bool(bound_int(node, "keepdims", 1)))]


def _top_k(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    axis = existing_axis(bound_int(node, "axis", -1), len(sizes))
    count = given_ints(node, 1, "k", "how many elements it takes is not known")
    along = sizes[axis]
    most = along.new if isinstance(along, Resized) else along
    if len(count) != 1 or count[0] < 0 or (isinstance(most, int) and count[0] > most):
        raise NotKnownError("it takes more elements than the new size leaves")
    return [[count[0] if at == axis else size for at, size in enumerate(sizes)]] * 2


def _one_hot(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = list(sizes_of_input(shapes))
    depth = known_ints(node.inputs[1]) or known_floats(node.inputs[1])
    if depth is None or len(depth) != 1:
        raise NotKnownError("its number of classes is not known")
    axis = existing_axis(bound_int(node, "axis", -1), len(sizes) + 1)
    return [[*sizes[:axis], int(depth[0]), *sizes[axis:]]]


def _global_pool(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    if any(isinstance(size, Resized) for size in sizes[2:]):
        raise NotKnownError("shape propagation does not support this operator")
    return [[*sizes[:2], *(1 for _ in sizes[2:])]]


def _pool(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    if any(isinstance(size, Resized) for size in sizes[2:]):
        raise NotKnownError("shape propagation does not support this operator")
    return [[*sizes[:2], *(None for _ in sizes[2:])]] * len(node.outputs)


def _resize(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    scales = _scales(node)
    if scales is None or "axes" in node.attributes or len(scales) != len(sizes):
        raise NotKnownError("its resizing is not known")
    return [[_resampled(size, scale) for size, scale in zip(sizes, scales, strict=True)]]


def _scales(node: onnx_ir.Node) -> Sequence[float] | None:
    if "scales" in node.attributes:
        return tuple(node.attributes["scales"].as_floats())
    if is_given(node, 3):
        return None  # by sizes
    index = 2 if len(node.inputs) > 2 else 1
    return known_floats(node.inputs[index]) if is_given(node, index) else None


def _resampled(size: Size, scale: float) -> Size:
    if scale == 1:
        return size
    if isinstance(size, Resized):
        raise NotKnownError("it resizes the axis")
    return None  # the product is rounded in float32


def _einsum(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    found: dict[str, Size] = {}
    if not arrow or "." in equation or len(terms) != len(shapes):
        raise NotKnownError("shape propagation does not support this operator")
    for index, term in enumerate(terms):
        sizes = sizes_of_input(shapes, index)
        if len(term) != len(sizes):
            raise NotKnownError(f"its equation has {len(term)} axes of {input_name(node, index)}")
        for label, size in zip(term, sizes, strict=True):
            found[label] = common_size([found[label], size]) if label in found else size
    return [[found[label] for label in right]]


def _shape(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    return [[len(_picked(node, len(sizes)))]]


def _picked(node: onnx_ir.Node, rank: int) -> range:
    """Return the axes that a Shape gives the sizes of."""
    start, end = bound_int(node, "start", 0), bound_int(node, "end", rank)
    return range(rank)[start:end]


def shows_size(node: onnx_ir.Node, sizes: Sizes) -> bool:
    """Return whether a Shape hands a size that changes on to others.

    Args:
        node: A node that reads a value.
        sizes: The shape of the value.
    """
    axis = next((at for at, size in enumerate(sizes) if isinstance(size, Resized)), None)
    if not is_shape(node) or axis is None:
        return False
    if not has_bound_attributes(node):
        return True
    picked = _picked(node, len(sizes))
    if axis not in picked:
        return False
    if node.outputs[0].is_graph_output():
        return True
    return any(_takes(reader, index, picked, axis) for reader, index in node.outputs[0].uses())


def _takes(reader: onnx_ir.Node, index: int, picked: Sequence[int], axis: int) -> bool:
    """Return whether a reader of some sizes may take that of an axis."""
    if index != 0 or not has_bound_attributes(reader):
        return True
    if is_gather(reader):
        ids = known_ints(reader.inputs[1])
        known = ids is not None and all(-len(picked) <= each < len(picked) for each in ids)
        return not known or ids is None or axis in [picked[each] for each in ids]
    if is_slice(reader):
        starts, ends = operand(reader, 1, "starts"), operand(reader, 2, "ends")
        steps = operand(reader, 4, "steps")
        if isinstance(starts, Missing) or isinstance(ends, Missing) or steps not in (ABSENT, (1,)):
            return True
        return len(starts) != 1 or len(ends) != 1 or axis in picked[starts[0] : ends[0]]
    return True


_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg",
    "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_ALONG_AXES = (
    "CumProd", "CumSum", "Hardmax", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
    "Softmax", "Trilu",
)  # fmt: skip
"""Operators that compute along an axis, and whose outputs have the shape of their first input."""
_BROADCASTING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu",
    "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCING = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_RULES: Mapping[str, Rule] = {
    **MOVING_RULES,
    **dict.fromkeys((*_UNARY, *_ALONG_AXES), _same),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _quantized),
    **dict.fromkeys(_BROADCASTING, _broadcast),
    **dict.fromkeys(_REDUCING, _reduced),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Einsum": _einsum,
    "OneHot": _one_hot,
    "Shape": _shape,
    "TopK": _top_k,
}
