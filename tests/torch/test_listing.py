"""``tieops.torch.find_ties``: what a live module shares, by name and by what a call does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import tieops
from fixtures.torch_models import (
    ARCHITECTURES,
    TiedAutoencoder,
    TiedLanguageModel,
    build,
    tie_groups,
)
from tieops.errors import UnsupportedModelError
from tieops.ir.evidence import Evidence


class Functional(nn.Module):
    """A tie that no name shows: the weight is read twice by the code."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 8)
        self.mix = nn.Linear(8, 8)
        self.spare = nn.Linear(2, 2)
        self.spare_too = nn.Linear(2, 2)
        self.spare_too.weight = self.spare.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.mix(torch.relu(self.mix(self.emb(x))))
        return functional.linear(hidden, self.emb.weight)


TOKENS = torch.arange(6).reshape(2, 3)


def lines(module: nn.Module, *args: object) -> list[str]:
    return str(tieops.torch.find_ties(module, *args)).splitlines()


def test_one_object_under_two_names() -> None:
    net = TiedLanguageModel(50, 8)
    found = tieops.torch.find_ties(net)
    assert str(found).splitlines() == [
        "emb.weight = fc.weight: f32[50,8] (object)",
        "  emb.weight",
        "  fc.weight",
    ]
    assert repr(found).splitlines() == ["1 tie", *(f"  {line}" for line in str(found).splitlines())]
    assert found["fc.weight"] is found[0]
    (tie,) = found
    assert tie.names == ("emb.weight", "fc.weight")
    assert tie.evidence is Evidence.OBJECT


def test_no_ties() -> None:
    assert lines(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ["no ties"]


def test_views_of_one_storage() -> None:
    packed = torch.zeros(6, 4)
    net = nn.Module()
    net.rows = nn.Parameter(packed[1:3])
    net.all = nn.Parameter(packed)
    net.turned = nn.Parameter(packed.t())
    net.register_buffer("flat", packed.view(24))
    assert lines(net) == [
        "rows = all = turned = flat: f32[6,4] (storage)",
        "  rows (slice[1:3,0:4])",
        "  all",
        "  turned (transpose)",
        "  flat (reshape[24])",
    ]


def test_slices_are_tied_where_they_meet() -> None:
    packed = torch.zeros(9, 4)
    net = nn.ParameterDict({"a": nn.Parameter(packed[0:3]), "b": nn.Parameter(packed[2:5])})
    net["c"] = nn.Parameter(packed[5:7])  # meets neither
    net["even"] = nn.Parameter(packed[7:9, 0::2])
    net["odd"] = nn.Parameter(packed[7:9, 1::2])  # between the even ones
    assert lines(net) == ["a = b: f32[3,4] (storage)", "  a", "  b (overlaps)"]


def test_an_address_alone_is_no_evidence() -> None:
    packed = torch.zeros(6, 4)
    first, rest = nn.Parameter(packed[:2]), nn.Parameter(packed[2:])
    assert lines(nn.ParameterList([first, rest])) == ["no ties"]
    empty = torch.zeros(0)
    assert lines(nn.ParameterList([nn.Parameter(empty), nn.Parameter(empty)])) == ["no ties"]


def test_another_dtype_of_one_storage() -> None:
    net = nn.Linear(4, 2)
    net.register_buffer("bits", net.weight.detach().view(torch.int32))
    assert lines(net)[0] == "weight = bits: f32[2,4] (storage)"


def test_what_has_no_memory_is_found_by_object() -> None:
    net = TiedLanguageModel(50, 8).to("meta")
    assert lines(net) == ["no ties"]  # torch itself unties on the way to meta
    net.fc.weight = net.emb.weight
    assert len(tieops.torch.find_ties(net)) == 1
    lazy = nn.Sequential(nn.LazyLinear(2), nn.LazyLinear(2))
    assert lines(lazy) == ["no ties"]


def test_torchs_own_parametrizations() -> None:
    class Same(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight

    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.utils.parametrize.register_parametrization(net[1], "weight", Same())
    net[1].parametrizations.weight.original = net[0].weight
    assert lines(net)[0] == "0.weight = 1.parametrizations.weight.original: f32[4,4] (object)"


def test_a_layer_under_two_names() -> None:
    layer = nn.Linear(3, 3)
    assert lines(nn.Sequential(layer, layer)) == [
        "0.weight = 1.weight: f32[3,3] (object)", "  0.weight", "  1.weight",
        "0.bias = 1.bias: f32[3] (object)", "  0.bias", "  1.bias",
    ]  # fmt: skip


@pytest.mark.slow
def test_ties_of_the_code_show_in_a_call() -> None:
    net = Functional()
    spare = ["spare.weight = spare_too.weight: f32[2,2] (object)", "  spare.weight",
             "  spare_too.weight"]  # fmt: skip
    assert lines(net) == spare
    for example in ((TOKENS,), TOKENS, {"x": TOKENS}):
        found = lines(net, example)
        assert found[:2] == ["emb.weight: f32[50,8] (storage)", "  emb.weight"]
        assert found[2].endswith("(transpose)")
        assert "mix.weight: f32[8,8] (storage)" in found
        assert "  mix@1.weight (transpose)" in found
        assert found[-3:] == spare


def test_the_nested_autoencoder_shows_in_a_call() -> None:
    net = TiedAutoencoder((12, 12, 6, 3))
    assert lines(net) == ["no ties"]
    found = tieops.torch.find_ties(net, (torch.rand(2, 12),))
    assert {tie.names for tie in found} == {(f"encoder.{i}.weight",) for i in range(3)}
    assert all(len(tie.readers) == 2 for tie in found)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_names_of_real_models(name: str) -> None:
    module = build(name, 64, 16).module
    found = {frozenset(tie.names) for tie in tieops.torch.find_ties(module)}
    assert found == tie_groups(module)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.slow
def test_it_agrees_with_the_importer(name: str) -> None:
    case = build(name, 64, 16)
    model = tieops.from_torch(case.module, (), case.inputs)
    traced = tieops.torch.find_ties(case.module, case.inputs)
    assert [str(tie) for tie in traced] == [str(tie) for tie in model.ties]


def test_slices_that_cannot_meet_are_not_compared(monkeypatch) -> None:
    compared: list[object] = []
    monkeypatch.setattr("tieops.torch.shared_elements.share", lambda *each: compared.append(each))
    flat = torch.zeros(500, 4)
    net = nn.ParameterList(nn.Parameter(row) for row in flat.unbind())
    net.append(nn.Parameter(flat[3:5]))
    tieops.torch.find_ties(net)
    assert len(compared) == 2


def test_only_modules_are_taken() -> None:
    with pytest.raises(UnsupportedModelError, match="got a str"):
        tieops.torch.find_ties("model.onnx")
