"""What outputs need: through branches, loops and functions."""

from __future__ import annotations

import onnx_ir

from tests.support.graphs import graph
from tieops.ir.dataflow.liveness import Liveness, eliminate_dead_code


def names(model: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


W = {"w": (3, 4)}


def test_pruning_says_what_went_and_leaves_inputs_alone() -> None:
    text = "g (float[3,4] x, float[3,4] z) => (float[3,4] y) { a = Neg(w)  b = Neg(a)  y = Neg(x) }"
    model = graph(text, **W)
    gone = eliminate_dead_code(model)
    assert [what for what, _ in gone] == ["node", "node", "initializer"]
    assert gone[-1] == ("initializer", "w")
    assert names(model) == ["Neg"]
    assert [value.name for value in model.graph.inputs] == ["x", "z"]
    assert eliminate_dead_code(model) == []
    assert eliminate_dead_code(model, unused_inputs=True) == [("input", "z")]
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_pruning_removes_functions_that_only_a_dead_call_needed() -> None:
    functions = ("inner (a) => (b) { b = Neg(a) }", "outer (a) => (b) { b = f.inner(a) }")
    model = graph("g (float[3,4] x) => (float[3,4] y) { a = f.outer(w)  y = Neg(x) }", functions,
                  **W)  # fmt: skip
    gone = eliminate_dead_code(model)
    assert {("function", "inner"), ("function", "outer"), ("initializer", "w")} <= {*gone}
    assert not model.functions


def test_an_edit_s_dead_ends_go_and_older_ones_stay() -> None:
    text = "g (float[3,4] x) => (float[3,4] y) { old = Neg(w)  a = Neg(v)  y = Add(x, a) }"
    model = graph(text, w=(3, 4), v=(3, 4), unread=(2, 2))
    liveness = Liveness(model)
    add = model.graph[-1]
    add.replace_input_with(1, model.graph.inputs[0])
    assert [what for what, _ in liveness.remove_newly_dead()] == ["node", "initializer"]
    assert names(model) == ["Neg", "Add"]
    assert [*model.graph.initializers] == ["w", "unread"]
    assert liveness.remove_newly_dead() == []
