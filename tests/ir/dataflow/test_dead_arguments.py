"""What comes off Ifs, Loops, Scans and functions when nobody reads it, and what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest

import tieops
from tests.support.checked_passes import removal_report, removed, trimmed
from tests.support.graphs import made, rows
from tests.support.model_facts import operators, stored
from tieops.ir.walk import all_nodes, nested_graphs
from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass

X = {"x": rows(2, 4)}
W = {"w": (2, 4), "v": (2, 4), "u": (2, 4)}
N = {"n": np.array(3)}


def ports(model: tieops.TiedModel, op_type: str) -> tuple[int, int, int, int]:
    """Return how many inputs and outputs a node has, and its body."""
    (node,) = [node for node in all_nodes(model.ir) if node.op_type == op_type]
    body = node.attributes["body"].as_graph()
    return len(node.inputs), len(node.outputs), len(body.inputs), len(body.outputs)


# -- Loop -----------------------------------------------------------------------------------------


def looped(body: str, **tensors: Any) -> tieops.TiedModel:
    """Three states and two scan outputs, each an output of the graph."""
    return made(
        f"""g (float[2,4] x) => (float[2,4] a, float[2,4] b, float[2,4] c,
                                 float[k,2,4] s, float[k,2,4] t)
        {{ a, b, c, s, t = Loop(n, , x, w, v) <body = body
             (int64 i, bool go, float[2,4] p, float[2,4] q, float[2,4] r)
             => (bool on, float[2,4] p2, float[2,4] q2, float[2,4] r2, float[2,4] d, float[2,4] e)
             {{ on = Identity(go)  {body} }}> }}""",
        **(W | N | tensors),
    )


APART = "p2 = Add(p, u)  q2 = Neg(q)  r2 = Neg(r)  d = Identity(p)  e = Mul(q, u)"
ROUND = "p2 = Add(p, u)  q2 = Neg(r)  r2 = Neg(q)  d = Identity(p)  e = Mul(q, u)"
CHAIN = "p2 = Add(p, q)  q2 = Neg(r)  r2 = Neg(r)  d = Identity(p)  e = Mul(r, r)"


@pytest.mark.parametrize(
    ("body", "keep", "counts", "tensors"),
    [
        (APART, ["a"], (3, 1, 3, 2), ["u", "n"]),
        (APART, ["b"], (3, 1, 3, 2), ["w", "n"]),
        (APART, ["s"], (3, 2, 3, 3), ["u", "n"]),  # p is read by d: a state without reader stays
        (APART, ["t"], (3, 2, 3, 3), ["w", "u", "n"]),
        (APART, ["a", "c"], (4, 2, 4, 3), ["v", "u", "n"]),
        (ROUND, ["a"], (3, 1, 3, 2), ["u", "n"]),  # q and r feed nothing but each other
        (ROUND, ["c"], (4, 2, 4, 3), ["w", "v", "n"]),
        (CHAIN, ["a"], (5, 3, 5, 4), ["w", "v", "n"]),
        (CHAIN, ["b"], (4, 2, 4, 3), ["w", "v", "n"]),
        (CHAIN, ["a", "b", "c", "s", "t"], (5, 5, 5, 6), ["w", "v", "n"]),
    ],
)
def test_states_and_scan_outputs_of_a_loop_go(
    body: str, keep: list[str], counts: tuple[int, ...], tensors: list[str]
) -> None:
    small = trimmed(looped(body), X, keep=keep)
    assert ports(small, "Loop") == counts
    assert sorted(stored(small)) == sorted(tensors)


def test_a_loop_s_condition_is_left_alone():
    """q decides when it ends, so it is needed though nobody reads it."""
    model = made(
        """g (float[2,4] x) => (float[2,4] a, float b)
        { one = Constant<value_float = 1.>()  three = Constant<value_float = 3.>()
          a, b = Loop(, yes, x, one) <body = body (int64 i, bool go, float[2,4] p, float q)
             => (bool on, float[2,4] p2, float q2)
             { q2 = Add(q, one)  on = Less(q2, three)  p2 = Neg(p) }> }""",
        yes=np.array(True),
    )
    assert ports(trimmed(model, X, keep=["a"]), "Loop") == (4, 2, 4, 3)


def test_what_a_loop_s_body_kept_alive_goes_from_all_graphs_around():
    """m is stored in the body, w outside, and the call in it was the last one of its function."""
    model = made(
        """g (float[2,4] x) => (float[2,4] a, float[k,2,4] s) { a, s = Loop(n, , x) <body = body
             (int64 i, bool go, float[2,4] p) => (bool on, float[2,4] p2, float[2,4] d)
             <float[1] m = {2}>
             { on = Identity(go)  h = Mul(w, m)  d = f.turn(h)  p2 = Neg(p) }> }""",
        ["turn (v) => (o) { o = Neg(v) }"],
        w=(2, 4),
        n=np.array(3),
    )
    small = trimmed(model, X, keep=["a"])
    assert stored(small) == ["n"]
    assert operators(small) == ["Loop", "Identity", "Neg"]
    assert not small.ir.functions
    (body,) = [graph for graph in nested_graphs(small.ir.graph) if graph.name == "body"]
    assert not body.initializers


def test_loops_in_loops_and_branches_are_trimmed_together():
    """The scan output of the inner one goes with the state of the outer one that it feeds."""
    model = made(
        """g (float[2,4] x, bool flag) => (float[2,4] a, float[2,4] b) { a, b = Loop(n, , x, w) <
          body = outer (int64 i, bool go, float[2,4] p, float[2,4] q)
            => (bool on, float[2,4] p2, float[2,4] q2)
          { on = Identity(go)
            p2, q2 = If(flag) <then_branch = left () => (float[2,4] l, float[2,4] m)
              { l, k, s = Loop(n, , p, v) <
                  body = inner (int64 j, bool go2, float[2,4] z, float[2,4] y)
                  => (bool on2, float[2,4] z2, float[2,4] y2, float[2,4] e)
                  { on2 = Identity(go2)  z2 = Neg(z)  y2 = Neg(y)  e = Add(y, q) }>
                m = ReduceSum<keepdims = 0>(s, axis) },
              else_branch = right () => (float[2,4] l3, float[2,4] m3)
              { l3 = Neg(p)  m3 = Neg(u) }> }> }""",
        **(W | N),
        axis=np.array([0]),
    )
    small = trimmed(model, X | {"flag": np.array(True)}, keep=["a"])
    assert stored(small) == ["n"]
    loops = [node for node in all_nodes(small.ir) if node.op_type == "Loop"]
    assert [len(node.inputs) for node in loops] == [3, 3]


def test_a_loop_says_what_went():
    assert removal_report(looped(ROUND), keep=["a"])[4:8] == [
        "state q of Loop: nothing needs it any more",
        "state r of Loop: nothing needs it any more",
        "output d of Loop: nothing needs it any more",
        "output e of Loop: nothing needs it any more",
    ]


# -- Scan -----------------------------------------------------------------------------------------


def scanned(keep: list[str], attributes: str = "", x: str = "5,4", s: str = "5,4") -> Any:
    model = made(
        f"""g (float[{x}] x) => (float[4] a, float[4] b, float[{s}] s, float[5,4] t)
        {{ a, b, s, t = Scan(w, v, x, u) <num_scan_inputs = 2, {attributes} body = body
             (float[4] p, float[4] q, float[4] c, float[4] d)
             => (float[4] p2, float[4] q2, float[4] y, float[4] z)
             {{ p2 = Add(p, c)  q2 = Mul(q, d)  y = Neg(c)  z = Neg(q) }}> }}""",
        w=(4,),
        v=(4,),
        u=(5, 4),
    )
    return trimmed(model, {"x": rows(*map(int, x.split(",")))}, keep=keep)


@pytest.mark.parametrize(
    ("keep", "counts", "tensors"),
    [
        (["a"], (3, 1, 3, 1), ["w", "u"]),  # u is stored, so it tells how often
        (["b"], (2, 1, 2, 1), ["v", "u"]),
        (["s"], (2, 1, 2, 1), ["u"]),
        (["t"], (2, 2, 2, 2), ["v", "u"]),
        (["a", "b", "s", "t"], (4, 4, 4, 4), ["w", "v", "u"]),
    ],
)
def test_states_inputs_and_outputs_of_a_scan_go(
    keep: list[str], counts: tuple[int, ...], tensors: list[str]
) -> None:
    small = scanned(keep)
    assert ports(small, "Scan") == counts
    assert stored(small) == tensors


def test_one_scanned_input_stays_to_tell_how_many_rounds_there_are():
    model = made(
        """g (float[5,4] x, float[5,4] z) => (float[4] a) { a = Scan(w, x, z) <num_scan_inputs = 2,
             body = body (float[4] p, float[4] c, float[4] d) => (float[4] p2)
             { p2 = Neg(p) }> }""",
        w=(4,),
    )
    small = trimmed(model, {"x": rows(5, 4), "z": rows(5, 4)}, unused_inputs=True)
    assert ports(small, "Scan") == (2, 1, 2, 1)
    assert [value.name for value in small.ir.graph.inputs] == ["x"]


def test_a_scan_s_axes_and_directions_follow():
    attributes = """scan_input_axes = [1, 0], scan_input_directions = [1, 0],
        scan_output_axes = [1, 0], scan_output_directions = [0, 1],"""
    small = scanned(["s"], attributes, x="4,5", s="4,5")
    (node,) = [node for node in small.ir.graph if node.op_type == "Scan"]
    assert {
        name: list(a.value) for name, a in node.attributes.items() if name.startswith("scan_")
    } == {
        "scan_input_axes": [1, 0],
        "scan_input_directions": [1, 0],
        "scan_output_axes": [1],
        "scan_output_directions": [0],
    }
    assert node.attributes["num_scan_inputs"].as_int() == 2


def test_a_scan_of_opset_8_is_left_alone_and_the_report_says_so():
    model = made(
        """g (float[1,4] w, float[1,5,4] x) => (float[1,4] a, float[1,5,4] s)
        { a, s = Scan(, w, x) <num_scan_inputs = 1, body = body (float[4] p, float[4] c)
             => (float[4] p2, float[4] y) { p2 = Add(p, c)  y = Neg(c) }> }""",
        opset=8,
    )
    small = removed(model, {"w": rows(1, 4), "x": rows(1, 5, 4)}, keep=["a"])
    assert ports(small, "Scan") == (3, 2, 2, 2)
    assert removal_report(model, keep=["a"]) == [
        "output s: removed as asked",
        "Scan: not changed, nobody reads some of its outputs, but it is a Scan of opset 8, "
        "with a batch axis and sequence lengths",
    ]


# -- others ---------------------------------------------------------------------------------------


def test_bodies_of_operators_that_are_not_known_stay_as_they_are():
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20, "my" : 1]>
        g (float[2,4] x) => (float[2,4] y, float[2,4] z) { y, z = my.Loop(x, x) <
          body = b (float[2,4] p, float[2,4] q) => (float[2,4] r, float[2,4] s)
            { r = Neg(p)  s = Neg(q) }> }"""
    )
    result = RemoveDisconnectedOutputsPass(keep=("y",))(model)
    assert [str(skip) for skip in result.skips] == [
        "Loop: not changed, nobody reads some of its outputs, but how they are made from its "
        "bodies' outputs is not known"
    ]
    assert len(model.graph[0].outputs) == 2


def test_outputs_at_the_end_that_nobody_reads_are_reported():
    model = made("g (float[2,8] x) => (float[2,8] y, bool[2,8] m) { y, m = Dropout(x) }")
    assert removal_report(model, keep=["y"]) == [
        "output m: removed as asked",
        "output m of Dropout: nothing needs it any more",
    ]


def test_what_is_left_keeps_names_types_and_notes():
    model = looped(APART)
    node = model.ir.graph[-1]
    node.metadata_props["who"] = "me"
    node.doc_string = "a loop"
    node.outputs[2].metadata_props["what"] = "c"
    small = trimmed(model, X, keep=["c"])
    loop = small.ir.graph[-1]
    assert (loop.metadata_props["who"], loop.doc_string) == ("me", "a loop")
    assert loop.outputs[0].metadata_props["what"] == "c"
    assert str(small.ir.graph.outputs[0]) == str(model.ir.graph.outputs[2])
