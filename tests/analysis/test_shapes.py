"""Shapes by inference: of what, from what, and without the weights."""

from __future__ import annotations

import numpy as np
import onnx_ir

from tests.support.graphs import made
from tieops.analysis import shapes
from tieops.analysis.shapes import derived, infer_in_place, shaped
from tieops.model import TiedModel

LARGE = 50_000


def values(model: TiedModel) -> dict[str, onnx_ir.Value]:
    return {value.name or "": value for node in model.ir.graph for value in node.outputs}


def dims(shape: onnx_ir.Shape | None) -> list[object] | None:
    return None if shape is None else [str(each) for each in shape]


def test_large_tensors_in_attributes_are_told_by_their_shape_alone() -> None:
    large = np.zeros((LARGE, 2), np.float32)
    model = made("g (float[n,2] x) => (float[n,50000] y) { t = Transpose(w)  y = MatMul(x, t) }",
                 w=large)  # fmt: skip
    graph = model.ir.graph
    stored = graph.initializers["w"]
    constant = onnx_ir.Node(
        "", "Constant", [], [onnx_ir.AttrTensor("value", onnx_ir.tensor(large))], num_outputs=1
    )
    constant.outputs[0].name = "c"
    graph.insert_before(graph[0], constant)
    stored.replace_all_uses_with(constant.outputs[0])
    del graph.initializers["w"]
    model = TiedModel(model.ir)
    assert shapes._without_weights(model.ir).ByteSize() < 1000
    assert dims(shaped(model.ir)[values(model)["t"]].shape) == ["2", "50000"]
    assert constant.attributes["value"].as_tensor().numpy().shape == (LARGE, 2)


def test_derived_shapes_come_from_the_inputs_and_not_from_what_is_said_between() -> None:
    model = made("g (float[n,m,8] x) => (float[n,8] y, float[4,8] z) { y = Relu(x)  z = Neg(y) }")
    known = values(model)
    assert dims(known["y"].shape) == ["n", "8"]
    found = derived(model.ir, {known["y"], known["z"]})
    assert [dims(found[known[name]]) for name in ("y", "z")] == [["n", "m", "8"]] * 2
    assert derived(model.ir, set()) == {}


def test_derived_shapes_inside_of_branches_do_not_trust_them_either() -> None:
    model = made(
        "g (bool c, float[n,m,8] x) => (float[n,8] y) { y = If (c) <"
        "then_branch = a () => (float[4,8] p) { p = Relu(x) },"
        "else_branch = b () => (float[4,8] q) { q = Neg(x) }> }"
    )
    branch = values(model)["y"].producer()
    assert branch is not None
    inner = next(iter(branch.attributes["then_branch"].as_graph())).outputs[0]
    found = derived(model.ir, {inner, values(model)["y"]})
    assert all(shape is None or shape.rank() == 3 for shape in found.values())


def test_inference_in_place_keeps_what_is_a_sequence() -> None:
    model = made(
        "g (float[4,8] x) => (float[k,8] e) { s = SplitToSequence<axis = 0>(x, k)"
        "  e = SequenceAt(s, i) }",
        k=np.array([2, 2]),
        i=np.array(0),
    )
    infer_in_place(model.ir)
    assert isinstance(values(model)["s"].type, onnx_ir.SequenceType)
