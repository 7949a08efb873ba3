"""Which provider runs which node."""

from __future__ import annotations

import json

import onnx_ir
import pytest

import tieops
from tieops.errors import PreconditionError
from tieops.runtime.placement import PlacedNode, Placement, placement_of
from tieops.runtime.providers import CUDA

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n] x, bool c) => (float[n] y) {
    [double] h = Add(x, x)
    y = If(c) <then_branch = a () => (float[n] p) { [inner] p = Neg(h) },
               else_branch = b () => (float[n] q) { q = Identity(h) }>
}"""


def test_every_node_of_a_session_is_placed_those_of_branches_too():
    session = tieops.session(onnx_ir.from_onnx_text(TEXT), "cpu")
    placed = session.placement()
    assert placed.counts == {"CPUExecutionProvider": 4}
    assert {(node.op_type, node.name) for node in placed.nodes} >= {
        ("Add", "double"),
        ("Neg", "inner"),
    }
    assert str(placed) == "CPUExecutionProvider: 4 nodes"


def test_nothing_falls_where_the_cpu_was_asked_for():
    session = tieops.session(onnx_ir.from_onnx_text(TEXT), "cpu")
    assert session.placement().fell == ()


def test_what_falls_to_the_cpu_is_named():
    nodes = [PlacedNode(f"n{index}", "Gemm", "", CUDA) for index in range(3)]
    fell = [PlacedNode("", "NonZero", "", "CPUExecutionProvider")]
    fell += [PlacedNode("x\x1b[31m", "Norm", "com.microsoft", "CPUExecutionProvider")]
    placed = Placement("cuda", (*nodes, *fell))
    assert placed.fell == tuple(fell)
    assert placed.counts == {CUDA: 3, "CPUExecutionProvider": 2}
    text = str(placed)
    assert "not on CUDA:\n  NonZero\n  com.microsoft.Norm x\\x1b[31m" in text
    assert json.loads(json.dumps(placed.to_dict()))["fell"][0]["op_type"] == "NonZero"


def test_a_long_list_is_cut():
    nodes = [PlacedNode(f"n{i}", "NonZero", "", "CPUExecutionProvider") for i in range(100)]
    assert str(Placement("cuda", tuple(nodes))).endswith("… and 60 more")


def test_a_runtime_that_cannot_tell_is_an_error_that_says_so():
    with pytest.raises(PreconditionError, match="does not report which node runs where"):
        placement_of(object(), "cpu")


def test_options_can_turn_the_record_off_and_asking_says_how_to_mend_it():
    options = {"session.record_ep_graph_assignment_info": "0"}
    session = tieops.session(onnx_ir.from_onnx_text(TEXT), "cpu", options=options)
    with pytest.raises(PreconditionError, match=r"leave session\.record_ep"):
        session.placement()


def test_a_closed_session_places_nothing():
    session = tieops.session(onnx_ir.from_onnx_text(TEXT), "cpu")
    session.close()
    with pytest.raises(PreconditionError, match="closed"):
        session.placement()
