"""``tieops.param_groups``: learning-rate factors become parameter groups of any optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tieops
from fixtures.torch_models import TiedLanguageModel
from tieops.errors import PreconditionError, SelectionError, UnsupportedModelError

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def moved(net: nn.Sequential, lr: float) -> dict[str, torch.Tensor]:
    """Return by how much one step of plain SGD moves each parameter of a copy."""
    other = copy.deepcopy(net)
    optimizer = torch.optim.SGD(tieops.param_groups(other, lr=lr))
    other(X).square().mean().backward()
    optimizer.step()
    before = dict(net.named_parameters())
    return {name: (each - before[name]).detach() for name, each in other.named_parameters()}


def test_a_factor_of_ten_moves_exactly_ten_times_as_far(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[1].weight.zero_()  # nothing is rounded when a step is added to zero
        net[1].bias.zero_()
        net[1].bias.requires_grad_(False)
    net.insert(2, nn.Linear(2, 2))
    plain = moved(net, lr=2**-6)
    net[1].lr_factors = {"weight": 10.0}
    scaled = moved(net, lr=2**-6)
    assert scaled["1.weight"].abs().min() > 0
    assert torch.equal(scaled["1.weight"], 10 * plain["1.weight"])
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert torch.equal(scaled[name], plain[name])


def test_a_new_head_moves_ten_times_as_far(net: nn.Sequential) -> None:
    tieops.torch.replace_head(net, out_features=7, lr_factor=10, bias_lr_factor=5)
    fast = moved(net, lr=0.01)
    del net[1].lr_factors
    slow = moved(net, lr=0.01)
    for name, factor in (("0.weight", 1), ("0.bias", 1), ("1.weight", 10), ("1.bias", 5)):
        torch.testing.assert_close(fast[name], factor * slow[name], rtol=1e-3, atol=1e-7)


def test_groups_say_what_they_are(net: nn.Sequential) -> None:
    net[1].lr_factors = {"weight": 0.1}
    groups = tieops.param_groups(net, lr=0.5, weight_decay=0.01)
    assert [(g["lr"], g["lr_factor"], g["weight_decay"]) for g in groups] == [
        (0.5, 1.0, 0.01), (0.05, 0.1, 0.01),
    ]  # fmt: skip
    assert groups[1]["params"] == [net[1].weight]
    assert "weight_decay" not in tieops.param_groups(net, lr=0.5)[0]
    optimizer = torch.optim.AdamW(tieops.param_groups(net, lr=0.5), weight_decay=0.3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}


def test_factor_zero_freezes(net: nn.Sequential) -> None:
    net[0].lr_factors = {"weight": 0, "bias": 0}
    steps = moved(net, lr=0.5)
    assert not steps["0.weight"].any()
    assert steps["1.weight"].any()


def test_a_tied_parameter_is_in_one_group_once() -> None:
    net = TiedLanguageModel(50, 8)
    net.fc.lr_factors = {"weight": 10.0}  # by its second name
    groups = tieops.param_groups(net, lr=1.0)
    every = [id(each) for group in groups for each in group["params"]]
    assert sorted(every) == sorted({id(each) for each in net.parameters()})
    assert [each is net.emb.weight for each in groups[0]["params"]] == [True]
    assert groups[0]["lr"] == 10.0
    torch.optim.SGD(groups)


def test_two_factors_of_one_parameter_are_an_error_that_names_both() -> None:
    net = TiedLanguageModel(50, 8)
    net.fc.lr_factors = {"weight": 10.0}
    net.emb.lr_factors = {"weight": 10.0}
    assert tieops.param_groups(net, lr=1.0)[0]["lr"] == 10.0
    net.emb.lr_factors = {"weight": 2.0}
    with pytest.raises(PreconditionError, match=r"emb\.weight: 2\.0    fc\.weight: 10\.0"):
        tieops.param_groups(net, lr=1.0)
    with pytest.raises(PreconditionError, match="2 learning-rate factors"):
        tieops.from_torch(net, (torch.zeros(1, 2, dtype=torch.long),))


def test_a_factor_on_the_parameter_itself_counts(net: nn.Sequential) -> None:
    net[1].weight.lr_factor = 3.0
    assert tieops.param_groups(net, lr=1.0)[1]["params"] == [net[1].weight]
    net[1].lr_factors = {"weight": 4.0}
    with pytest.raises(PreconditionError, match=r"1\.weight\.lr_factor: 3\.0"):
        tieops.param_groups(net, lr=1.0)


def test_tie_keeps_the_factor_of_the_parameter_that_stays() -> None:
    net = nn.ModuleDict({"enc": nn.Linear(4, 3), "dec": nn.Linear(3, 4)})
    net["enc"].lr_factors, net["dec"].lr_factors = {"weight": 2.0}, {"weight": 5.0, "bias": 7.0}
    tieops.torch.tie(net, "dec.weight", "enc.weight", transpose=True)
    assert net["dec"].lr_factors == {"bias": 7.0}
    model = tieops.from_torch(nn.Sequential(net["enc"], net["dec"]), (torch.zeros(1, 4),))
    factors = {each.name: each.lr_factor for each in model.parameters}
    assert factors == {"0.weight": 2.0, "0.bias": 1.0, "1.bias": 7.0}
    tieops.torch.untie(net)
    assert net["dec"].lr_factors == {"bias": 7.0, "weight": 2.0}


def test_factors_of_packed_recurrent_weights(tmp_path) -> None:
    net = nn.LSTM(4, 3)
    x = torch.zeros(2, 1, 4)
    net.lr_factors = {"weight_ih_l0": 10.0, "bias_ih_l0": 2.0, "bias_hh_l0": 2.0}
    tieops.to_onnx(tieops.from_torch(net, (x,)), tmp_path / "lstm.onnx")
    model = tieops.from_onnx(tmp_path / "lstm.onnx")
    assert sorted(each.lr_factor for each in model.parameters) == [1.0, 2.0, 10.0]
    net.lr_factors = {"bias_ih_l0": 2.0}
    with pytest.raises(UnsupportedModelError, match="several learning-rate factors"):
        tieops.from_torch(net, (x,))


def test_what_needs_no_gradient_is_left_out(net: nn.Sequential) -> None:
    net[0].requires_grad_(False)
    (group,) = tieops.param_groups(net, lr=1.0)
    assert group["params"] == list(net[1].parameters())
    net.requires_grad_(False)
    with pytest.raises(PreconditionError, match="no parameter to train"):
        tieops.param_groups(net, lr=1.0)


@pytest.mark.parametrize("factor", [-1, float("nan"), float("inf"), "10", None])
def test_what_is_no_factor_is_refused(net: nn.Sequential, factor: object) -> None:
    net[1].lr_factors = {"weight": factor}
    with pytest.raises(PreconditionError, match=r"factor of at least 0, got .*\n  of: 1\.weight"):
        tieops.param_groups(net, lr=1.0)


def test_a_name_that_is_no_parameter_is_refused(net: nn.Sequential) -> None:
    net[1].lr_factors = {"wieght": 10.0}
    with pytest.raises(SelectionError, match=r"1\.lr_factors names wieght"):
        tieops.param_groups(net, lr=1.0)


@pytest.mark.parametrize("rates", [{"lr": -1.0}, {"lr": float("nan")},
                                   {"lr": 1.0, "weight_decay": -1.0}])  # fmt: skip
def test_what_is_no_rate_is_refused(net: nn.Sequential, rates) -> None:
    with pytest.raises(PreconditionError, match="must be a rate"):
        tieops.param_groups(net, **rates)
