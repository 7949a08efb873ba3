"""What the outputs of a graph depend on: through branches, loops, scans and functions."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from tests.support.graphs import FUNCTION, graph
from tieops.ir.dataflow.input_dependent import input_dependent_values
from tieops.ir.operators.predicates import is_random

W = {"w": (3, 4)}


def reached(model: onnx_ir.Model) -> set[str | None]:
    own = {v for node in model.graph for v in node.outputs}
    return {value.name for value in input_dependent_values(model) & own}


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


@pytest.mark.parametrize(("domain", "want"), [("my", {"a", "y"}), ("com.microsoft", set())])
def test_somebodys_own_operator_may_be_random(domain: str, want: set[str]) -> None:
    model = onnx_ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20, "{domain}": 1]>
        g (float[4] x) => (float[4] y) <float[4] w = {{1, 2, 3, 4}}>
        {{ a = {domain}.Gelu(w)  y = Neg(a) }}"""
    )
    assert reached(model) == want


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


# -- each output by itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "other", "want"),
    [
        ("t = Neg(x)  u = Neg(w)", "e = Neg(w)  h = Neg(w)", {"y"}),
        ("t = Neg(w)  u = Neg(w)", "e = Neg(w)  h = Neg(x)", {"z"}),
        ("t = Neg(x)  u = Neg(w)", "e = Neg(w)  h = Neg(x)", {"y", "z"}),
        ("t = Neg(w)  u = RandomNormalLike(w)", "e = Neg(w)  h = Neg(w)", {"z"}),
    ],
)
def test_each_output_of_an_if_depends_on_its_own_branches(
    then: str, other: str, want: set[str]
) -> None:
    model = graph(
        f"""g (float[3,4] x) => (float[3,4] y, float[3,4] z) {{ y, z = If(c) <
            then_branch = b1 () => (float[3,4] t, float[3,4] u) {{ {then} }},
            else_branch = b2 () => (float[3,4] e, float[3,4] h) {{ {other} }}> }}""",
        w=(3, 4),
        c=np.array(True),
    )
    assert reached(model) == want


def loop(body: str, call: str = "(n, , w, w)") -> onnx_ir.Model:
    """Two states, p and q, and one scan output."""
    return graph(
        f"""g (float[3,4] x, int64 m, bool flag)
            => (float[3,4] y, float[3,4] z, float[k,3,4] s) {{ y, z, s = Loop{call} <
            body = b (int64 i, bool go, float[3,4] p, float[3,4] q)
              => (bool on, float[3,4] p2, float[3,4] q2, float[3,4] r) {{ {body} }}> }}""",
        w=(3, 4),
        n=np.array(2),
    )


STILL = "on = Identity(go)  p2 = Neg(p)  q2 = Neg(q)  r = Neg(w)"


@pytest.mark.parametrize(
    ("body", "call", "want"),
    [
        (STILL, "(n, , w, w)", set()),
        (STILL, "(n, , x, w)", {"y"}),
        (STILL, "(m, , w, w)", {"y", "z", "s"}),
        (STILL, "(n, flag, w, w)", {"y", "z", "s"}),
        ("on = Identity(go)  p2 = Neg(p)  q2 = Neg(q)  r = Neg(x)", "(n, , w, w)", {"s"}),
        ("on = Identity(go)  p2 = Neg(x)  q2 = Neg(w)  r = Neg(w)", "(n, , w, w)", {"y"}),
        # The value of x gets into q one round after it got into p.
        ("on = Identity(go)  p2 = Neg(x)  q2 = Neg(p)  r = Neg(w)", "(n, , w, w)", {"y", "z"}),
        ("on = Identity(go)  p2 = Neg(w)  q2 = Neg(q)  r = Neg(p)", "(n, , x, w)", {"y", "s"}),
        # Without a round y is the value that it began at.
        ("on = Identity(go)  p2 = Neg(w)  q2 = Neg(q)  r = Neg(w)", "(n, , x, w)", {"y"}),
        # Whether there is another round depends on p.
        ("a = ReduceSum<keepdims = 0>(p)  on = Cast<to = 9>(a)  p2 = Neg(p)  q2 = Neg(q)"
         "  r = Neg(w)", "(n, , x, w)", {"y", "z", "s"}),
    ],
)  # fmt: skip
def test_each_output_of_a_loop_depends_on_its_own_value(
    body: str, call: str, want: set[str]
) -> None:
    assert reached(loop(body, call)) == want


@pytest.mark.parametrize(
    ("call", "body", "want"),
    [
        ("(w, v, v)", "t = Add(p, a)  r = Neg(b)", set()),
        ("(w, x, v)", "t = Add(p, a)  r = Neg(b)", {"y"}),
        ("(w, v, x)", "t = Add(p, a)  r = Neg(b)", {"s"}),
        # As long as x is; nothing else tells how long that is.
        ("(w, x, x)", "t = Neg(p)  r = Neg(p)", {"y", "s"}),
        ("(w, x, v)", "t = Neg(p)  r = Neg(p)", set()),
    ],
)
def test_each_output_of_a_scan_depends_on_its_own_value(
    call: str, body: str, want: set[str]
) -> None:
    model = graph(
        f"""g (float[5,4] x) => (float[4] y, float[5,4] s) {{
            y, s = Scan{call} <num_scan_inputs = 2, body = b (float[4] p, float[4] a, float[4] b)
              => (float[4] t, float[4] r) {{ {body} }}> }}""",
        w=(4,),
        v=(5, 4),
    )
    assert reached(model) == want


@pytest.mark.parametrize(
    ("functions", "want"),
    [
        (["both (a, b) => (c, d) { c = Neg(a)  d = Neg(b) }"], {"y"}),
        (["both (a, b) => (c, d) { d = Neg(a)  c = Neg(b) }"], {"z"}),
        (["both (a, b) => (c, d) { c = Neg(b)  d = Neg(b) }"], set()),
        (["both (a, b) => (c, d) { c = Add(a, b)  d = Shape(a) }"], {"y", "z"}),
        (["both (a, b) => (c, d) { d, c = f.swap(b, a) }",
          "swap (a, b) => (c, d) { d = Neg(a)  c = Neg(b) }"], {"z"}),
        (["both (a, b) => (c, d) { c = Neg(b)  d = f.draw(b) }",
          "draw (a) => (c) { c = RandomNormalLike(a) }"], {"z"}),
        (["""both (a, b) => (c, d) { n = Constant<value_int = 2>()  c, d = Loop(n, , b, b) <
             body = l (int64 i, bool go, float p, float q) => (bool on, float p2, float q2)
               { on = Identity(go)  p2 = Neg(p)  q2 = Neg(a) }> }"""], {"z"}),
    ],
)  # fmt: skip
def test_each_output_of_a_call_depends_on_the_inputs_its_function_makes_it_from(
    functions: list[str], want: set[str]
) -> None:
    text = "g (float[3,4] x) => (float[3,4] y, float[3,4] z) { y, z = f.both(x, w) }"
    assert reached(graph(text, functions, **W)) == want


def test_a_call_in_a_branch_hands_on_what_the_branch_captures() -> None:
    model = graph(
        """g (float[3,4] x) => (float[3,4] y, float[3,4] z) { y, z = If(c) <
            then_branch = b1 () => (float[3,4] t, float[3,4] u) { t, u = f.both(w, x) },
            else_branch = b2 () => (float[3,4] e, float[3,4] h) { e = Neg(w)  h = Neg(w) }> }""",
        ["both (a, b) => (c, d) { c = Neg(a)  d = Neg(b) }"],
        w=(3, 4),
        c=np.array(True),
    )
    assert reached(model) == {"z"}


def unchecked(text: str, functions: list[str]) -> onnx_ir.Model:
    """Return what ``from_onnx`` refuses, for passes run on graphs from elsewhere too."""
    header = '<ir_version: 10, opset_import: ["" : 20, "f" : 1]>\n'
    return onnx_ir.from_onnx_text("\n".join([header + text, *(FUNCTION + f for f in functions)]))


def test_a_function_that_calls_itself_may_do_anything() -> None:
    functions = [
        "circle (a, b) => (c, d) { c, d = f.circle(b, b) }",
        "one (a, b) => (c, d) { c = Neg(a)  d = f.two(b) }",
        "two (a) => (b) { b = f.three(a) }",
        "three (a) => (b) { b = f.two(a) }",
    ]
    text = """g (float[3,4] x) => (float[3,4] p)
        {{ w = Constant<value_float = 1.>()  p, q = f.{}(w, w) }}"""
    assert reached(unchecked(text.format("circle"), functions)) == {"p", "q"}
    assert reached(unchecked(text.format("one"), functions)) == {"q"}


def test_many_calls_of_calls_are_looked_at_once_a_function() -> None:
    """Written out, these are 2**60 calls."""
    functions = [f"f{i} (a) => (b) {{ c = f.f{i + 1}(a)  b = f.f{i + 1}(c) }}" for i in range(60)]
    functions.append("f60 (a) => (b) { b = Neg(a) }")
    text = """g (float[3,4] x) => (float[3,4] y, float[3,4] z)
        { w = Constant<value_float = 1.>()  y = f.f0(x)  z = f.f0(w) }"""
    assert reached(unchecked(text, functions)) == {"y"}


@pytest.mark.parametrize(
    ("inputs", "want"), [("(x)", False), ("(x, r, on)", True), ("(x, r, off)", False)]
)
def test_a_dropout_is_random_while_it_trains(inputs: str, want: bool) -> None:
    model = graph(
        f"g (float[3,4] x) => (float[3,4] y) {{ y = Dropout{inputs} }}",
        r=np.array(0.5, np.float32),
        on=np.array(True),
        off=np.array(False),
    )
    assert is_random(model.graph[0]) is want
