"""``tieops.torch.tie`` and ``untie``: one Parameter, through whatever torch does with modules."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import tieops
from fixtures.torch_models import TiedLanguageModel, build
from tieops.errors import (
    PreconditionError,
    SelectionError,
    TieMismatchError,
    UnsupportedModelError,
)

X = torch.linspace(-1, 1, 18).reshape(3, 6)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.relu(self.encoder(x)))


class Untied(TiedLanguageModel):
    def __init__(self) -> None:
        super().__init__(50, 8)
        self.fc = nn.Linear(8, 50)


def tied() -> Autoencoder:
    torch.manual_seed(0)
    net = Autoencoder()
    found = tieops.torch.tie(net, "decoder.weight", "encoder.weight", transpose=True)
    assert found is net
    return net


def is_tied(net: nn.Module) -> bool:
    """Tell whether a change of the encoder's weight is one of the decoder's."""
    with torch.no_grad():
        net.encoder.weight[1, 2] += 1
    return torch.equal(net.decoder.weight, net.encoder.weight.t())


def scripted(net: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is on its way out
        return torch.jit.trace(net, (X,))


# tie


def test_a_plain_tie_is_one_object() -> None:
    net = Untied()
    before = net.emb.weight
    tieops.torch.tie(net, "fc.weight", "emb.weight")
    assert net.fc.weight is net.emb.weight is before
    assert len(list(net.parameters())) == 6
    tieops.torch.tie(net, "fc.weight", "emb.weight")
    assert net.fc.weight is before


def test_a_transposed_tie_is_computed_from_one_parameter() -> None:
    torch.manual_seed(0)
    plain = Autoencoder()
    net = copy.deepcopy(plain)
    weight = net.encoder.weight
    tieops.torch.tie(net, "decoder.weight", "encoder.weight", transpose=True)
    assert net.encoder.weight is weight
    assert torch.equal(net.decoder.weight, weight.t())
    assert [name for name, _ in net.named_parameters()] == [
        "encoder.weight", "encoder.bias", "decoder.bias",
    ]  # fmt: skip
    with torch.no_grad():
        plain.decoder.weight.copy_(weight.t())
    torch.testing.assert_close(net(X), plain(X))  # another layout, another rounding
    assert isinstance(net.decoder, nn.Linear)
    assert "TiedLinear(in_features=4, out_features=6" in repr(net)


def test_gradients_of_both_readers_reach_the_parameter() -> None:
    net = tied()
    net(X).square().sum().backward()
    weight = net.encoder.weight.detach().clone().requires_grad_()
    hidden = torch.relu(nn.functional.linear(X, weight, net.encoder.bias.detach()))
    nn.functional.linear(hidden, weight.t(), net.decoder.bias.detach()).square().sum().backward()
    assert torch.equal(net.encoder.weight.grad, weight.grad)


def test_it_survives_deepcopy() -> None:
    net = tied()
    other = copy.deepcopy(net)
    assert torch.equal(other(X), net(X))
    assert is_tied(other)
    assert not torch.equal(other.encoder.weight, net.encoder.weight)
    alone = copy.deepcopy(net.decoder)
    assert torch.equal(alone.weight, net.decoder.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_survives_a_conversion(dtype: torch.dtype) -> None:
    net = tied().to(dtype)
    assert net.decoder.weight.dtype == dtype
    assert is_tied(net)
    assert len(list(net.parameters())) == 3


@pytest.mark.gpu
def test_it_survives_a_move_to_the_gpu() -> None:
    net = tied().cuda()
    assert net.decoder.weight.device.type == "cuda"
    assert is_tied(net)
    assert len(list(net.parameters())) == 3
    assert is_tied(net.cpu())


def test_it_survives_a_state_dict() -> None:
    net, other = tied(), tied()
    with torch.no_grad():
        net.encoder.weight.mul_(2)
    assert list(net.state_dict()) == [
        "encoder.weight", "encoder.bias", "decoder.weight_transposed", "decoder.bias",
    ]  # fmt: skip
    weight = other.encoder.weight
    other.load_state_dict(net.state_dict())
    assert other.encoder.weight is weight
    assert torch.equal(other(X), net(X))
    assert is_tied(other)


def test_a_checkpoint_stores_it_once() -> None:
    net = tieops.torch.tie(
        nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100)),
        "1.weight", "0.weight", transpose=True,
    )  # fmt: skip
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    assert 40_800 < buffer.tell() < 60_000


def test_an_untied_checkpoint_is_not_taken_for_a_tied_one() -> None:
    # A square weight fits in both orientations: only its name can tell.
    net = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    checkpoint = net.state_dict()
    tieops.torch.tie(net, "decoder.weight", "encoder.weight", transpose=True)
    with pytest.raises(RuntimeError, match=r"decoder\.weight_transposed"):
        net.load_state_dict(checkpoint)


def test_it_survives_pickling() -> None:
    net = tied()
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    other = torch.load(buffer, weights_only=False)
    assert torch.equal(other(X), net(X))
    assert is_tied(other)
    assert type(other.decoder) is type(net.decoder)
    assert is_tied(pickle.loads(pickle.dumps(net)))


def test_it_survives_functional_calls_tracing_and_compiling() -> None:
    net = tied()
    doubled = {name: 2 * each for name, each in net.named_parameters()}
    other = copy.deepcopy(net)
    other.load_state_dict({**net.state_dict(), **doubled,
                           "decoder.weight_transposed": doubled["encoder.weight"]})  # fmt: skip
    assert torch.equal(torch.func.functional_call(net, doubled, (X,)), other(X))
    assert torch.equal(scripted(net)(X), net(X))
    assert torch.equal(torch.compile(net, backend="eager")(X), net(X))


@pytest.mark.parametrize("strict", [False, True])
def test_it_survives_torch_export(strict: bool) -> None:
    net = tied()
    program = torch.export.export(net, (X,), strict=strict)
    assert torch.equal(program.module()(X), net(X))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    model = tieops.from_torch(torch.export.load(buffer))
    assert [tie.names for tie in model.ties] == [("encoder.weight", "decoder.weight_transposed")]


def test_from_torch_stores_it_once_and_the_runtime_agrees(tmp_path) -> None:
    net = tied()
    model = tieops.from_torch(net, (X,), dynamic_shapes={"x": {0: "batch"}})
    names = {each.name for each in model.parameters}
    assert names == {"encoder.weight", "encoder.bias", "decoder.bias"}
    assert str(model.ties).splitlines()[0] == (
        "encoder.weight = decoder.weight_transposed: f32[4,6] (object)"
    )
    written = tieops.to_onnx(model, tmp_path / "tied.onnx")
    assert tieops.verify(written, against=net)


def test_convolutions_swap_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 2), nn.Conv2d(5, 3, 2))
    tieops.torch.tie(net, "1.weight", "0.weight", transpose=True)
    assert torch.equal(net[1].weight, net[0].weight.transpose(0, 1))
    assert net(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 2, 2)


def test_a_transposed_convolution_needs_no_transpose() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 2), nn.ConvTranspose2d(5, 3, 2))
    tieops.torch.tie(net, "1.weight", "0.weight")
    assert net[1].weight is net[0].weight


def test_the_transpose_of_a_transpose_is_the_parameter() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    tieops.torch.tie(net, "1.weight", "0.weight", transpose=True)
    tieops.torch.tie(net, "2.weight", "1.weight", transpose=True)
    tieops.torch.tie(net, "3.weight", "1.weight")
    assert net[2].weight is net[0].weight
    assert torch.equal(net[3].weight, net[0].weight.t())
    tieops.torch.tie(net, "1.weight", "0.weight")
    assert net[1].weight is net[0].weight
    assert type(net[1]) is nn.Linear


def test_recurrent_layers_share_weights() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LSTM(4, 4, batch_first=True), nn.LSTM(4, 4, batch_first=True))
    tieops.torch.tie(net, "1.weight_hh_l0", "0.weight_hh_l0")
    same = copy.deepcopy(net[1])
    x = torch.randn(2, 3, 4)
    assert torch.equal(net[1](x)[0], same(x)[0])
    with torch.no_grad():
        net[0].weight_hh_l0.mul_(2)
    assert not torch.equal(net[1](x)[0], same(x)[0])


def test_a_new_parameter_leaves_the_tie_as_in_torch() -> None:
    net = tied()
    net.decoder.weight = nn.Parameter(torch.zeros(6, 4))
    assert type(net.decoder) is nn.Linear
    assert list(net.state_dict()) == list(Autoencoder().state_dict())
    assert not is_tied(net)


def test_requires_grad_is_the_sources() -> None:
    net = Autoencoder()
    net.encoder.weight.requires_grad_(False)
    tieops.torch.tie(net, "decoder.weight", "encoder.weight", transpose=True)
    assert not net.decoder.weight.requires_grad


# What cannot be tied


@pytest.mark.parametrize(
    ("name", "to", "transpose", "error", "words"),
    [
        ("decoder.weight", "encoder.weight", False, TieMismatchError,
         ["shapes differ", "decoder.weight: f32[6,4]", "encoder.weight: f32[4,6]",
          "transpose=True"]),
        ("decoder.bias", "encoder.bias", False, TieMismatchError,
         ["decoder.bias: f32[6]", "encoder.bias: f32[4]"]),
        ("decoder.bias", "encoder.bias", True, PreconditionError, ["cannot transpose"]),
        ("half.weight", "encoder.weight", False, TieMismatchError,
         ["dtypes differ", "f16[4,6]", "f32[4,6]"]),
        ("meta.weight", "encoder.weight", False, TieMismatchError,
         ["devices differ", "on meta", "on cpu"]),
        ("square.weight", "square.weight", True, PreconditionError, ["the same parameter"]),
        ("decodr.weight", "encoder.weight", True, SelectionError,
         ["named decodr.weight", "decoder.weight"]),
        ("decoder.weight", "norm.running_mean", False, PreconditionError, ["is a buffer"]),
        ("normed.weight", "encoder.weight", False, PreconditionError, ["its module computes it"]),
        ("lazy.weight", "encoder.weight", False, PreconditionError, ["has no shape yet"]),
        ("rnn.weight_hh_l0", "wide.weight", True, UnsupportedModelError, ["LSTM"]),
        ("taken.weight", "encoder.weight", True, PreconditionError, ["taken.weight_transposed"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_untouched(name, to, transpose, error, words) -> None:
    net = Autoencoder()
    net.half = nn.Linear(6, 4).half()
    net.meta = nn.Linear(6, 4, device="meta")
    net.square = nn.Linear(4, 4)
    net.norm = nn.BatchNorm1d(6)
    net.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    net.lazy = nn.LazyLinear(4)
    net.rnn = nn.LSTM(2, 2)
    net.wide = nn.Linear(8, 2)
    net.taken = nn.Linear(4, 6)
    net.taken.weight_transposed = nn.Parameter(torch.zeros(1))
    before = {key: id(each) for key, each in net.named_parameters(remove_duplicate=False)}
    classes = [type(each) for each in net.modules()]
    with pytest.raises(error) as caught:
        tieops.torch.tie(net, name, to, transpose=transpose)
    for word in words:
        assert word in str(caught.value)
    assert before == {key: id(each) for key, each in net.named_parameters(remove_duplicate=False)}
    assert classes == [type(each) for each in net.modules()]


def test_only_live_modules_are_taken() -> None:
    with pytest.raises(UnsupportedModelError, match="got a TiedModel"):
        tieops.torch.tie(tieops.from_torch(Autoencoder(), (X,)), "a", "b")
    with pytest.raises(UnsupportedModelError, match="got a TopLevelTracedModule"):
        tieops.torch.untie(scripted(Autoencoder()))


# untie


def test_untying_is_the_inverse() -> None:
    net = tied()
    before = net(X)
    weight = net.encoder.weight
    assert tieops.torch.untie(net) is net
    assert net.encoder.weight is weight
    assert type(net.decoder) is nn.Linear
    assert list(net.state_dict()) == list(Autoencoder().state_dict())
    assert net.decoder.weight.is_contiguous()
    assert torch.equal(net.decoder.weight, weight.t())
    torch.testing.assert_close(net(X), before)
    assert not is_tied(net)


def test_a_name_that_leaves_keeps_values_and_requires_grad() -> None:
    net = TiedLanguageModel(50, 8)
    net.emb.weight.requires_grad_(False)
    tieops.torch.untie(net, "fc.weight")
    assert net.fc.weight is not net.emb.weight
    assert torch.equal(net.fc.weight, net.emb.weight)
    assert not net.fc.weight.requires_grad
    assert len(tieops.torch.find_ties(net)) == 0


@pytest.mark.parametrize(
    "leaves", ["encoder.weight", "decoder.weight", "decoder.weight_transposed"]
)
def test_either_side_of_a_transposed_tie_can_leave(leaves: str) -> None:
    net = tied()
    before = net(X)
    tieops.torch.untie(net, leaves)
    assert list(net.state_dict()) == list(Autoencoder().state_dict())
    torch.testing.assert_close(net(X), before)
    assert not is_tied(net)


@pytest.mark.parametrize("names", [(), ("decoder.weight",)])
def test_the_transpose_of_what_is_gone_becomes_plain(names: tuple[str, ...]) -> None:
    net = tied()
    values = net.decoder.weight.detach().clone()
    net.encoder.weight = nn.Parameter(torch.zeros(4, 6))  # torch unties so too
    assert len(tieops.torch.find_ties(net)) == 0
    tieops.torch.untie(net, *names)
    assert list(net.state_dict()) == list(Autoencoder().state_dict())
    assert torch.equal(net.decoder.weight, values)


def test_those_that_stay_stay_tied() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    tieops.torch.tie(net, "1.weight", "0.weight", transpose=True)
    tieops.torch.tie(net, "2.weight", "0.weight", transpose=True)
    tieops.torch.untie(net, "0.weight")
    assert str(tieops.torch.find_ties(net)).splitlines() == [
        "1.weight_transposed = 2.weight_transposed: f32[4,4] (object)",
        "  1.weight (transpose)",
        "  2.weight (transpose)",
    ]


def test_views_of_one_storage_come_apart() -> None:
    packed = torch.arange(24.0).reshape(6, 4)
    net = nn.ParameterDict({"all": nn.Parameter(packed), "rows": nn.Parameter(packed[2:5])})
    tieops.torch.untie(net, "rows")
    with torch.no_grad():
        net["all"].zero_()
    assert torch.equal(net["rows"], torch.arange(8.0, 20.0).reshape(3, 4))


def test_every_tie_of_a_real_model_comes_apart() -> None:
    for name in ("bert", "t5", "bart"):
        case = build(name, 64, 16)
        with torch.no_grad():
            before = case.module(**case.inputs)[0]
            assert len(tieops.torch.find_ties(case.module)) > 0
            parameters = list(case.module.named_parameters(remove_duplicate=False))
            tieops.torch.untie(case.module)
            assert len(list(case.module.parameters())) == len(parameters)
            assert torch.equal(case.module(**case.inputs)[0], before)


def test_buffers_are_left_alone() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("table", net.weight.detach())
    table = net.table
    tieops.torch.untie(net)
    assert net.table is table
    assert net.weight.untyped_storage().data_ptr() != table.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("bias", PreconditionError, "bias is not tied"),
        ("weigth", SelectionError, "nothing in the module is named weigth"),
        ("mask", PreconditionError, "mask is a buffer"),
    ],
)
def test_what_is_not_tied_cannot_leave(name, error, words) -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.ones(2))
    with pytest.raises(error, match=words):
        tieops.torch.untie(net, name)


def test_a_layer_with_two_names_is_not_two_layers() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    net["b"] = net["a"]
    tieops.torch.tie(net, "c.bias", "a.bias")
    bias = net["c"].bias
    for names in ((), ("c.bias", "b.weight")):
        with pytest.raises(PreconditionError, match="one layer under two names"):
            tieops.torch.untie(net, *names)
        assert net["c"].bias is bias, "something was changed before the error"
    tieops.torch.untie(net, "c.bias")
    assert net["c"].bias is not bias
