"""What inputs reach and outputs need: through branches, loops and functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir
import pytest

from tests.test_passes_untie import made
from tieops.ir.dependence import reached_from_inputs
from tieops.ir.reach import Liveness, prune


def graph(text: str, functions: Sequence[str] = (), **tensors: object) -> onnx_ir.Model:
    return made(text, functions, **tensors).clone()


def reached(model: onnx_ir.Model) -> set[str | None]:
    own = {v for node in model.graph for v in node.outputs}
    return {value.name for value in reached_from_inputs(model) & own}


def names(model: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


W = {"w": (3, 4)}


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("a = Neg(x)  b = Neg(w)  y = Add(a, b)", {"a", "y"}),
        ("a = Neg(w)  b = Neg(a)  y = Identity(x)", {"y"}),
        ("a = Shape(x)  b = ConstantOfShape(a)  y = Add(b, w)", {"a", "b", "y"}),
        ("a = RandomNormal<shape = [3, 4]>()  y = Add(a, w)", {"a", "y"}),
        ("c, d = Split<num_outputs = 2>(x)  y = Neg(w)", {"c", "d"}),
    ],
)
def test_what_depends_on_the_inputs(body: str, want: set[str]) -> None:
    assert reached(graph(f"g (float[3,4] x) => (float[3,4] y) {{ {body} }}", **W)) == want


@pytest.mark.parametrize(
    ("condition", "then", "want"),
    [
        ("c", "t = Neg(x)", {"y"}),
        ("c", "t = Neg(w)", set()),
        ("flag", "t = Neg(w)", {"y"}),
    ],
)
def test_an_if_depends_on_its_condition_and_on_what_its_branches_read(
    condition: str, then: str, want: set[str]
) -> None:
    model = graph(
        f"""g (float[3,4] x, bool flag) => (float[3,4] y) {{ y = If({condition}) <
            then_branch = b1 () => (float[3,4] t) {{ {then} }},
            else_branch = b2 () => (float[3,4] e) {{ e = Identity(w) }}> }}""",
        w=(3, 4),
        c=np.array(True),
    )
    assert reached(model) == want


def test_a_function_that_draws_random_numbers_is_no_constant() -> None:
    inner = "draw (a) => (b) { r = RandomNormalLike(a)  b = Add(a, r) }"
    outer = "twice (a) => (b) { b = f.draw(a) }"
    still = "still (a) => (b) { b = Neg(a) }"
    text = "g (float[3,4] x) => (float[3,4] y) { r = f.twice(w)  s = f.still(w)  y = Neg(x) }"
    assert reached(graph(text, (inner, outer, still), **W)) == {"r", "y"}


def test_pruning_says_what_went_and_leaves_inputs_alone() -> None:
    text = "g (float[3,4] x, float[3,4] z) => (float[3,4] y) { a = Neg(w)  b = Neg(a)  y = Neg(x) }"
    model = graph(text, **W)
    gone = prune(model)
    assert [what for what, _ in gone] == ["node", "node", "initializer"]
    assert gone[-1] == ("initializer", "w")
    assert names(model) == ["Neg"]
    assert [value.name for value in model.graph.inputs] == ["x", "z"]
    assert prune(model) == []
    assert prune(model, unused_inputs=True) == [("input", "z")]
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_pruning_removes_functions_that_only_a_dead_call_needed() -> None:
    functions = ("inner (a) => (b) { b = Neg(a) }", "outer (a) => (b) { b = f.inner(a) }")
    model = graph("g (float[3,4] x) => (float[3,4] y) { a = f.outer(w)  y = Neg(x) }", functions,
                  **W)  # fmt: skip
    gone = prune(model)
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
