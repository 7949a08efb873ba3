"""Removing layers: what went in takes the place of what came out, under its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import nn

import tieops
from tests.support.graphs import made, rows
from tests.support.model_facts import dead, operators, outputs, serialized, unread
from tests.support.tied_head import TOKENS
from tieops.errors import PreconditionError, SelectionError
from tieops.model import TiedModel


def removed(model: TiedModel, *layers: str) -> TiedModel:
    """Remove layers, and check all that always holds."""
    before = serialized(model.ir)
    small = tieops.remove_layers(model, layers)
    assert serialized(model.ir) == before, "the argument was changed"
    onnx.checker.check_model(onnx_ir.to_proto(small.ir), full_check=True)
    assert [v.name for v in small.ir.graph.outputs] == [v.name for v in model.ir.graph.outputs]
    assert not unread(small)
    assert not dead(small)
    return small


class Classifier(nn.Module):
    """A tied classifier of which each part can be left out."""

    def __init__(self, *without: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(12, 8)
        self.mid = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.act = nn.GELU()
        self.fc = nn.Linear(8, 12, bias=False)
        self.fc.weight = self.emb.weight
        self.soft = nn.Softmax(dim=-1)
        for name in without:
            setattr(self, name, nn.Identity())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h: Any = self.act(self.norm(self.mid(self.emb(ids))))
        return self.soft(self.fc(h))


@pytest.fixture(scope="module")
def model() -> TiedModel:
    return tieops.from_torch(Classifier().eval(), (torch.from_numpy(TOKENS),))


@pytest.mark.parametrize(
    "gone", [("soft",), ("norm",), ("act",), ("mid",), ("mid", "norm", "act"), ("soft", "act")]
)
def test_what_is_left_is_the_module_without_them(model, gone):
    small = removed(model, *gone)
    plain = tieops.from_torch(Classifier(*gone).eval(), (torch.from_numpy(TOKENS),))
    (got,) = outputs(small, {"ids": TOKENS}).values()
    (want,) = outputs(plain, {"ids": TOKENS}).values()
    np.testing.assert_array_equal(got, want)
    assert {p.names for p in small.parameters} == {p.names for p in plain.parameters}


def test_a_tied_layer_takes_its_name_along():
    tied = made(
        "g (float[2,4] x) => (float[2,4] y) { h = MatMul(x, w)  k = Relu(h)  y = MatMul(k, w) }",
        w=(4, 4),
    )
    named = tieops.rename(tied, {"MatMul_h": "first", "MatMul_y": "second"})
    small = removed(named, "second")
    assert operators(small) == ["MatMul", "Relu"]
    assert not small.ties
    x = rows(2, 4)
    weight = tied.parameters[0].tensor.numpy()
    np.testing.assert_allclose(
        outputs(small, {"x": x})["y"], np.maximum(x @ weight, 0), rtol=1e-5, atol=1e-6
    )


def test_a_layer_between_an_input_and_an_output_leaves_the_input_handed_through():
    small = removed(made("g (float[2] x) => (float[2] y) { y = Relu(x) }"), "Relu_y")
    assert operators(small) == ["Identity"]
    assert outputs(small, {"x": np.float32([-1, 2])})["y"].tolist() == [-1, 2]


def test_a_layer_in_a_branch_is_removed_there():
    model = made(
        """g (bool c, float[2,4] x) => (float[2,4] y) {
          y = If(c) <then_branch = a () => (float[2,4] p) { s = Relu(x)  p = MatMul(s, w) },
                     else_branch = b () => (float[2,4] q) { q = Neg(x) }> }""",
        w=(4, 4),
    )
    small = removed(model, "Relu_s")
    assert "Relu" not in operators(small)
    x = rows(2, 4)
    weight = model.parameters[0].tensor.numpy()
    got = outputs(small, {"c": np.array(True), "x": x})["y"]
    np.testing.assert_allclose(got, x @ weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("emb", PreconditionError, "the input of emb cannot stand for its output"),
        ("fc", PreconditionError, "the input of fc cannot stand for its output"),
        ("sofd", SelectionError, "nothing in the model is named sofd"),
        (3, PreconditionError, "expected names of layers, got an int"),
    ],
)
def test_what_cannot_be_spared_is_refused(model, layer, error, message):
    before = serialized(model.ir)
    with pytest.raises(error, match=message):
        tieops.remove_layers(model, layer)
    assert serialized(model.ir) == before


def test_a_layer_of_two_inputs_is_refused():
    model = made("g (float[2] a, float[2] b) => (float[2] y) { y = Add(a, b) }")
    with pytest.raises(PreconditionError, match="one input and one output") as failure:
        tieops.remove_layers(model, "Add_y")
    assert failure.value.facts == {"inputs": "a, b", "outputs": "y"}


def test_a_size_that_is_not_known_is_refused():
    model = made("g (float[n] x) => (float[m] y) { k = NonZero(x)  y = Flatten(k) }".replace(
        "float[m] y", "int64[1,m] y"))  # fmt: skip
    with pytest.raises(PreconditionError, match="cannot stand for its output"):
        tieops.remove_layers(model, "NonZero_k")
