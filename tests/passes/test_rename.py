"""Renaming: everything that a model remembers of a name follows, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch

import tieops
from tests.support.golden_graphs import CASES, load
from tests.support.model_facts import outputs, serialized
from tests.support.tied_head import TOKENS, TiedHead
from tieops.errors import PreconditionError, SelectionError
from tieops.model import TiedModel


def renamed(model: TiedModel, names: dict[str, str]) -> TiedModel:
    """Rename, and check all that always holds."""
    before = serialized(model.ir)
    new = tieops.rename(model, names)
    assert serialized(model.ir) == before, "the argument was changed"
    onnx.checker.check_model(onnx_ir.to_proto(new.ir), full_check=True)
    return new


@pytest.fixture(scope="module")
def net() -> TiedHead:
    torch.manual_seed(0)
    return TiedHead().eval()


@pytest.fixture(scope="module")
def head(net: TiedHead) -> TiedModel:
    return tieops.from_torch(net, (torch.from_numpy(TOKENS),))


def test_a_layer_takes_the_names_that_it_owns_along(head):
    new = renamed(head, {"fc": "lm.head"})
    assert [layer.name for layer in new.layers] == ["emb", "mid", "relu", "lm.head"]
    assert [tie.names for tie in new.ties] == [("emb.weight", "lm.head.weight")]
    apart = tieops.untie(new, "lm.head")
    assert {p.name for p in apart.parameters} >= {"emb.weight", "lm.head.weight"}
    module = tieops.to_torch(new)
    assert {*module.state_dict()} == {
        "emb.weight", "lm.head.weight", "mid.weight", "mid.bias"
    }  # fmt: skip


def test_the_names_survive_a_file(head, tmp_path):
    new = renamed(head, {"fc": "head", "emb": "table"})
    again = tieops.from_onnx(tieops.to_onnx(new, tmp_path / "m.onnx"))
    assert [tie.names for tie in again.ties] == [("table.weight", "head.weight")]
    assert [layer.name for layer in again.layers if layer.is_learnable] == ["table", "mid", "head"]


def test_an_alias_is_renamed_and_the_others_stay(head):
    assert renamed(head, {"fc.weight": "out"}).ties[0].names == ("emb.weight", "out")
    assert renamed(head, {"emb.weight": "table"}).ties[0].names == ("table", "fc.weight")


def test_two_names_change_places(head):
    first, second = (str(output.name) for output in head.ir.graph.outputs)
    new = renamed(head, {first: second, second: first})
    assert [output.name for output in new.ir.graph.outputs] == [second, first]
    want, got = outputs(head, {"ids": TOKENS}), outputs(new, {"ids": TOKENS})
    assert got[second].tobytes() == want[first].tobytes()
    swapped = renamed(head, {"emb.weight": "fc.weight", "fc.weight": "emb.weight"})
    assert swapped.ties[0].names == ("fc.weight", "emb.weight")


def test_a_computed_value_gives_its_name_to_a_parameter(head):
    inner = next(str(v.name) for node in head.ir.graph for v in node.outputs if v.uses())
    new = renamed(head, {"mid.bias": inner})
    assert inner in {parameter.name for parameter in new.parameters}


@pytest.mark.parametrize("case", CASES)
def test_all_names_of_a_model_are_renamed_at_once(case: str, plain_runtime: Any) -> None:
    model = TiedModel(load(case, "before"))
    graph = model.ir.graph
    ports = [str(value.name) for value in (*graph.inputs, *graph.outputs)]
    names = dict.fromkeys((*ports, *(name for each in model.parameters for name in each.names)))
    new = renamed(model, {name: f"new/{name}" for name in names})
    assert [p.names for p in new.parameters] != [p.names for p in model.parameters]
    feeds = plain_runtime.feeds(model.ir, 1)
    want = plain_runtime.run(model.ir, feeds)
    got = plain_runtime.run(new.ir, {f"new/{name}": array for name, array in feeds.items()})
    assert [array.tobytes() for array in got] == [array.tobytes() for array in want]
    back = renamed(new, {f"new/{name}": name for name in names})
    assert sorted(t.names for t in back.ties) == sorted(t.names for t in model.ties)
    assert sorted(str(p) for p in back.parameters) == sorted(str(p) for p in model.parameters)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ({"fd": "x"}, SelectionError, "nothing in the model is named fd"),
        ({"fc": "emb"}, PreconditionError, "two things would be called emb"),
        ({"fc.weight": "mid.bias"}, PreconditionError, "two things would be called mid.bias"),
        ({"fc": "new", "mid": "new"}, PreconditionError, "two things would be called new"),
        ({"ids": "mid.weight"}, PreconditionError, "two things would be called mid.weight"),
        ({"fc": ""}, PreconditionError, "got an empty one"),
        ({"fc": 3}, PreconditionError, "expected new names by old ones, got an int"),
        (["fc"], PreconditionError, "expected new names by old ones, got a list"),
    ],
)
def test_what_cannot_be_renamed_is_refused(head, names, error, message):
    before = serialized(head.ir)
    with pytest.raises(error, match=message):
        tieops.rename(head, names)
    assert serialized(head.ir) == before


def test_an_input_keeps_its_readers(head):
    new = renamed(head, {"ids": "input_ids"})
    assert [value.name for value in new.inputs] == ["input_ids"]
    assert np.array_equal(
        outputs(new, {"input_ids": TOKENS})["relu"], outputs(head, {"ids": TOKENS})["relu"]
    )
