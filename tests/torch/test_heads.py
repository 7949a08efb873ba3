"""``tieops.torch.replace_head``: a new head for a live module, and factors that travel."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import tieops
from fixtures.torch_models import TiedLanguageModel, build
from tieops.errors import PreconditionError, SelectionError, UnsupportedModelError

TOKENS = torch.arange(10).reshape(2, 5)


@pytest.fixture
def net() -> TiedLanguageModel:
    torch.manual_seed(0)
    return TiedLanguageModel(50, 8).eval()


def test_the_head_is_new_and_the_embedding_is_not(net: TiedLanguageModel) -> None:
    weight, values = net.emb.weight, net.emb.weight.detach().clone()
    found = tieops.torch.replace_head(net, out_features=15, lr_factor=10, bias_lr_factor=20)
    assert found is net
    assert net.emb.weight is weight
    assert torch.equal(weight, values)
    assert (net.fc.out_features, tuple(net.fc.weight.shape)) == (15, (15, 8))
    assert not net.fc.training
    assert net(TOKENS).shape == (2, 5, 15)
    assert net.fc.lr_factors == {"weight": 10.0, "bias": 20.0}
    assert len(tieops.torch.find_ties(net)) == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init": "xavier_uniform", "seed": 7},
        {"init": "normal", "bias": False},
        {"init": np.arange(120.0).reshape(15, 8), "bias": np.arange(15.0)},
    ],
    ids=["default", "xavier", "normal", "given"],
)
@pytest.mark.slow
def test_it_is_the_same_head_as_on_the_graph(net: TiedLanguageModel, options) -> None:
    options = {"out_features": 15, "lr_factor": 10, **options}
    graph = tieops.replace_head(tieops.from_torch(net, (TOKENS,)), **options)
    live = tieops.from_torch(tieops.torch.replace_head(net, **options), (TOKENS,))
    found = {each.name: each for each in live.parameters}
    for want in graph.parameters:
        got = found.pop(want.name)
        assert got.numpy().tobytes() == want.numpy().tobytes()
        assert got.lr_factor == want.lr_factor
    assert not found
    assert {each.name: each.lr_factor for each in live.parameters}["fc.weight"] == 10.0


def test_factors_survive_what_torch_does(net: TiedLanguageModel) -> None:
    tieops.torch.replace_head(net, out_features=15, lr_factor=10)
    other = copy.deepcopy(net).to(torch.float64)
    other.load_state_dict({k: v.double() for k, v in net.state_dict().items()}, assign=True)
    assert other.fc.lr_factors == {"weight": 10.0, "bias": 10.0}
    groups = tieops.param_groups(other, lr=1.0)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 5), (10.0, 2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_and_device_are_kept(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4)).to(dtype)
    tieops.torch.replace_head(net, out_features=2)
    assert net[1].weight.dtype == net[1].bias.dtype == dtype
    assert net(torch.ones(1, 3, dtype=dtype)).shape == (1, 2)
    meta = nn.Linear(3, 4, device="meta")
    tieops.torch.replace_head(nn.Sequential(meta), out_features=2)


def test_convolutions_keep_their_geometry() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 5, (3, 1), stride=2, padding=(1, 0), dilation=1, padding_mode="reflect"),
    )
    x = torch.randn(1, 3, 9, 9)
    before = net(x).shape
    tieops.torch.replace_head(net, out_features=7)
    assert repr(net[1]).replace("8, 7,", "8, 5,") == repr(
        nn.Conv2d(8, 5, (3, 1), stride=2, padding=(1, 0), padding_mode="reflect")
    )
    assert net(x).shape == (before[0], 7, *before[2:])


def test_a_head_that_is_read_transposed_is_a_head() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
    tieops.torch.tie(net, "1.weight", "0.weight", transpose=True)
    tieops.torch.replace_head(net, out_features=2)
    assert type(net[1]) is nn.Linear
    assert net(torch.zeros(1, 6)).shape == (1, 2)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_head_with_two_names_is_replaced_under_both() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    net["also"] = net["head"]
    tieops.torch.replace_head(net, "also", out_features=3)
    assert net["also"] is net["head"]
    assert net["head"].out_features == 3


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "qwen2"])
def test_heads_of_real_models(name: str) -> None:
    case = build(name, 64, 16)
    tieops.torch.replace_head(case.module, out_features=15)
    assert case.module(**case.inputs)[0].shape[-1] == 15


@pytest.mark.parametrize(
    ("head", "options", "error", "words"),
    [
        (None, {}, PreconditionError, ["last: norm", "could be: body, fc"]),
        ("fcc", {}, SelectionError, ["no layer is named fcc", "body, fc"]),
        ("norm", {}, UnsupportedModelError, ["convolution, got norm", "LayerNorm"]),
        ("grouped", {}, UnsupportedModelError, ["Conv1d of 2 groups"]),
        ("normed", {}, UnsupportedModelError, ["ParametrizedLinear"]),
        ("lazy", {}, UnsupportedModelError, ["LazyLinear"]),
        (
            "fc",
            {"out_features": 0},
            PreconditionError,
            ["out_features must be a positive integer, got 0"],
        ),
        ("fc", {"lr_factor": -1}, PreconditionError, ["lr_factor must be", "got -1"]),
        (
            "fc",
            {"bias_lr_factor": float("nan")},
            PreconditionError,
            ["bias_lr_factor must be", "got nan"],
        ),
        ("fc", {"seed": -1}, PreconditionError, ["seed must be", "got -1"]),
        ("fc", {"init": "magic"}, PreconditionError, ["'magic'"]),
        (
            "fc",
            {"init": torch.zeros(2, 2)},
            PreconditionError,
            ["does not have the shape", "[15, 4]"],
        ),
    ],
)
def test_what_cannot_be_replaced_is_refused_untouched(head, options, error, words) -> None:
    net = nn.ModuleDict({
        "grouped": nn.Conv1d(4, 4, 1, groups=2),
        "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "lazy": nn.LazyLinear(4),
        "body": nn.Linear(4, 4),
        "fc": nn.Linear(4, 4),
        "norm": nn.LayerNorm(4),
    })  # fmt: skip
    before = {name: id(part) for name, part in net.named_modules()}
    with pytest.raises(error) as caught:
        tieops.torch.replace_head(net, head, **{"out_features": 15, **options})
    for word in words:
        assert word in str(caught.value)
    assert before == {name: id(part) for name, part in net.named_modules()}


def test_a_module_without_layers_has_no_head() -> None:
    with pytest.raises(PreconditionError, match="could be: none"):
        tieops.torch.replace_head(nn.Linear(2, 2), out_features=3)
