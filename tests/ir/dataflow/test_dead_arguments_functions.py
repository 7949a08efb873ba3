"""What comes off model-local functions and their calls when nobody reads it, and what stays."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

import tieops
from tests.support.checked_passes import removal_report, removed, trimmed
from tests.support.graphs import FUNCTION, made, rows
from tests.support.model_facts import left, stored
from tieops.ir.walk import all_nodes
from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass

X = {"x": rows(2, 4)}
W = {"w": (2, 4), "v": (2, 4), "u": (2, 4)}

TWO = "two (a, b, c) => (d, e) { d = Neg(a)  h = Mul(b, c)  e = Neg(h) }"


def test_a_function_s_output_goes_with_what_only_it_needed():
    model = made(
        "g (float[2,4] x) => (float[2,4] y, float[2,4] z) { y, z = f.two(x, w, v) }", [TWO], **W
    )
    small = trimmed(model, X, keep=["y"])
    assert stored(small) == []
    (function,) = small.ir.functions.values()
    assert ([v.name for v in function.inputs], len(function.outputs)) == (["a"], 1)
    assert [len(node.inputs) for node in small.ir.graph] == [1]
    assert removal_report(model, keep=["y"]) == [
        "output z: removed as asked",
        "input b of two: nothing needs it any more",
        "input c of two: nothing needs it any more",
        "output e of two: nothing needs it any more",
        "node Neg: nothing needs it any more",
        "node Mul: nothing needs it any more",
        "initializer w: nothing needs it any more",
        "initializer v: nothing needs it any more",
        "initializer u: nothing needs it any more",
    ]


def test_a_disconnected_output_behind_a_call_is_found():
    model = made(
        "g (float[2,4] x) => (float[2,4] y, float[2,4] z) { y, z = f.two(x, w, v) }", [TWO], **W
    )
    small = trimmed(model, X)
    assert left(small) == ["y"]
    assert stored(small) == []


def test_an_output_that_another_call_reads_stays():
    model = made(
        """g (float[2,4] x) => (float[2,4] y, float[2,4] z)
        { y, h = f.two(x, w, v)  k, z = f.two(x, w, u) }""",
        [TWO],
        **W,
    )
    small = trimmed(model, X, keep=["y", "z"])
    (function,) = small.ir.functions.values()
    assert (len(function.inputs), len(function.outputs)) == (3, 2)
    assert stored(small) == ["w", "v", "u"]
    # Of the two calls one goes, and with it the output that it alone read.
    small = trimmed(model, X, keep=["z"])
    (function,) = small.ir.functions.values()
    assert ([v.name for v in function.inputs], len(function.outputs)) == (["b", "c"], 1)
    assert stored(small) == ["w", "u"]


def test_a_call_that_nobody_needs_keeps_nothing_alive():
    model = made(
        """g (float[2,4] x) => (float[2,4] y, float[2,4] z)
        { y, h = f.two(x, x, x)  z, k = f.two(w, v, u) }""",
        [TWO],
        **W,
    )
    assert stored(trimmed(model, X, keep=["y"])) == []


def test_functions_of_functions_are_trimmed_through():
    model = made(
        "g (float[2,4] x) => (float[2,4] y, float[2,4] z) { y, z = f.outer(x, w, v) }",
        ["outer (a, b, c) => (d, e) { d, e = f.two(a, b, c) }", TWO],
        **W,
    )
    small = trimmed(model, X, keep=["y"])
    assert [(len(f.inputs), len(f.outputs)) for f in small.ir.functions.values()] == [(1, 1)] * 2


def test_calls_in_branches_and_with_inputs_left_out_follow():
    model = made(
        """g (float[2,4] x, bool flag) => (float[2,4] y, float[2,4] z) {
          y = If(flag) <then_branch = l () => (float[2,4] p) { p, q = f.clip(x, w, , v) },
                        else_branch = r () => (float[2,4] o) { o, m = f.clip(x, w) }>
          h, z = f.clip(x, u) }""",
        ["clip (a, b, low, high) => (c, d) { c = Clip(a, low, low)  d = Neg(b) }"],
        **W,
    )
    small = trimmed(model, X | {"flag": np.array(False)}, keep=["y"])
    assert stored(small) == []
    calls = [node for node in all_nodes(small.ir) if node.op_type == "clip"]
    assert [len(node.inputs) for node in calls] == [2, 1]


def test_a_function_in_place_of_an_operator_keeps_that_operator_s_inputs():
    """ONNX Runtime takes its own BiasGelu, which needs both inputs."""
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[2,4] x) => (float[2,4] y, float[4] z) <float[4] w = {1, 2, 3, 4}>
        { y = com.microsoft.BiasGelu(x, w)  z = Neg(w) }
        <opset_import: ["" : 20], domain: "com.microsoft">
        BiasGelu (A, B) => (C) { C = Gelu(A) }"""
    model = tieops.from_onnx(onnx_ir.from_onnx_text(text))
    small = removed(model, X)
    assert [len(node.inputs) for node in small.ir.graph] == [2]
    assert stored(small) == ["w"]


@pytest.mark.parametrize("domain", ["", "com.microsoft.nchwc"])
def test_the_outputs_of_such_a_function_stay_and_the_report_says_so(domain: str) -> None:
    prefix = f"{domain}." if domain else ""
    text = f"""<ir_version: 10, opset_import: ["" : 20, "{domain or "f"}" : 1]>
        g (float[2,4] x) => (float[2,4] y, float[2,4] z) {{ y, z = {prefix}Own(x) }}
        <opset_import: ["" : 20], domain: "{domain}">
        Own (A) => (B, C) {{ B = Neg(A) C = Abs(A) }}"""
    model = tieops.from_onnx(onnx_ir.from_onnx_text(text))
    small = tieops.remove_disconnected_outputs(model, keep=["y"])
    assert [len(node.outputs) for node in small.ir.graph] == [2]
    assert removal_report(model, keep=["y"]) == [
        "output z: removed as asked",
        "Own: not changed, nobody reads some of its outputs, but it stands in for an operator "
        "that a runtime may have itself",
    ]


def test_functions_in_a_circle_do_not_hang():
    text = """<ir_version: 10, opset_import: ["" : 20, "f" : 1]>
        g (float[2,4] x) => (float[2,4] y, float[2,4] z) { y, z = f.round(x, x) }\n"""
    text += FUNCTION + "round (a, b) => (c, d) { c, h = f.back(a, b)  d = Neg(b) }\n"
    text += FUNCTION + "back (a, b) => (c, d) { c, d = f.round(a, b) }\n"
    model = onnx_ir.from_onnx_text(text)
    RemoveDisconnectedOutputsPass(keep=("y",))(model)
    assert [(len(f.inputs), len(f.outputs)) for f in model.functions.values()] == [(0, 1)] * 2


def test_a_function_that_one_call_hands_a_graph_stays_as_it_is():
    """What such a call reads is not known, so no other call may lose anything either."""
    text = f"""<ir_version: 10, opset_import: ["" : 20, "f" : 1]>
        g (float[2,4] x) => (float[2,4] y, float[2,4] z) {{
          y, h, k = f.three(x, x)
          z, i, j = f.three <body = b () => (float[2,4] p) {{ p = Neg(x) }}> (x, x)
        }}
        {FUNCTION} three <body> (a, b) => (c, d, e)
          {{ c = Neg(a)  d = Neg(b)  e = If(a) <then_branch : graph = @body> }}"""
    model = onnx_ir.from_onnx_text(text)
    RemoveDisconnectedOutputsPass()(model)
    assert [(len(n.inputs), len(n.outputs)) for n in model.graph] == [(2, 3), (2, 3)]
    RemoveDisconnectedOutputsPass(keep=("y",))(model)
    assert [(len(n.inputs), len(n.outputs)) for n in model.graph] == [(1, 1)]


def test_a_call_that_feeds_another_of_its_function_keeps_what_it_reads():
    model = made(
        "g (float[2,4] x) => (float[2,4] y) { h = Neg(x)  k = f.turn(h)  y = f.turn(k) }",
        ["turn (a) => (b) { b = Abs(a) }"],
    )
    small = trimmed(model, X)
    assert [node.op_type for node in small.ir.graph] == ["Neg", "turn", "turn"]


def test_each_overload_of_a_function_is_its_own():
    texts = [
        """<ir_version: 10, opset_import: ["" : 20, "f" : 1]>
        g (float[2,4] x) => (float[2,4] y, float[2,4] z)
        { y, h = f.two:a(x, x)  k, z = f.two:b(x, x) }""",
        FUNCTION.replace(">", ', overload: "a">')
        + "two (a, b) => (c, d) { c = Neg(a) d = Neg(b) }",
        FUNCTION.replace(">", ', overload: "b">')
        + "two (a, b) => (c, d) { c = Abs(a) d = Abs(b) }",
    ]
    model = tieops.from_onnx(onnx_ir.from_onnx_text("\n".join(texts)))
    small = trimmed(model, X)
    assert [(n.overload, len(n.inputs), len(n.outputs)) for n in small.ir.graph] == [
        ("a", 1, 1),
        ("b", 1, 1),
    ]
