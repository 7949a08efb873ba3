"""Shape propagation: which axis of which value changes, and which node refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper, parser

from tests.support.model_facts import serialized
from tieops.errors import PreconditionError
from tieops.passes.shape_propagation import ResizePlan, plan_resize

OLD, NEW = 10, 15


def graph(body: str, shape: str = "n,10", **tensors: Any) -> onnx_ir.Model:
    """Return a graph whose ``x``, of 10 classes, goes through ``body`` to ``y``."""
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[{shape}] x) => (y) {{ {body} }}'
    )
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()
    )
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def planned(model: onnx_ir.Model, axis: int = 1) -> ResizePlan:
    before = serialized(model)
    found = plan_resize(model.graph.inputs[0], axis, OLD, NEW)
    assert serialized(model) == before, "planning changes nothing"
    return found


def axes(plan: ResizePlan) -> dict[str, int]:
    assert {size for _, size in plan.sizes.values()} == {NEW}
    return {str(value.name): axis for value, (axis, _) in plan.sizes.items()}


FOLLOWS: dict[str, tuple[str, str, int, dict[str, Any], dict[str, int]]] = {
    "nothing reads it but an output": ("y = Identity(x)", "n,10", 1, {}, {"x": 1, "y": 1}),
    "activations": (
        "a = Sigmoid(x)  b = Neg(a)  y = Softmax<axis = 1>(b)",
        "n,10",
        1,
        {},
        {"x": 1, "a": 1, "b": 1, "y": 1},
    ),
    "a scalar": ("y = Mul(x, s)", "n,10", 1, {"s": np.float32(2)}, {"x": 1, "y": 1}),
    "itself": ("a = Neg(x)  y = Add(a, x)", "n,10", 1, {}, {"x": 1, "a": 1, "y": 1}),
    "a larger rank from the other side": (
        "y = Add(x, s)",
        "n,10",
        1,
        {"s": np.ones((2, 3, 1), np.float32)},
        {"x": 1, "y": 2},
    ),
    "a transpose": ("y = Transpose<perm = [2, 0, 1]>(x)", "n,3,10", 2, {}, {"x": 2, "y": 0}),
    "a transpose without an order": ("y = Transpose(x)", "n,3,10", 2, {}, {"x": 2, "y": 0}),
    "an unsqueeze in front": (
        "y = Unsqueeze(x, at)",
        "n,10",
        1,
        {"at": np.array([0, 3])},
        {"x": 1, "y": 2},
    ),
    "a squeeze in front": ("y = Squeeze(x, at)", "1,n,10", 2, {"at": [0]}, {"x": 2, "y": 1}),
    "a squeeze behind": ("y = Squeeze(x, at)", "n,10,1", 1, {"at": [-1]}, {"x": 1, "y": 1}),
    "a squeeze of whatever is 1": ("y = Squeeze(x)", "2,1,10", 2, {}, {"x": 2, "y": 1}),
    "a sum over no axes": (
        "y = ReduceSum<keepdims = 0, noop_with_empty_axes = 1>(x)", "n,10", 1, {}, {"x": 1, "y": 1},
    ),
    "a maximum over it": ("y = ReduceMax<keepdims = 0>(x, at)", "n,10", 1, {"at": [1]}, {"x": 1}),
    "a mean over another axis": (
        "y = ReduceMean<keepdims = 0>(x, at)",
        "n,3,10",
        2,
        {"at": [1]},
        {"x": 2, "y": 1},
    ),
    "a mean that keeps its axis": (
        "y = ReduceMean(x, at)",
        "n,3,10",
        2,
        {"at": [1]},
        {"x": 2, "y": 2},
    ),
    "the largest class": ("y = ArgMax<axis = 1, keepdims = 0>(x)", "n,10", 1, {}, {"x": 1}),
    "the largest row": (
        "y = ArgMax<axis = 0, keepdims = 0>(x)",
        "n,10",
        1,
        {},
        {"x": 1, "y": 0},
    ),
    "a gather of rows": (
        "y = Gather<axis = 0>(x, at)",
        "n,10",
        1,
        {"at": np.array([[0, 1]])},
        {"x": 1, "y": 2},
    ),
    "a gather of classes that stay": (
        "y = Gather<axis = 1>(x, at)",
        "n,10",
        1,
        {"at": np.array([0, 9, -1])},
        {"x": 1},
    ),
    "a slice of rows": (
        "y = Slice(x, a, b, c)",
        "n,10",
        1,
        {"a": [0], "b": [1], "c": [0]},
        {"x": 1, "y": 1},
    ),
    "a slice of all classes": (
        "y = Slice(x, a, b, c)",
        "n,10",
        1,
        {"a": [0], "b": [2**31 - 1], "c": [1]},
        {"x": 1, "y": 1},
    ),
    "a flattening of ones": ("y = Flatten(x)", "n,10,1,1", 1, {}, {"x": 1, "y": 1}),
    "the size of another axis": (
        "a = Shape<start = 0, end = 1>(x)  y = Identity(a)",
        "n,10",
        1,
        {},
        {"x": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWS)
def test_the_axis_that_changes(name: str) -> None:
    body, shape, axis, tensors, want = FOLLOWS[name]
    plan = planned(graph(body, shape, **tensors), axis)
    assert axes(plan) == want
    assert not plan.operands


@pytest.mark.parametrize(
    ("target", "shape", "axis", "want", "operand"),
    [
        ([-1, 10], "n,3,10", 2, 1, [-1, 15]),
        ([0, 0, 10, 1], "n,3,10", 2, 2, [0, 0, 15, 1]),
        ([1, -1, 10], "n,10", 1, 2, [1, -1, 15]),
        ([0, 0], "n,10", 1, 1, None),
        ([0, -1], "n,10", 1, 1, None),
    ],
)
def test_a_reshape_names_the_new_size_where_it_named_the_old(
    target: list[int], shape: str, axis: int, want: int, operand: list[int] | None
) -> None:
    model = graph("y = Reshape(x, to)", shape, to=np.array(target))
    plan = planned(model, axis)
    assert axes(plan) == {"x": axis, "y": want}
    assert [*plan.operands.values()] == ([] if operand is None else [operand])
    assert all(node.op_type == "Reshape" and at == 1 for node, at in plan.operands)


BAKED: dict[str, tuple[str, str, int, dict[str, Any], str]] = {
    "a stored vector": (
        "y = Mul(x, s)", "n,10", 1, {"s": np.ones(10, np.float32)}, "stored constant of the old",
    ),
    "a matrix product": (
        "y = MatMul(x, s)", "n,10", 1, {"s": np.ones((10, 2), np.float32)}, "MatMul",
    ),
    "classes that are gone": (
        "y = Gather<axis = 1>(x, at)", "n,10", 1, {"at": np.array([3, -16])}, "takes elements",
    ),
    "some of the classes": (
        "y = Slice(x, a, b, c)", "n,10", 1, {"a": [2], "b": [8], "c": [1]}, "slices 2:8",
    ),
    "a flattening": ("y = Flatten(x)", "n,3,10", 2, {}, "merges the axis"),
    "a reshape of rows and classes": (
        "y = Reshape(x, to)", "n,3,10", 2, {"to": np.array([-1, 30])}, "it reshapes to",
    ),
    "an unknown operator": ("y = Det(x)", "10,10", 1, {}, "Det"),
    "both axes at once": ("a = Transpose(x)  y = Add(a, x)", "10,10", 1, {}, "Add"),
    "its size": ("y = Shape(x)", "n,10", 1, {}, "Shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAKED)
def test_a_node_that_cannot_follow_is_named(name: str) -> None:
    body, shape, axis, tensors, words = BAKED[name]
    model = graph(body, shape, **tensors)
    before = serialized(model)
    with pytest.raises(PreconditionError, match=words) as caught:
        plan_resize(model.graph.inputs[0], axis, OLD, NEW)
    assert "cannot change the size 10 of" in str(caught.value)
    assert model.graph.outputs[0].producer().op_type in str(caught.value)
    assert serialized(model) == before


ONE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a squeeze": ("y = Squeeze(x, at)", "n,1", {"at": [1]}, "it drops the axis"),
    "a squeeze of whatever is 1": ("y = Squeeze(x)", "2,1", {}, "it drops the axis"),
    "a squeeze that nobody knows": ("y = Squeeze(x)", "n,1", {}, "the axes it drops"),
    "a vector that it is broadcast against": (
        "y = Mul(x, s)", "n,1", {"s": np.ones(5, np.float32)}, "broadcast against s, which has 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_a_size_of_one_that_a_node_counts_on(name: str) -> None:
    """Found by the corpus: a probability of silero-vad, whose axis is squeezed away."""
    body, shape, tensors, words = ONE[name]
    with pytest.raises(PreconditionError, match=words):
        plan_resize(graph(body, shape, **tensors).graph.inputs[0], 1, 1, NEW)


def test_a_size_of_one_meets_other_ones() -> None:
    model = graph("y = Mul(x, s)", "n,1", s=np.ones((1, 1), np.float32))
    assert axes(plan_resize(model.graph.inputs[0], 1, 1, NEW)) == {"x": 1, "y": 1}
