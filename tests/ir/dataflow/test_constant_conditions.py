"""Branches that never run: which conditions are constants, and what stays when a branch goes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tieops.ir.dataflow.constant_conditions import constant_ifs, fold_constant_conditions
from tieops.model import TiedModel

HEAD = '<ir_version: 10, opset_import: ["" : 20, "f" : 1]> '


def parsed(text: str) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(HEAD + text)


def decided(stored: str, body: str, inputs: str = "float[2] x") -> list[bool]:
    """Return the conditions of the Ifs over ``c`` that are constants."""
    model = parsed(f"""g ({inputs}) => (float[2] y) <{stored}> {{ {body}
        y = If(c) <then_branch = a () => (float[2] p) {{ p = Neg(x) }},
                   else_branch = b () => (float[2] q) {{ q = Abs(x) }}> }}""")
    return [taken for _, taken in constant_ifs(model)]


@pytest.mark.parametrize(
    ("stored", "body", "taken"),
    [
        ("bool c = {1}", "", True),
        ("bool c = {0}", "", False),
        ("bool[1] c = {1}", "", True),
        ("bool d = {1}", "e = Identity(d) c = Not(e)", False),
        ("int64 d = {3}", "c = Cast<to = 9>(d)", True),
        ("int64 d = {3}, int64 e = {3}", "c = Equal(d, e)", True),
        ("float d = {3}, float e = {4}", "f = Less(d, e) g = GreaterOrEqual(d, e) c = Or(f, g)",
         True),
        ("float d = {3}", "e = Constant<value = float {4.0}>() c = Greater(d, e)", False),
    ],
)  # fmt: skip
def test_a_condition_that_is_stored_or_computed_from_that_is_a_constant(stored, body, taken):
    assert decided(stored, body) == [taken]


@pytest.mark.parametrize(
    ("stored", "body", "inputs"),
    [
        ("bool d = {1}", "c = And(d, fed)", "float[2] x, bool fed"),
        ("bool c = {1}", "", "float[2] x, bool c"),  # a default, which a caller may override
        ("bool[2] c = {1, 0}", "", "float[2] x"),
        ("float d = {0.5}", "c = RandomDraw(d)", "float[2] x"),
        ("float d = {0.5}", "e = RandomUniformLike(d) c = Less(d, e)", "float[2] x"),
        ("float[2] d = {1, 2}, float[3] e = {1, 2, 3}", "c = Less(d, e)", "float[2] x"),
        ("float d = {2.5}, int64 i = {2}", "e = Cast<to = 7>(d) c = Equal(e, i)", "float[2] x"),
    ],
)
def test_what_may_change_or_cannot_be_told_is_none(stored, body, inputs):
    assert decided(stored, body, inputs) == []


NESTED = """g (float[2] x) => (float[2] y, float[2] z, float[2] u)
    <float[2] w = {1, 2}, float[2] v = {3, 4}, bool c = {1}> {
  d = Not(c)
  y = If(d) <then_branch = a () => (float[2] p) { p = Add(x, w) },
             else_branch = b () => (float[2] q) { q = Mul(x, v) }>
  k = If(c) <then_branch = a () => (float[2] p) <float[2] own = {7, 8}> {
               r = Add(x, own)
               p = If(c) <then_branch = a1 () => (float[2] s) { s = Add(r, v) },
                          else_branch = b1 () => (float[2] s) { s = Mul(x, w) }> },
             else_branch = b () => (float[2] q) <float[2] own = {5, 6}> { q = Mul(x, own) }>
  u = If(c) <then_branch = a () => (float[2] own) <float[2] own = {9, 10}> { },
             else_branch = b () => (float[2] q) { q = Mul(x, v) }>
  z = Neg(k) }"""


def test_branches_in_branches_go_and_outputs_keep_names_types_and_bits(plain_runtime):
    model = parsed(NESTED)
    feeds = plain_runtime.feeds(model)
    before = plain_runtime.run(model, feeds)
    signature = [(str(o.name), str(o.type), str(o.shape)) for o in model.graph.outputs]
    gone = fold_constant_conditions(model)
    assert sorted(kind for kind, _ in gone if "branch" in kind) == ["else_branch"] * 3 + [
        "then_branch"
    ]
    assert ("initializer", "w") in gone
    assert [node.op_type for node in model.graph] == ["Mul", "Add", "Add", "Identity", "Neg"]
    assert [(str(o.name), str(o.type), str(o.shape)) for o in model.graph.outputs] == signature
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    for one, other in zip(before, plain_runtime.run(model, feeds), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_was_unread_before_is_left_alone():
    model = parsed("""g (float[2] x) => (float[2] y) <bool c = {1}, float[2] lost = {1, 2}> {
        idle = Neg(lost)
        y = If(c) <then_branch = a () => (float[2] p) { p = Neg(x) },
                   else_branch = b () => (float[2] q) { q = Abs(x) }> }""")
    fold_constant_conditions(model)
    assert [node.op_type for node in model.graph] == ["Neg", "Neg"]
    assert list(model.graph.initializers) == ["lost"]


def test_in_a_function_what_the_branch_stores_becomes_a_constant_node(plain_runtime):
    model = onnx_ir.from_onnx_text(HEAD + """g (float[2] x) => (float[2] y) { y = f.pick(x) }
        <domain: "f", opset_import: ["" : 20]> pick (x) => (y) {
          c = Constant<value = bool {0}>()
          y = If(c) <then_branch = a () => (float[2] p) { p = Neg(x) },
                     else_branch = b () => (float[2] q) <float[2] own = {5, 6}> {
                       q = Mul(x, own) }> }""")  # fmt: skip
    feeds = plain_runtime.feeds(model)
    before = plain_runtime.run(model, feeds)
    fold_constant_conditions(model)
    (function,) = model.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Mul"]
    np.testing.assert_array_equal(before[0], plain_runtime.run(model, feeds)[0])


def test_a_tie_into_a_branch_that_runs_is_kept():
    model = TiedModel(parsed("""g (float[8, 8] x) => (float[8, 8] y) <bool c = {1}> {
        h = MatMul(x, w)
        y = If(c) <then_branch = a () => (float[8, 8] p) { p = MatMul(h, w) },
                   else_branch = b () => (float[8, 8] q) { q = Abs(h) }> }""".replace(
        "bool c = {1}", f"bool c = {{1}}, float[8, 8] w = {{{', '.join(map(str, range(64)))}}}"
    )))  # fmt: skip
    smaller = tieops.remove_dead_branches(model)
    assert [tie.names for tie in smaller.ties] == [tie.names for tie in model.ties] == [("w",)]
    assert len(model.ir.graph) == 2
    assert [node.op_type for node in smaller.ir.graph] == ["MatMul", "MatMul"]


def test_a_model_without_such_branches_is_left_as_it_is():
    model = TiedModel(parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    assert [node.op_type for node in tieops.remove_dead_branches(model).ir.graph] == ["Neg"]
