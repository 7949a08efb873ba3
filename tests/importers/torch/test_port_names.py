"""Names of inputs and outputs: those that were asked for, or one clear error."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import tieops
from tieops.errors import PreconditionError

X = torch.randn(2, 4)


class Everything(nn.Module):
    """Every kind of output: computed, twice one value, handed through, stored and constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.fc.weight
        self.register_buffer("buf", torch.arange(4.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, ...]:
        hidden = self.fc(x)
        turned = self.again(hidden).T
        stored = self.fc.weight, self.buf
        return hidden, hidden, x, x, *stored, torch.ones(3), turned, {"y": y, "none": None}


NET = Everything().eval()
PROGRAM = torch.export.export(NET, (X, X + 1))
OUTPUTS = 9


def ports(model: tieops.TiedModel) -> tuple[list[str | None], list[str | None]]:
    graph = model.ir.graph
    return [each.name for each in graph.inputs], [each.name for each in graph.outputs]


def imported(**names: Any) -> tieops.TiedModel:
    return tieops.from_torch(PROGRAM, **names)


def checked(model: tieops.TiedModel, tmp_path: Any) -> None:
    """Check values, ties and the state_dict's names, in memory and from the file."""
    for each in (model, tieops.from_onnx(tieops.to_onnx(model, tmp_path / "m.onnx"))):
        assert [tie.names for tie in each.ties] == [("fc.weight", "again.weight")]
        back = tieops.to_torch(each)
        assert set(back.state_dict()) == set(NET.state_dict())
        session = tieops.session(each, "cpu")
        inputs = dict(zip(ports(each)[0], (X, X + 1), strict=True))
        wanted = list(torch.utils._pytree.tree_leaves(NET(X, X + 1)))
        for found in (list(session.run_tensors(inputs).values()), list(back(X, X + 1))):
            torch.testing.assert_close(found, [w for w in wanted if w is not None])


def test_an_input_handed_through_has_its_name_and_the_output_another(tmp_path):
    model = imported()
    given, made = ports(model)
    assert given == ["x", "y"]
    assert len({*given, *made}) == 2 + OUTPUTS
    checked(model, tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        [f"out{i}" for i in range(OUTPUTS)],
        ["fc.weight", "fc.bias", "buf", "fc", "again.weight"],
        ["permute", "linear", "linear_1", "node_linear", "val_0", "ones"],
        ["y_output"],
        [],
    ],
    ids=["all", "of parameters and layers", "of other values", "of one of ours", "none"],
)
def test_outputs_have_the_names_that_were_asked_for(names, tmp_path):
    model = imported(input_names=["first", "again.weight_1"], output_names=names)
    given, made = ports(model)
    assert given == ["first", "again.weight_1"]
    assert made[: len(names)] == names
    assert len({*given, *made}) == 2 + OUTPUTS
    checked(model, tmp_path)


def test_inputs_may_swap_names_and_have_those_of_outputs():
    assert ports(imported(input_names=["y", "x"]))[0] == ["y", "x"]
    given, made = ports(imported(input_names=["linear", "fc.bias"]))
    assert given == ["linear", "fc.bias"]
    assert "linear" not in made


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"output_names": [f"o{i}" for i in range(10)]}, "expected at most 9 output names, got 10"),
        ({"input_names": ["a", "b", "c"]}, "expected at most 2 input names, got 3"),
        ({"output_names": ["o", "o"]}, "distinct names, got 'o' twice"),
        ({"input_names": ["q"], "output_names": ["q"]}, "distinct names, got 'q' twice"),
        ({"output_names": "logits"}, "must be a sequence of names, got the string 'logits'"),
        ({"output_names": [""]}, "must be a non-empty string, got ''"),
        ({"input_names": [None]}, "must be a non-empty string, got None"),
        ({"output_names": ["y"]}, "expected a name that no input has, got 'y'"),
        ({"input_names": ["y"]}, "expected a name that no input has, got 'y'"),
    ],
    ids=str,
)
def test_names_that_no_graph_can_have_are_one_clear_error(names, message):
    with pytest.raises(PreconditionError, match=message) as caught:
        imported(**names)
    assert "fix: " in str(caught.value)


def test_a_recurrent_weight_may_lose_its_name_to_an_input():
    net = nn.LSTM(3, 4).eval()
    x = torch.randn(5, 2, 3)
    model = tieops.from_torch(net, x, input_names=["weight_ih_l0"], output_names=["bias_hh_l0"])
    assert ports(model)[0] == ["weight_ih_l0"]
    back = tieops.to_torch(model)
    assert set(back.state_dict()) == set(net.state_dict())
    torch.testing.assert_close(back(x)[0], net(x)[0])


def test_nested_inputs_keep_their_order():
    class Nested(nn.Module):
        def forward(self, tree: Any, pair: Any) -> torch.Tensor:
            return tree["a"] - tree["b"]["c"] * pair[0] + pair[1][0]

    x = torch.randn(2, 4)
    tree, pair = {"a": x, "b": {"c": x + 1}}, [x * 2, (x * 3,)]
    model = tieops.from_torch(Nested(), (tree, pair), input_names=["p", "q", "r", "s"])
    assert tieops.verify(model, against=Nested(), rtol=1e-4)
    assert ports(model)[0] == ["p", "q", "r", "s"]


def test_a_torchscript_program_gets_the_names_too(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Linear(4, 2).eval(), X), tmp_path / "m.ts")
    names = {"input_names": ["bias"], "output_names": ["weight"]}
    model = tieops.from_torch(tmp_path / "m.ts", X, trust=True, **names)
    assert ports(model) == (["bias"], ["weight"])
    assert [each.names for each in model.parameters] == [("bias",), ("weight",)]


def test_a_forward_that_returns_no_tensor_is_one_clear_error():
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            x + 1

    with pytest.raises(tieops.TieopsError, match="expected a forward that returns a tensor"):
        tieops.from_torch(Nothing(), X)
