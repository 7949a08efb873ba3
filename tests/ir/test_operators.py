"""Operands that are not known before the run: neither taken for absent nor for baked in."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper as nh

import tieops
from tieops.errors import PreconditionError
from tieops.ir.operators.operands import ABSENT, UNKNOWN, known_floats, known_ints, operand
from tieops.ir.operators.shape_rules import output_shapes
from tieops.ir.operators.sizes import NotKnownError, Resized


def model(text: str, **tensors: Any) -> onnx.ModelProto:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> ' + text)
    proto.graph.initializer.extend(nh.from_array(np.asarray(a), n) for n, a in tensors.items())
    return proto


def ran(proto: onnx.ModelProto, **feeds: Any) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, feeds)]


def written(tied: tieops.TiedModel) -> onnx.ModelProto:
    return onnx_ir.to_proto(tied.ir)


WEIGHT = np.random.default_rng(0).standard_normal((1, 8, 1, 8)).astype(np.float32)
AXES = {
    "cast": "<int32[1] a = {0}> { ax = Cast<to = 7>(a)",
    "identity": "<int64[1] a = {0}> { ax = Identity(a)",
    "constant": "{ ax = Constant<value_ints = [0]>()",
    "computed": "<int64[1] a = {1}, int64[1] b = {1}> { ax = Sub(a, b)",
}


@pytest.mark.parametrize("axes", AXES)
def test_untie_through_axes_that_are_computed(axes: str) -> None:
    """The instance that was seen: Squeeze(w, Cast(axes)) dropped every axis of size 1."""
    proto = model(
        "g (float[8, 8] x) => (float[4, 1, 8] y, float[8, 8] z) "
        + AXES[axes]
        + """ t = Squeeze(w, ax) part = Slice(t, s, e, a0) y = Mul(part, part)
        full = Reshape(w, sh) z = MatMul(x, full) }""",
        w=WEIGHT, s=[0], e=[4], a0=[0], sh=[8, 8],
    )  # fmt: skip
    x = np.ones((8, 8), np.float32)
    free = tieops.untie(tieops.from_onnx(proto))
    for one, other in zip(ran(proto, x=x), ran(written(free), x=x), strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other)


BEHIND = {
    "slice by axes": ("int64[1] ax", "y = Slice(h, s, e, ax)", {"s": [0], "e": [3]}),
    "slice by steps": (
        "int64[1] st", "y = Slice(h, s, e, a1, st)", {"s": [0], "e": [99], "a1": [1]},
    ),
    "slice by ends": ("int64[1] e", "y = Slice(h, s, e, a1)", {"s": [0], "a1": [1]}),
    "squeeze": ("int64[1] ax", "u = Unsqueeze(h, a1) y = Squeeze(u, ax)", {"a1": [1]}),
    "unsqueeze": ("int64[1] ax", "y = Unsqueeze(h, ax)", {}),
    "reduce": ("int64[1] ax", "y = ReduceSum<keepdims = 0>(h, ax)", {}),
    "reshape": ("int64[2] sh", "y = Reshape(h, sh)", {}),
    "expand": ("int64[2] sh", "y = Expand(h, sh)", {}),
    "tile": ("int64[2] r", "y = Tile(h, r)", {}),
    "pad": ("int64[4] p", "y = Pad(h, p)", {}),
    "pad by axes": ("int64[1] ax", "y = Pad(h, p, , ax)", {"p": [1, 1]}),
    "gather of classes": ("int64[2] i", "y = Gather<axis = 1>(h, i)", {}),
    "top": ("int64[1] k", "y, i = TopK(h, k)", {}),
    "split": ("int64[2] sp", "y, z = Split<axis = 1>(h, sp)", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND)
def test_replace_head_refuses_operands_that_a_caller_gives(name: str) -> None:
    fed, nodes, tensors = BEHIND[name]
    proto = model(
        f"g (float[n, 2] x, {fed}) => (y) {{ h = MatMul(x, w) {nodes} }}",
        w=np.ones((2, 3), np.float32), **tensors,
    )  # fmt: skip
    operator = {"top": "TopK"}.get(name, name.split()[0].capitalize())
    with pytest.raises(PreconditionError, match=rf"{operator}\w* .* depends on it"):
        tieops.replace_head(tieops.from_onnx(proto), out_features=15)


@pytest.mark.parametrize("name", BEHIND)
def test_replace_head_refuses_defaults_that_a_caller_may_override(name: str) -> None:
    fed, nodes, tensors = BEHIND[name]
    kind, operand_name = fed.split()
    sizes = int(kind[len("int64[") : -1])
    proto = model(
        f"g (float[n, 2] x, {fed}) => (y) {{ h = MatMul(x, w) {nodes} }}",
        w=np.ones((2, 3), np.float32), **tensors, **{operand_name: np.ones(sizes, np.int64)},
    )  # fmt: skip
    with pytest.raises(PreconditionError, match="depends on it"):
        tieops.replace_head(tieops.from_onnx(proto), out_features=15)


def test_a_slice_that_ends_between_the_old_size_and_the_new_is_refused() -> None:
    proto = model(
        "g (float[n, 2] x) => (float[n, c] y) { h = MatMul(x, w) y = Slice(h, s, e, a1) }",
        w=np.ones((2, 3), np.float32), s=[0], e=[10], a1=[1],
    )  # fmt: skip
    with pytest.raises(PreconditionError, match="slices 0:10"):
        tieops.replace_head(tieops.from_onnx(proto), out_features=15)
    small = tieops.replace_head(tieops.from_onnx(proto), out_features=7)
    assert ran(written(small), x=np.ones((4, 2), np.float32))[0].shape == (4, 7)


def test_a_single_class_that_a_squeeze_would_drop_is_refused() -> None:
    proto = model(
        "g (float[2, 2] x) => (float[2, 3] y) { h = MatMul(x, w) y = Squeeze(h) }",
        w=np.ones((2, 3), np.float32),
    )
    with pytest.raises(PreconditionError, match="drops the axis"):
        tieops.replace_head(tieops.from_onnx(proto), out_features=1)


def test_a_size_that_is_not_known_does_not_meet_the_new_one() -> None:
    proto = model(
        "g (float[n, 2] x, float[k, m] o) => (y) { h = MatMul(x, w) y = Add(h, o) }",
        w=np.ones((2, 3), np.float32),
    )
    with pytest.raises(PreconditionError, match="o has an unknown size along this axis"):
        tieops.replace_head(tieops.from_onnx(proto), out_features=15)


def test_gates_of_several_steps_follow() -> None:
    proto = model(
        "g (float[n, 2] x) => (float[n, 3] y) { h = MatMul(x, w) a = Neg(h) b = Sigmoid(a)"
        " y = Mul(h, b) }",
        w=np.ones((2, 3), np.float32),
    )
    small = tieops.replace_head(tieops.from_onnx(proto), out_features=15)
    assert ran(written(small), x=np.ones((4, 2), np.float32))[0].shape == (4, 15)


def test_the_three_states_of_an_operand() -> None:
    x, axes = onnx_ir.Value(name="x"), onnx_ir.Value(name="axes")
    stored = onnx_ir.Value(name="a", const_value=onnx_ir.tensor(np.array([1], np.int64)))
    assert operand(onnx_ir.node("Squeeze", [x]), 1, "axes") is ABSENT
    assert operand(onnx_ir.Node("", "Squeeze", [x, None], []), 1, "axes") is ABSENT
    assert operand(onnx_ir.node("Squeeze", [x, stored]), 1, "axes") == (1,)
    assert operand(onnx_ir.node("Squeeze", [x], {"axes": [2, 3]}), 1, "axes") == (2, 3)
    assert operand(onnx_ir.node("TopK", [x], {"k": 2}), 1, "k") == (2,)
    assert operand(onnx_ir.node("Squeeze", [x, axes]), 1, "axes") is UNKNOWN
    reference = onnx_ir.RefAttr("axes", "given", onnx_ir.AttributeType.INTS)
    assert operand(onnx_ir.Node("", "Squeeze", [x], [reference]), 1, "axes") is UNKNOWN


def value_of(nodes: str, **tensors: Any) -> onnx_ir.Value:
    proto = model(f"g (float[2] x, int64[1] fed) => (y) {{ {nodes} }}", **tensors)
    return onnx_ir.from_proto(proto).graph.outputs[0]


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ("y = Constant<value_int = 3>()", (3,)),
        ("y = Constant<value_ints = [3, 4]>()", (3, 4)),
        ("y = Constant<value = int64[2] {5, 6}>()", (5, 6)),
        ("y = Constant<value_floats = [1.0]>()", None),
        ("y = Identity(a)", (2, 3)),
        ("y = Cast<to = 6>(a)", (2, 3)),
        ("y = Cast<to = 6>(big)", None),
        ("y = Cast<to = 1>(a)", None),
        ("y = Cast<to = 7>(f)", None),
        ("y = Concat<axis = 0>(a, a)", (2, 3, 2, 3)),
        ("y = Concat<axis = 0>(a, fed)", None),
        ("y = Gather(a, i)", (3,)),
        ("y = Gather(a, far)", None),
        ("s = Shape(w) y = Slice(s, i0, i2)", (4, 5)),
        ("y = Shape<start = 1>(w)", (5, 6)),
        ("y = Shape(x)", None),
        ("y = Unsqueeze(i1, i0)", None),
        ("y = Add(a, a)", None),
        ("y = Identity(fed)", None),
    ],
)
def test_integers_that_are_known(nodes: str, want: tuple[int, ...] | None) -> None:
    found = value_of(
        nodes, a=[2, 3], big=[2**40], f=np.ones(1, np.float32), i=[-1], far=[7], i0=[0],
        i2=[2], w=np.ones((4, 5, 6), np.float32), i1=np.array(1, np.int32).reshape(1, 1)[:0],
    )  # fmt: skip
    if "Unsqueeze" in nodes:
        assert known_ints(found) == ()
    else:
        assert known_ints(found) == want


def test_a_chain_of_many_nodes_is_not_computed() -> None:
    nodes = "a0 = Identity(a) " + " ".join(f"a{i + 1} = Identity(a{i})" for i in range(99))
    assert known_ints(value_of(nodes + " y = Identity(a99)", a=[1])) is None


def test_floats_that_are_known() -> None:
    assert known_floats(value_of("y = Identity(f)", f=np.array([2.5], np.float32))) == (2.5,)
    assert known_floats(value_of("y = Identity(f)", f=np.array([2]))) is None
    assert known_floats(value_of("y = Sqrt(f)", f=np.array([2.5], np.float32))) is None


def test_nothing_is_said_of_operators_that_are_not_known() -> None:
    x = onnx_ir.Value(name="x")
    for node in (onnx_ir.node("Det", [x]), onnx_ir.node("Relu", [x], domain="mine")):
        with pytest.raises(NotKnownError):
            output_shapes(node, [(3, 3)])


@pytest.mark.parametrize(
    ("op", "attributes", "shapes"),
    [
        ("Add", {"axis": 1, "broadcast": 1}, [(2, 3), (3,)]),
        ("Concat", {}, [(2, 3)]),
        ("Concat", {"axis": 0}, [(2, 3), (2,)]),
        ("Concat", {"axis": 0}, [(2, Resized(3, 4)), (2, 3)]),
        ("Concat", {"axis": 1}, [(2, Resized(3, 4)), (2, None)]),
        ("Tile", {}, [(2,), (), ()]),
        ("DepthToSpace", {"blocksize": 2}, [(1, Resized(4, 8), 2, 2)]),
        ("Einsum", {"equation": "ij"}, [(2, 3)]),
        ("Einsum", {"equation": "ij,jk->ik"}, [(2, Resized(3, 4)), (3, 5)]),
        ("GlobalAveragePool", {}, [(1, 2, Resized(3, 4))]),
        ("MaxPool", {"kernel_shape": [1]}, [(1, 2, Resized(3, 4))]),
        ("Relu", {}, [None]),
        ("Flatten", {"axis": 1}, [(1, 2, Resized(3, 4))]),
    ],
)
def test_what_does_not_fit_is_refused(op: str, attributes: Any, shapes: Any) -> None:
    values = [onnx_ir.Value(name=f"x{i}") for i in range(len(shapes))]
    with pytest.raises(NotKnownError):
        output_shapes(onnx_ir.node(op, values, attributes), shapes)


@pytest.mark.parametrize(
    ("op", "attributes", "shapes", "want"),
    [
        ("Concat", {"axis": 1}, [(2, Resized(3, 4)), (2, 5)], [2, Resized(8, 9)]),
        ("Concat", {"axis": 0}, [(2, Resized(3, 4)), (5, Resized(3, 4))], [7, Resized(3, 4)]),
        ("Einsum", {"equation": "ij->ji"}, [(2, Resized(3, 4))], [Resized(3, 4), 2]),
        ("Flatten", {"axis": 1}, [(1, Resized(3, 4), 1)], [1, Resized(3, 4)]),
        ("Add", {}, [(1, Resized(3, 4)), (7, 1)], [7, Resized(3, 4)]),
        ("Sum", {}, [("n", 1), (Resized(3, 4),), (1,)], ["n", Resized(3, 4)]),
    ],
)
def test_a_size_that_changes_is_followed(op: str, attributes: Any, shapes: Any, want: Any) -> None:
    values = [onnx_ir.Value(name=f"x{i}") for i in range(len(shapes))]
    assert [*output_shapes(onnx_ir.node(op, values, attributes), shapes)[0]] == want
