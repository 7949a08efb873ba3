"""Inlining of calls: heads within functions, and functions behind a head, for one call alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.graphs import CONSTANT, made, rows
from tests.support.model_facts import dead, outputs, serialized, unread
from tieops.errors import PreconditionError
from tieops.passes.base import run
from tieops.passes.replace_head import ReplaceHeadPass

X = rows(2, 8)

WEIGHT, BIAS = rows(5, 8), rows(5)
RELU = "act (a) => (o) { o = Relu(a) }"


def changed(model: tieops.TiedModel, head: str | None = None) -> tuple[tieops.TiedModel, list[str]]:
    """Give a model a head of 5 features; return it, and the functions of which a call went."""
    before = serialized(model.ir)
    pass_ = ReplaceHeadPass(head=head, out_features=5, init=WEIGHT, bias=BIAS)
    small, result = run(pass_, model)
    assert serialized(model.ir) == before
    onnx.checker.check_model(onnx_ir.to_proto(small.ir), full_check=True)
    assert not dead(small)
    assert not unread(small)
    calls = [str(each).partition(":")[0] for each in result.changes if "inlined" in str(each)]
    return small, [each.removeprefix("call of ") for each in calls]


@pytest.mark.parametrize("linear", ["o = Gemm(a, w, b)", "m = MatMul(a, w)  o = Add(m, b)"])
def test_a_head_in_a_function(linear: str):
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w)  y = f.head(h, w, b) }",
        [f"head (a, w, b) => (o) {{ {linear} }}"],
        w=(8, 8),
        b=(8,),
    )
    small, inlined = changed(model)
    assert inlined == ["head"]
    assert not small.ir.functions
    want = X @ model.parameters[0].numpy() @ WEIGHT.T + BIAS
    assert np.allclose(outputs(small, {"x": X})["y"], want, atol=1e-5)
    assert small.ir.graph.outputs[0].shape == (2, 5)


def test_functions_in_functions_and_behind_the_head():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) {"
        " h = MatMul(x, w)  i = f.act(h)  j = f.outer(i, w)  y = f.act(j) }",
        [
            RELU,
            "head (a, w) => (o) { o = MatMul(a, w) }",
            "outer (a, w) => (o) { b = Identity(a)  o = f.head(b, w) }",
        ],
        w=(8, 8),
    )
    small, inlined = changed(model)
    assert inlined == ["outer", "head", "act"]
    assert [key[1] for key in small.ir.functions] == ["act"]  # the call in front stays one
    want = np.maximum(np.maximum(X @ model.parameters[0].numpy(), 0) @ WEIGHT.T + BIAS, 0)
    assert np.allclose(outputs(small, {"x": X})["y"], want, atol=1e-5)


def test_a_function_behind_a_head_of_the_main_graph():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w)  i = Neg(h)  y = f.act(i) }",
        [RELU],
        w=(8, 8),
    )
    small, inlined = changed(model)
    assert inlined == ["act"]
    want = np.maximum(-(X @ WEIGHT.T + BIAS), 0)
    assert np.allclose(outputs(small, {"x": X})["y"], want, atol=1e-5)


def test_what_other_calls_read_stays_one_tensor():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = f.mlp(x, w)  y = f.mlp(h, w) }",
        ["mlp (a, v) => (o) { " + CONSTANT + "m = MatMul(a, w)  o = MatMul(m, v) }"],
        w=(8, 8),
    )
    held = next(p for p in model.parameters if p.is_constant_node)
    small, inlined = changed(model)
    assert inlined == ["mlp", "mlp"]  # a body that stays could not read the one tensor
    (tie,) = small.ties
    assert len(tie.slots) == 2
    assert np.array_equal(tie.parameter.numpy(), held.numpy())
    assert len(small.parameters) == 4


def test_a_named_call_of_several():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z) { y = f.head(x, w)  z = f.head(x, w) }",
        ["head (a, w) => (o) { o = MatMul(a, w) }"],
        w=(8, 8),
    )
    with pytest.raises(PreconditionError, match=r"ambiguous[^$]*head/MatMul_o, head/MatMul_o@1"):
        changed(model)
    small, _ = changed(model, "head/MatMul_o@1")
    assert [tuple(each.shape) for each in small.ir.graph.outputs] == [(2, 8), (2, 5)]
    assert np.array_equal(outputs(small, {"x": X})["y"], outputs(model, {"x": X})["y"])


def test_a_branch_in_a_function_is_refused():
    model = made(
        "g (float[2,8] x, bool c) => (float[2,8] y) { y = f.some(x, w, c) }",
        [
            "some (a, w, c) => (o) { o = If(c) <then_branch = t () => (p) { p = MatMul(a, w) },"
            " else_branch = e () => (q) { q = Neg(a) }> }"
        ],
        w=(8, 8),
    )
    with pytest.raises(PreconditionError, match="in the body of an If, Loop or Scan"):
        changed(model)


def of_opset(text: str, version: int) -> tieops.TiedModel:
    """Return a model of an opset that calls a function of opset 20."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { y = f.head(x, w) }",
        [f"head (a, w) => (o) {{ {text} }}"],
        w=(8, 8),
    )
    graph = model.clone()
    graph.opset_imports[""] = version
    return tieops.TiedModel(graph)


def test_a_function_of_another_opset_is_inlined_if_its_operators_are_the_same():
    small, inlined = changed(of_opset("o = MatMul(a, w)", 21))
    assert inlined == ["head"]
    assert np.allclose(outputs(small, {"x": X})["y"], X @ WEIGHT.T + BIAS, atol=1e-5)
    assert small.ir.opset_imports[""] == 21


def test_a_function_of_another_opset_is_refused():
    model = of_opset("b = Cast<to = 1>(a)  o = MatMul(b, w)", 12)
    with pytest.raises(PreconditionError, match=r"opset 20 .* the model 12, and Cast may differ"):
        changed(model)
