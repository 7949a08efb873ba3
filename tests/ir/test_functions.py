"""Inlining has one home; what it keeps of names, ties, attributes and bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch

import tieops
from tests.support.graphs import CONSTANT, made, rows
from tests.support.model_facts import outputs

X = rows(2, 8)

HOME = Path(tieops.__file__).parent / "ir" / "functions"
ALPHA = "LeakyRelu<alpha: float = @alpha>"
FUNCTIONS = {
    "given, or by default": (
        "h = f.t<alpha = 0.3>(x, w)  y = f.t(h, w)",
        [f"t <alpha: float = 0.7> (a, v) => (o) {{ b = MatMul(a, v)  q = {ALPHA}(b)"
         "  o = MatMul(q, v) }"],
    ),
    "left out": (
        "h = f.t<alpha = 0.3>(x, w)  y = f.t(h, w)",
        [f"t <alpha> (a, v) => (o) {{ b = MatMul(a, v)  q = {ALPHA}(b)  o = MatMul(q, v) }}"],
    ),
    "in a branch": (
        "c = Constant<value = bool {1}>()  h = f.t<alpha = 0.3>(x, w, c)  y = f.t(h, w, c)",
        [f"t <alpha: float = 0.7> (a, v, c) => (o) {{ b = MatMul(a, v)  o = If(c)"
         f" <then_branch = t () => (p) {{ q = {ALPHA}(b)  p = MatMul(q, v) }},"
         " else_branch = e () => (r) { r = MatMul(b, v) }> }"],
    ),
    "handed on": (
        "h = f.o<beta = 0.3>(x, w)  y = f.o(h, w)",
        [f"i <alpha: float = 0.9> (a, v) => (o) {{ b = MatMul(a, v)  q = {ALPHA}(b)"
         "  o = MatMul(q, v) }",
         "o <beta: float = 0.1> (a, v) => (o) { b = f.i<alpha: float = @beta>(a, v)"
         "  c = f.i(b, v)  t = Transpose(v)  o = MatMul(c, t) }"],
    ),
    "returns what it is given": (
        "h, k = f.o(x, w)  i, l = f.o(h, k)  y = MatMul(i, l)",
        ["o (a, v) => (o, r) { k = MatMul(a, v)  o = MatMul(k, v)  r = Identity(v) }"],
    ),
    "names of the main graph": (
        "a = f.o(x, w)  k = f.o(a, w)  y = MatMul(k, w)",
        ["o (a, w) => (o) { k = MatMul(a, w)  o = MatMul(k, w) }"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS.values(), ids=FUNCTIONS)
def test_layers_bits_and_ties_stay(case: tuple[str, list[str]]) -> None:
    model = made(f"g (float[2,8] x) => (float[2,8] y) {{ {case[0]} }}", case[1], w=(8, 8))
    want = outputs(model, {"x": X})["y"]
    names = sorted(slot.name for slot in model.slots)
    free = tieops.untie(model)
    assert not free.ties
    assert sorted(slot.name for slot in free.slots) == names
    assert np.array_equal(outputs(free, {"x": X})["y"], want)
    again = tieops.tie(free)
    assert [sorted(map(str, t.slots)) for t in again.ties] == [
        sorted(map(str, t.slots)) for t in model.ties
    ]
    values = [v.name for n in free.ir.graph.all_nodes() for v in n.outputs]
    assert len(set(values)) == len(values)
    for slot in model.slots:
        one = tieops.untie(model, slot)
        assert sorted(each.name for each in one.slots) == names
        assert np.array_equal(outputs(one, {"x": X})["y"], want)
        (own,) = [each for each in one.slots if each.name == slot.name]
        assert not any(own in tie.slots for tie in one.ties)
    trained = tieops.to_torch(model)
    assert len([*trained.parameters()]) == 1
    assert np.allclose(trained(torch.from_numpy(X)).detach().numpy(), want, rtol=1e-3, atol=1e-4)


def test_a_weight_that_a_body_stores_is_one_parameter() -> None:
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = f.lin(x)  y = f.lin(h) }",
        ["lin (a) => (o) { " + CONSTANT + "o = MatMul(a, w) }"],
    )
    trained = tieops.to_torch(model)
    assert [name for name, _ in trained.named_parameters()] == ["w"]
    want = outputs(model, {"x": X})["y"]
    assert np.allclose(trained(torch.from_numpy(X)).detach().numpy(), want, rtol=1e-3, atol=1e-4)


def test_nobody_else_inlines() -> None:
    for path in HOME.parents[1].rglob("*.py"):
        if path.parent != HOME:
            text = path.read_text("utf-8")
            assert "InlinePass" not in text, path
            assert "function.inputs.append" not in text, path


@pytest.mark.slow
def test_more_functions_than_onnx_takes() -> None:
    count = 10_001
    body = onnx_ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 20, "f": 1]>'
        " g (float[2] x) => (float[2] y) { y = f.F0(x) }"
    )
    for place in range(count):
        value = onnx_ir.Value(name="a")
        node = onnx_ir.node("Neg", [value])
        node.outputs[0].name = "o"
        graph = onnx_ir.Graph([value], [node.outputs[0]], nodes=[node], opset_imports={"": 20})
        function = onnx_ir.Function("f", f"F{place}", graph=graph, attributes=[])
        body.functions[function.identifier()] = function
    model = tieops.from_onnx(body)
    assert "Neg" in str(model)
    assert tieops.untie(model).ir.functions
