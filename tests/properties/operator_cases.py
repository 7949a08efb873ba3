"""Single nodes with random parameters, over opsets, with operands in every form there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

FORMS = ("stored", "constant", "ints", "identity", "cast", "concat", "fed", "overridable")
"""How an operand that is an input comes: the last two are not known before the run."""
KNOWN_FORMS = FORMS[:6]
Draw = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """One node: its data comes first, its operands after that at their places."""

    op: str
    opset: int
    shapes: tuple[tuple[int, ...], ...]
    operands: Mapping[int, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    dtype: Any = np.float32


def arrays_of(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 9, shape).astype(case.dtype) for shape in case.shapes]


def model_of(
    case: Case, form: str, *, narrow: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model of the node alone, its data stored, and what has to be fed to it.

    Args:
        case: The node.
        form: How its operands come; see ``FORMS``. ``"referenced"`` puts the node into a function
            and all of its attributes at the call.
        narrow: Whether operands are int32 where the operator takes them so.
    """
    names = [f"x{i}" for i in range(len(case.shapes))]
    stored = [
        numpy_helper.from_array(array, name)
        for name, array in zip(names, arrays_of(case), strict=True)
    ]
    nodes: list[onnx.NodeProto] = []
    infos: list[onnx.ValueInfoProto] = []
    feeds: dict[str, np.ndarray] = {}
    inputs = names + [""] * (max(case.operands, default=0) + 1 - len(names))
    for index, values in case.operands.items():
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        elif narrow:
            array = array.astype(np.int32)
        name = inputs[index] = f"operand{index}"
        if form == "fed" or form == "overridable":
            infos.append(_info(name, array))
            feeds[name] = array
        if form in ("stored", "overridable"):
            stored.append(numpy_helper.from_array(array, name))
        elif form != "fed":
            made, more = _computed(name, array, form)
            nodes += made
            stored += more
    outputs = [f"y{i}" for i in range(case.outputs)]
    attributes = dict(case.attributes)
    while inputs and not inputs[-1]:
        inputs.pop()
    functions = []
    if form == "referenced":
        call, function = _as_function(case, inputs, outputs)
        nodes.append(call)
        functions.append(function)
    else:
        node = helper.make_node(case.op, inputs, outputs)
        node.attribute.extend(_attributes(attributes))
        nodes.append(node)
    graph = helper.make_graph(
        nodes,
        "g",
        infos,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        stored,
    )
    opsets = [helper.make_opsetid("", case.opset), helper.make_opsetid("local", 1)]
    return (
        helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=functions),
        feeds,
    )


def _attributes(values: Mapping[str, Any]) -> list[onnx.AttributeProto]:
    ints = onnx.AttributeProto.INTS
    return [
        helper.make_attribute(name, value, attr_type=ints if value == [] else None)
        for name, value in values.items()
    ]


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )


def _computed(
    name: str, array: np.ndarray, form: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    first = numpy_helper.from_array(array, f"{name}_stored")
    if form == "ints" and array.dtype == np.int64 and array.ndim <= 1:
        value: Any = {"value_ints": array.tolist()} if array.ndim else {"value_int": int(array)}
        constant = helper.make_node("Constant", [], [name])
        constant.attribute.extend(_attributes(value))
        return [constant], []
    if form == "cast" and array.dtype.kind == "i":
        other = np.int32 if array.dtype == np.int64 else np.int64
        if np.array_equal(array.astype(other), array):
            to = helper.np_dtype_to_tensor_dtype(array.dtype)
            stored = numpy_helper.from_array(array.astype(other), f"{name}_stored")
            return [helper.make_node("Cast", [f"{name}_stored"], [name], to=to)], [stored]
    if form == "concat" and array.ndim == 1 and array.size > 1:
        parts = [
            numpy_helper.from_array(array[i : i + 1], f"{name}_{i}") for i in range(len(array))
        ]
        return [helper.make_node("Concat", [p.name for p in parts], [name], axis=0)], parts
    if form in ("constant", "ints"):
        return [helper.make_node("Constant", [], [name], value=first)], []
    return [helper.make_node("Identity", [f"{name}_stored"], [name])], [first]


def _as_function(
    case: Case, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[onnx.NodeProto, onnx.FunctionProto]:
    """Return a call that gives the node its attributes, and the function of the node.

    Operands that are inputs become Constants whose values are attributes of the call.
    """
    body: list[onnx.NodeProto] = []
    given = dict(case.attributes)
    for index, values in case.operands.items():
        name = inputs[index]
        given[name] = [int(each) for each in np.asarray(values).reshape(-1)]
        constant = helper.make_node("Constant", [], [name])
        constant.attribute.append(_reference("value_ints", name, onnx.AttributeProto.INTS))
        body.append(constant)
    node = helper.make_node(case.op, inputs, outputs)
    for name, value in case.attributes.items():
        kind = _attributes({name: value})[0].type
        node.attribute.append(_reference(name, name, kind))
    body.append(node)
    formal = inputs[: len(case.shapes)]
    function = helper.make_function(
        "local", "f", formal, outputs, body, [helper.make_opsetid("", case.opset)], list(given)
    )
    call = helper.make_node("f", formal, outputs, domain="local")
    call.attribute.extend(_attributes(given))
    return call, function


def _reference(name: str, outer: str, kind: int) -> onnx.AttributeProto:
    return onnx.AttributeProto(name=name, ref_attr_name=outer, type=kind)


# Strategies, one for each operator. They draw wrong parameters too: axes that do not exist or come
# twice, sizes that do not fit. ONNX Runtime says which are.

_SIZE = st.sampled_from([0, 1, 1, 2, 3, 4, 6])
_SHAPE = st.lists(_SIZE, min_size=0, max_size=4).map(tuple)
_SOME = st.lists(_SIZE, min_size=1, max_size=4).map(tuple)
_FULL = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4).map(tuple)


def _axis(rank: int, slack: int = 0) -> st.SearchStrategy[int]:
    return st.integers(-rank - slack, max(rank - 1 + slack, -rank - slack))


def _axes(rank: int, *, unique: bool = False, least: int = 0) -> st.SearchStrategy[list[int]]:
    if not rank:
        return st.just([])
    by = (lambda a: a % rank) if unique else None
    return st.lists(_axis(rank), min_size=least, max_size=rank, unique_by=by)


@st.composite
def squeezes(draw: Draw) -> Case:
    shape = draw(_SHAPE)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    axes = draw(st.none() | _axes(len(shape)) | st.lists(st.sampled_from(ones or [0]), max_size=3))
    return _axes_case(draw, "Squeeze", shape, axes)


@st.composite
def unsqueezes(draw: Draw) -> Case:
    shape = draw(_SHAPE)
    count = draw(st.integers(1, 2))
    axes = draw(st.lists(_axis(len(shape) + count), min_size=count, max_size=count))
    return _axes_case(draw, "Unsqueeze", shape, axes)


def _axes_case(draw: Draw, op: str, shape: tuple[int, ...], axes: list[int] | None) -> Case:
    opset = draw(st.sampled_from([11, 13, 20]))
    if axes is None:
        return Case(op, opset, (shape,))
    if opset < 13:
        return Case(op, opset, (shape,), attributes={"axes": axes})
    scalar = len(axes) == 1 and draw(st.booleans())
    values = np.array(axes[0] if scalar else axes, np.int64)
    return Case(op, opset, (shape,), {1: values})


@st.composite
def transposes(draw: Draw) -> Case:
    shape = draw(_SHAPE)
    perm = draw(st.none() | st.permutations(range(len(shape))))
    attributes = {} if perm is None or not shape else {"perm": list(perm)}
    return Case("Transpose", draw(st.sampled_from([9, 13, 21])), (shape,), attributes=attributes)


@st.composite
def reshapes(draw: Draw) -> Case:
    shape = draw(_SHAPE)
    total = int(np.prod(shape))
    divisors = [each for each in (1, 2, 3, 4, 6) if total % each == 0]
    first = draw(st.lists(st.sampled_from([0, -1, 1, *divisors]), max_size=4))
    known = int(np.prod([s for s in first if s > 0]))
    if -1 not in first and 0 not in first and known and total % known == 0:
        first.append(total // known)
    opset = draw(st.sampled_from([8, 13, 14, 21]))
    attributes = {"allowzero": draw(st.integers(0, 1))} if opset >= 14 else {}
    return Case("Reshape", opset, (shape,), {1: np.array(first, np.int64)}, attributes)


@st.composite
def flattens(draw: Draw) -> Case:
    shape = draw(_SHAPE)
    axis = draw(st.none() | _axis(len(shape)) | st.just(len(shape)))
    attributes = {} if axis is None else {"axis": axis}
    return Case("Flatten", draw(st.sampled_from([11, 13, 21])), (shape,), attributes=attributes)


@st.composite
def slices(draw: Draw) -> Case:
    shape = draw(_SOME)
    count = draw(st.integers(1, len(shape)))
    bound = st.integers(-7, 7) | st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1])
    starts, ends = (draw(st.lists(bound, min_size=count, max_size=count)) for _ in range(2))
    axes = draw(st.none() | st.lists(_axis(len(shape)), min_size=count, max_size=count))
    opset = draw(st.sampled_from([9, 10, 13, 21]))
    if opset < 10:
        attributes = {"starts": starts, "ends": ends} | ({} if axes is None else {"axes": axes})
        return Case("Slice", opset, (shape,), attributes=attributes)
    operands: dict[int, Any] = {1: np.array(starts), 2: np.array(ends)}
    if axes is not None:
        operands[3] = np.array(axes)
    if draw(st.booleans()):
        step = st.sampled_from([1, 2, -1, -2, 3])
        operands[4] = np.array(draw(st.lists(step, min_size=count, max_size=count)))
    return Case("Slice", opset, (shape,), operands)


@st.composite
def splits(draw: Draw) -> Case:
    shape = draw(_SOME)
    axis = draw(_axis(len(shape)))
    count = draw(st.integers(1, 3))
    opset = draw(st.sampled_from([11, 13, 18, 21]))
    sizes = draw(st.none() | st.lists(st.integers(0, 3), min_size=count - 1, max_size=count - 1))
    attributes: dict[str, Any] = {"axis": axis}
    if sizes is None:
        if opset >= 18:
            attributes["num_outputs"] = count
        return Case("Split", opset, (shape,), attributes=attributes, outputs=count)
    sizes = [*sizes, max(shape[axis] - sum(sizes), 0)]
    if opset < 13:
        return Case(
            "Split", opset, (shape,), attributes=attributes | {"split": sizes}, outputs=count
        )
    return Case("Split", opset, (shape,), {1: np.array(sizes)}, attributes, count)


@st.composite
def concats(draw: Draw) -> Case:
    shape = draw(_SOME)
    axis = draw(_axis(len(shape)))
    others = [list(shape) for _ in range(draw(st.integers(0, 2)))]
    for other in others:
        other[axis] = draw(_SIZE)
    shapes = (shape, *map(tuple, others))
    return Case("Concat", draw(st.sampled_from([11, 13])), shapes, attributes={"axis": axis})


VIEWS = {
    "Squeeze": squeezes(),
    "Unsqueeze": unsqueezes(),
    "Transpose": transposes(),
    "Reshape": reshapes(),
    "Flatten": flattens(),
    "Slice": slices(),
    "Split": splits(),
    "Concat": concats(),
}


@st.composite
def expands(draw: Draw) -> Case:
    shape = draw(_SHAPE)
    target = [draw(st.sampled_from([1, size, 3])) for size in shape]
    target = draw(st.lists(st.sampled_from([1, 2]), max_size=2)) + target
    return Case("Expand", draw(st.sampled_from([8, 13])), (shape,), {1: np.array(target, np.int64)})


@st.composite
def tiles(draw: Draw) -> Case:
    shape = draw(_FULL)
    repeats = draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape)))
    return Case("Tile", draw(st.sampled_from([8, 13])), (shape,), {1: np.array(repeats)})


@st.composite
def pads(draw: Draw) -> Case:
    shape = draw(_FULL)
    opset = draw(st.sampled_from([10, 11, 18, 21]))
    count = len(shape)
    operands: dict[int, Any] = {}
    if opset >= 18 and draw(st.booleans()):
        axes = draw(_axes(len(shape), unique=True, least=1))
        operands[3] = np.array(axes)
        count = len(axes)
    amounts = draw(st.lists(st.integers(0, 2), min_size=2 * count, max_size=2 * count))
    if opset < 11:
        return Case("Pad", opset, (shape,), attributes={"pads": amounts})
    return Case("Pad", opset, (shape,), {1: np.array(amounts), **operands})


@st.composite
def gathers(draw: Draw) -> Case:
    shape = draw(_FULL)
    axis = draw(_axis(len(shape)))
    size = shape[axis]
    ids = draw(st.integers(-size, size - 1) | st.lists(st.integers(-size, size - 1), max_size=3))
    ids = np.array(ids, np.int64)
    return Case("Gather", draw(st.sampled_from([11, 13])), (shape,), {1: ids}, {"axis": axis})


@st.composite
def reductions(draw: Draw) -> Case:
    shape = draw(_FULL)
    op = draw(st.sampled_from(["ReduceSum", "ReduceMax", "ReduceMean", "ReduceL2", "ReduceProd"]))
    opset = draw(st.sampled_from([11, 13, 18, 20]))
    axes = draw(st.none() | _axes(len(shape), unique=True))
    attributes: dict[str, Any] = {"keepdims": draw(st.integers(0, 1))}
    if opset >= 18 or (op == "ReduceSum" and opset >= 13):
        attributes["noop_with_empty_axes"] = draw(st.integers(0, 1))
        operands = {} if axes is None else {1: np.array(axes, np.int64)}
        return Case(op, opset, (shape,), operands, attributes)
    return Case(op, opset, (shape,), {}, attributes | ({"axes": axes} if axes else {}))


@st.composite
def arguments(draw: Draw) -> Case:
    shape = draw(_FULL)
    attributes = {"keepdims": draw(st.integers(0, 1)), "axis": draw(_axis(len(shape)))}
    op = draw(st.sampled_from(["ArgMax", "ArgMin"]))
    return Case(op, draw(st.sampled_from([11, 13])), (shape,), {}, attributes)


@st.composite
def tops(draw: Draw) -> Case:
    shape = draw(_FULL)
    axis = draw(_axis(len(shape)))
    count = draw(st.integers(0, shape[axis]))
    opset = draw(st.sampled_from([9, 10, 11]))
    if opset < 10:
        return Case("TopK", opset, (shape,), {}, {"axis": axis, "k": max(count, 1)}, 2)
    return Case("TopK", opset, (shape,), {1: np.array([count])}, {"axis": axis}, 2)


@st.composite
def one_hots(draw: Draw) -> Case:
    shape = draw(_FULL)
    attributes = {"axis": draw(_axis(len(shape) + 1))} if draw(st.booleans()) else {}
    depth = np.array(draw(st.integers(1, 5)))
    operands = {1: depth if draw(st.booleans()) else depth.reshape(1), 2: np.array([0.0, 1.0])}
    return Case("OneHot", 11, (shape,), operands, attributes, dtype=np.int64)


@st.composite
def blocks(draw: Draw) -> Case:
    op = draw(st.sampled_from(["DepthToSpace", "SpaceToDepth"]))
    shape = (draw(st.integers(1, 2)), 4 * draw(st.integers(1, 2)), 2, 4)
    return Case(op, 13, (shape,), {}, {"blocksize": 2})


@st.composite
def sums_of_products(draw: Draw) -> Case:
    equation, shapes = draw(
        st.sampled_from([
            ("ij->ji", ((2, 3),)), ("ij,jk->ik", ((2, 3), (3, 4))),
            ("bij,bj->b", ((2, 3, 4), (2, 4))), ("ii->i", ((3, 3),)),
            ("ij->", ((2, 3),)), ("i,j->ij", ((2,), (3,))),
        ])
    )  # fmt: skip
    return Case("Einsum", 12, shapes, {}, {"equation": equation})


@st.composite
def resizes(draw: Draw) -> Case:
    shape = (1, 2, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    scales = np.array(
        [1.0, 1.0, *draw(st.lists(st.sampled_from([1.0, 2.0]), min_size=2, max_size=2))]
    )
    op, opset, place = draw(
        st.sampled_from(
            [("Upsample", 9, 1), ("Resize", 10, 1), ("Resize", 13, 2), ("Resize", 19, 2)]
        )
    )
    return Case(op, opset, (shape,), {place: scales})


@st.composite
def sizes_of(draw: Draw) -> Case:
    shape = draw(_SHAPE)
    opset = draw(st.sampled_from([13, 15, 21]))
    attributes = {}
    if opset >= 15:
        attributes = {
            name: draw(st.integers(-5, 5)) for name in ("start", "end") if draw(st.booleans())
        }
    return Case("Shape", opset, (shape,), {}, attributes)


@st.composite
def same(draw: Draw) -> Case:
    op = draw(st.sampled_from(["Relu", "Neg", "Softmax", "Sigmoid", "LogSoftmax", "Hardmax"]))
    shape = draw(_FULL)
    return Case(op, draw(st.sampled_from([11, 13])), (shape,))


@st.composite
def broadcasts(draw: Draw) -> Case:
    shape = draw(_FULL)
    other = tuple(draw(st.sampled_from([1, size])) for size in shape)[draw(st.integers(0, 3)) :]
    shapes = (shape, other) if draw(st.booleans()) else (other, shape)
    op = draw(st.sampled_from(["Add", "Mul", "Sub", "Max", "Equal", "Less"]))
    return Case(op, draw(st.sampled_from([11, 13])), shapes)


@st.composite
def pools(draw: Draw) -> Case:
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), 4, 5)
    op = draw(st.sampled_from(["GlobalAveragePool", "GlobalMaxPool", "MaxPool", "AveragePool"]))
    attributes = {} if op.startswith("Global") else {"kernel_shape": [2, 2]}
    return Case(op, 12, (shape,), {}, attributes)


SHAPES = {
    **VIEWS,
    "Expand": expands(),
    "Tile": tiles(),
    "Pad": pads(),
    "Gather": gathers(),
    "Reduce": reductions(),
    "ArgMax": arguments(),
    "TopK": tops(),
    "OneHot": one_hots(),
    "DepthToSpace": blocks(),
    "Einsum": sums_of_products(),
    "Resize": resizes(),
    "Shape": sizes_of(),
    "elementwise": same(),
    "broadcast": broadcasts(),
    "pool": pools(),
}
OPEN = {"MaxPool", "AveragePool", "Resize", "Upsample"}
"""Operators of which some sizes are left open: they are rounded, or depend on many attributes."""
