"""From torch: every tie, name and value of small modules, whatever exporters do to them."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import tieops
from fixtures.torch_models import build
from tieops.errors import ExportError, PreconditionError

TOKENS = torch.arange(10).reshape(2, 5)


class Tied(nn.Module):
    """An embedding and its head, tied as ``how`` says."""

    def __init__(self, vocab: int = 30, width: int = 8, *, how: str = "object", bias: bool = False):
        super().__init__()
        self.emb = nn.Embedding(vocab, width)
        self.fc = nn.Linear(width, vocab, bias=bias)
        if how == "object":
            self.fc.weight = self.emb.weight
        elif how == "data":
            self.fc.weight.data = self.emb.weight.data
        elif how == "copy":
            self.fc.weight = nn.Parameter(self.emb.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.emb(x))


def names(model: tieops.TiedModel) -> set[frozenset[str]]:
    return {frozenset(tie.names) for tie in model.ties}


def slots(model: tieops.TiedModel, name: str) -> dict[str, str]:
    (tie,) = [tie for tie in model.ties if name in tie.names]
    return {slot.name: str(slot.view) for slot in tie.slots}


def initializers(model: tieops.TiedModel) -> dict[str, onnx_ir.TensorProtocol]:
    return {name: v.const_value for name, v in model.ir.graph.initializers.items()}


def checked(model: tieops.TiedModel, module: nn.Module, **options: Any) -> tieops.TiedModel:
    assert tieops.verify(model, against=module, rtol=1e-4, **options)
    return model


# Ties, by what ties them


@pytest.mark.parametrize(("vocab", "width"), [(30, 30), (64, 64), (128, 64), (129, 64), (1000, 9)])
def test_a_tied_head_is_one_tensor_at_any_size(vocab, width, tmp_path):
    module = Tied(vocab, width)
    model = checked(tieops.from_torch(module, (TOKENS,)), module)
    assert names(model) == {frozenset({"emb.weight", "fc.weight"})}
    assert slots(model, "emb.weight") == {"emb.weight": "", "fc.weight": "transpose"}
    written = tieops.to_onnx(model, tmp_path / "m.onnx")
    assert vocab * width * 4 <= written.stored_bytes <= vocab * width * 4 + 64
    raw = written.path.read_bytes()
    weight = module.emb.weight.detach().numpy()
    assert raw.count(weight.tobytes()) == 1
    assert raw.count(weight.T.tobytes()) == 0


@pytest.mark.parametrize(("how", "evidence"), [("object", "object"), ("data", "storage")])
def test_two_parameters_of_one_storage_are_tied_as_one_object_is(how, evidence):
    module = Tied(how=how)
    model = checked(tieops.from_torch(module, (TOKENS,)), module)
    assert names(model) == {frozenset({"emb.weight", "fc.weight"})}
    assert str(model.ties[0].evidence) == evidence
    assert list(model.ties[0].names) == ["emb.weight", "fc.weight"]


def test_equal_values_are_no_tie_until_they_are_tied():
    module = Tied(200, 50, how="copy")
    model = checked(tieops.from_torch(module, (TOKENS,)), module)
    assert len(model.ties) == 0
    assert {"emb.weight", "fc.weight"} <= set(initializers(model))
    tied = tieops.tie(model)
    assert names(tied) == {frozenset({"emb.weight", "fc.weight"})}
    assert str(tied.ties[0].evidence) == "content"


def test_a_parameter_that_is_the_transpose_of_another_is_tied():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = nn.Linear(6, 4)
            self.dec = nn.Linear(4, 6)
            self.dec.weight = nn.Parameter(self.enc.weight.t())

        def forward(self, x):
            return self.dec(torch.relu(self.enc(x)))

    module = Net()
    model = checked(tieops.from_torch(module, (torch.rand(2, 6),)), module)
    assert names(model) == {frozenset({"enc.weight", "dec.weight"})}
    assert set(slots(model, "enc.weight")) == {"enc.weight", "dec.weight"}
    assert "dec.weight" not in initializers(model)
    assert initializers(model)["enc.weight"].shape.numpy() == (4, 6)


def test_the_same_slice_of_a_flat_buffer_is_one_parameter():
    flat = torch.randn(3 * 16)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4, bias=False) for _ in range(3))
            self.a.weight.data = flat[:16].view(4, 4)
            self.b.weight.data = flat[16:32].view(4, 4)
            self.c.weight.data = flat[16:32].view(4, 4)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    module = Net()
    model = checked(tieops.from_torch(module, (torch.rand(2, 4),)), module)
    assert names(model) == {frozenset({"b.weight", "c.weight"})}
    assert model.ledger.stored_bytes == 2 * 64


@pytest.mark.parametrize("cut", [slice(0, 20), slice(10, 30), slice(0, 30, 2)])
def test_a_head_on_a_slice_of_the_embedding_is_tied(cut):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(30, 8)
            self.fc = nn.Linear(8, self.emb.weight[cut].shape[0], bias=False)
            self.fc.weight.data = self.emb.weight.data[cut]

        def forward(self, x):
            return self.fc(self.emb(x))

    module = Net()
    model = checked(tieops.from_torch(module, (TOKENS,)), module)
    assert len(model.ties) == 1
    assert set(slots(model, "emb.weight")) == {"emb.weight", "fc.weight"}
    assert model.ties[0].parameter.shape == (30, 8)
    assert [each.name for each in model.parameters] == ["emb.weight"]


def test_a_slice_that_no_chain_expresses_is_stored_by_itself():
    flat = torch.randn(40)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)
            self.a.weight.data = flat[:20].view(5, 4)
            self.b.weight.data = flat[10:30].view(4, 5)

        def forward(self, x):
            return self.b(self.a(x))

    module = Net()
    model = checked(tieops.from_torch(module, (torch.rand(2, 4),)), module)
    assert len(model.ties) == 0
    assert {"a.weight", "b.weight"} <= set(initializers(model))


def test_three_names_and_a_bias_are_all_kept():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.c.weight = self.a.weight
            self.c.bias = self.b.bias

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    module = Net()
    model = checked(tieops.from_torch(module, (torch.rand(2, 4),)), module)
    assert names(model) == {
        frozenset({"a.weight", "b.weight", "c.weight"}),
        frozenset({"b.bias", "c.bias"}),
    }


def test_a_module_called_twice_is_one_parameter_with_two_slots():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    module = Net()
    model = checked(tieops.from_torch(module, (torch.rand(2, 4),)), module)
    assert names(model) == {frozenset({"layer.weight"}), frozenset({"layer.bias"})}
    assert len(slots(model, "layer.weight")) == 2


def test_convolutions_share_a_kernel():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)
            self.b = nn.Conv2d(3, 3, 3, padding=1)
            self.b.weight = self.a.weight
            self.up = nn.ConvTranspose2d(3, 3, 3, padding=1)
            self.up.weight = self.a.weight
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.up(self.norm(self.b(torch.relu(self.a(x)))))

    module = Net().eval()
    model = checked(tieops.from_torch(module, (torch.rand(1, 3, 8, 8),)), module)
    assert names(model) == {frozenset({"a.weight", "b.weight", "up.weight"})}
    for name in ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        assert name in initializers(model)


@pytest.mark.slow
def test_a_functional_and_a_scaled_tie_have_one_name_and_one_tensor():
    class Net(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.emb = nn.Embedding(30, 8)
            self.scale = scale

        def forward(self, x):
            return functional.linear(self.emb(x), self.emb.weight * self.scale)

    for scale in (1, 0.125):
        module = Net(scale)
        model = checked(tieops.from_torch(module, (TOKENS,)), module)
        assert names(model) == {frozenset({"emb.weight"})}
        assert len(slots(model, "emb.weight")) == 2
        assert sum(p.nbytes for p in model.parameters) <= 30 * 8 * 4 + 8


def test_parametrizations_share_their_original():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).transpose(-1, -2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            for layer in (self.a, self.b):
                parametrize.register_parametrization(layer, "weight", Symmetric())
            self.b.parametrizations.weight.original = self.a.parametrizations.weight.original

        def forward(self, x):
            return self.b(self.a(x))

    module = Net()
    model = checked(tieops.from_torch(module, (torch.rand(2, 6),)), module)
    original = "parametrizations.weight.original"
    assert names(model) == {frozenset({f"a.{original}", f"b.{original}"})}


def test_weight_norm_is_kept_as_it_is_learned():
    torch.manual_seed(0)
    module = parametrizations.weight_norm(nn.Linear(6, 4))
    model = checked(tieops.from_torch(module, (torch.rand(2, 6),)), module)
    have = initializers(model)
    for name, tensor in module.named_parameters():
        assert have[name].tobytes() == tensor.detach().numpy().tobytes()


# What is learnable stays, to the bit


def test_zeros_ones_and_equal_parameters_are_neither_dropped_nor_merged():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.gain = nn.Parameter(torch.ones(()))
            self.register_buffer("shift", torch.zeros(4))
            for layer in (self.a, self.b):
                nn.init.zeros_(layer.bias)
                nn.init.eye_(layer.weight)

        def forward(self, x):
            return self.norm(self.b(self.a(x))) * self.gain + self.shift

    module = Net()
    model = checked(tieops.from_torch(module, (torch.rand(2, 4),)), module)
    have = initializers(model)
    for name, tensor in module.state_dict().items():
        assert have[name].tobytes() == tensor.numpy().tobytes(), name
    assert len(model.ties) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_stored_as_they_are(dtype, tmp_path):
    module = Tied().to(dtype)
    model = tieops.from_torch(module, (TOKENS,))
    assert names(model) == {frozenset({"emb.weight", "fc.weight"})}
    bits = {2: torch.int16, 8: torch.int64}[dtype.itemsize]
    weight = module.emb.weight.detach().view(bits).numpy()
    written = tieops.to_onnx(model, tmp_path / "m.onnx")
    again = tieops.from_onnx(written)
    assert names(again) == names(model)
    assert again.parameters[0].tensor.tobytes() == weight.tobytes()
    assert written.path.read_bytes().count(weight.tobytes()) == 1
    if dtype != torch.bfloat16:  # for which ONNX Runtime has no CPU kernels
        assert tieops.verify(written, against=module, rtol=1e-2, atol=1e-2)


# Signatures


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Any]:
        hidden = self.fc(x)
        return {"hidden": hidden, "pair": (hidden * scale, [hidden.sum(-1)])}


def test_keyword_inputs_and_nested_outputs():
    module = Nested()
    kwargs = {"scale": torch.rand(4)}
    model = tieops.from_torch(module, (torch.rand(2, 4),), kwargs)
    assert [value.name for value in model.ir.graph.inputs] == ["x", "scale"]
    assert len(model.ir.graph.outputs) == 3
    assert tieops.verify(model, against=module, rtol=1e-4)


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": {0: "batch", 1: "sequence"}},
        ({0: "batch", 1: "sequence"},),
        {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}},
        {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}},
    ],
    ids=["dict", "tuple", "Dim", "Dim.DYNAMIC"],
)
@pytest.mark.slow
def test_dynamic_shapes_in_each_spelling(shapes):
    module = Tied()
    model = tieops.from_torch(module, (TOKENS,), dynamic_shapes=shapes)
    (value,) = model.ir.graph.inputs
    assert all(isinstance(size, onnx_ir.SymbolicDim) for size in value.shape.dims)
    if shapes and "DYNAMIC" not in str(shapes):
        assert [str(size) for size in value.shape.dims] == ["batch", "sequence"]
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (3, 7), (2, 40)]
    inputs = [{value.name: rng.integers(0, 30, size)} for size in sizes]
    assert tieops.verify(model, against=module, rtol=1e-4, inputs=inputs)


def test_without_dynamic_shapes_sizes_are_those_of_the_example():
    (value,) = tieops.from_torch(Tied(), (TOKENS,)).ir.graph.inputs
    assert tuple(value.shape.numpy()) == (2, 5)


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
@pytest.mark.slow
def test_the_opset_that_was_asked_for(opset):
    module = Tied()
    model = checked(tieops.from_torch(module, (TOKENS,), opset=opset), module)
    assert model.ir.opset_imports[""] == opset
    assert names(model) == {frozenset({"emb.weight", "fc.weight"})}


def test_names_of_inputs_and_outputs():
    module = Tied()
    model = tieops.from_torch(module, (TOKENS,), input_names=["tokens"], output_names=["logits"])
    assert [value.name for value in model.ir.graph.inputs] == ["tokens"]
    assert [value.name for value in model.ir.graph.outputs] == ["logits"]
    session = tieops.session(model, provider="cpu")
    found = session.run({"tokens": TOKENS.numpy()})["logits"]
    np.testing.assert_allclose(found, module(TOKENS).detach().numpy(), rtol=1e-4, atol=1e-5)


# What the module and the user see


@pytest.mark.slow
def test_the_module_is_as_it_was():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tied = Tied()
            self.lstm = nn.LSTM(30, 4, batch_first=True)
            self.drop = nn.Dropout(0.5)
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x):
            return self.norm(self.drop(self.lstm(self.tied(x))[0]))

    module = Net().train()
    module.norm.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    objects = [id(each) for _, each in module.named_parameters(remove_duplicate=False)]
    forwards = {name: each.forward for name, each in module.named_modules()}
    rnn_forward = nn.LSTM.forward
    training = {name: each.training for name, each in module.named_modules()}
    tieops.from_torch(module, (TOKENS,), dynamic_shapes={"x": {0: "batch", 1: None}})
    assert {name: each.training for name, each in module.named_modules()} == training
    assert module.lstm.training
    assert not module.norm.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    after = [id(each) for _, each in module.named_parameters(remove_duplicate=False)]
    assert after == objects
    assert {name: each.forward for name, each in module.named_modules()} == forwards
    assert nn.LSTM.forward is rnn_forward
    assert all("forward" not in vars(each) for each in module.modules())
    assert module.tied.fc.weight is module.tied.emb.weight
    module(TOKENS).sum().backward()
    assert module.tied.emb.weight.grad is not None


def test_the_module_is_as_it_was_after_a_failure_too():
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            if x.sum() > 0:
                return self.fc(x)
            return x

    module = Bad().train()
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript")}
    with pytest.raises(ExportError) as caught:
        tieops.from_torch(module, (torch.rand(2, 4),))
    assert module.training
    assert module.fc.training
    assert {name: logging.getLogger(name).level for name in levels} == levels
    text = str(caught.value)
    assert text.startswith("torch cannot export Bad")
    assert "torch says: " in text
    assert "fix: " in text


def test_nothing_reaches_the_user(capfd, caplog):
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        tieops.from_torch(Tied(), (TOKENS,), dynamic_shapes={"x": {0: "batch", 1: "sequence"}})
    assert [str(each.message) for each in seen] == []
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


def test_example_inputs_are_needed_and_the_error_says_how():
    with pytest.raises(PreconditionError) as caught:
        tieops.from_torch(Tied())
    text = str(caught.value)
    assert "cannot export Tied without example inputs" in text
    assert "from_torch(module, (x,))" in text


# Programs and their files


@pytest.mark.parametrize("how", ["object", "data"])
@pytest.mark.slow
def test_an_exported_program_and_its_file_give_the_ties_of_the_module(how, tmp_path):
    module = Tied(bias=True, how=how).eval()
    dims = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}}
    program = torch.export.export(module, (TOKENS,), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "m.pt2")
    first = tieops.from_torch(module, (TOKENS,), dynamic_shapes=dims)
    assert names(first) == {frozenset({"emb.weight", "fc.weight"})}
    for source in (program, tmp_path / "m.pt2", str(tmp_path / "m.pt2")):
        model = tieops.from_torch(source)
        assert names(model) == names(first)
        assert slots(model, "emb.weight") == slots(first, "emb.weight")
        assert list(model.ties[0].names) == list(first.ties[0].names)
        assert model.ledger == first.ledger
        assert tieops.verify(model, against=module, rtol=1e-4)


def test_a_file_keeps_transposed_views_and_slices_tied(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = nn.Linear(6, 4)
            self.dec = nn.Linear(4, 6)
            self.dec.weight = nn.Parameter(self.enc.weight.t())

        def forward(self, x):
            return self.dec(torch.relu(self.enc(x)))

    module = Net().eval()
    torch.export.save(torch.export.export(module, (torch.rand(2, 6),)), tmp_path / "m.pt2")
    model = checked(tieops.from_torch(tmp_path / "m.pt2"), module)
    assert names(model) == {frozenset({"enc.weight", "dec.weight"})}


class NestedInputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 5)

    def forward(self, x, state, extra):
        output, _ = self.lstm(x, state)
        return output + extra["bias"]


def test_nested_inputs_are_verified_against_the_module():
    net = NestedInputs().eval()
    state = (torch.rand(1, 2, 5), torch.rand(1, 2, 5))
    model = tieops.from_torch(net, (torch.rand(3, 2, 4), state, {"bias": torch.rand(5)}))
    assert tieops.verify(model, against=net)


def test_one_tensor_may_stand_for_the_only_input():
    net = torch.nn.Linear(3, 2).eval()
    model = tieops.from_torch(net, torch.rand(4, 3))
    assert tieops.verify(model, against=net)


def test_a_tied_parameter_named_like_an_input_keeps_apart_from_it():
    class Clash(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.randn(4, 4))
            self.y = self.x

        def forward(self, x):
            return x @ self.x @ self.y

    net = Clash().eval()
    model = tieops.from_torch(net, (torch.rand(2, 4),))
    assert tieops.verify(model, against=net)
    (tie,) = model.ties
    assert {"x", "y"} <= {*tie.names}


def test_an_opset_that_torch_does_not_export_to_is_an_error():
    with pytest.raises(tieops.TieopsError, match="cannot export Linear to opset 99"):
        tieops.from_torch(torch.nn.Linear(3, 2), (torch.rand(4, 3),), opset=99)


# torch's own export of an LSTM puts its flattened weights back afterwards, and says so.
@pytest.mark.filterwarnings("ignore:The tensor attribute.*_flat_weights:UserWarning")
def test_the_zeros_that_a_program_s_lstm_begins_at_are_no_tie(tmp_path):
    net = build("lstm", 50, 8).module
    program = torch.export.export(net, (torch.zeros(2, 5, dtype=torch.long),))
    torch.export.save(program, tmp_path / "m.pt2")
    model = tieops.from_torch(tmp_path / "m.pt2")
    assert [{*tie.names} for tie in model.ties] == [{"emb.weight", "fc.weight"}]


def test_a_forward_that_takes_nothing_needs_no_example():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(3.0))
            self.again = self.weight

        def forward(self):
            return self.weight * 2, self.again + 1

    model = tieops.from_torch(Constant())
    assert [tie.names for tie in model.ties] == [("weight", "again")]
    assert tieops.verify(model, against=Constant())


def test_what_a_newcomer_gets_wrong_says_what_to_do(tmp_path):
    net = nn.Linear(3, 2)
    with pytest.raises(PreconditionError, match="cannot read an OrderedDict") as caught:
        tieops.from_torch(net.state_dict())
    assert "load the state into its module" in str(caught.value)
    with pytest.raises(ExportError) as caught:
        tieops.from_torch(net, (torch.zeros(1, 3),), dynamic_shapes={"x": {0: "batch"}})
    assert "fix: name forward's arguments" in str(caught.value)
    (tmp_path / "m.onnx").write_bytes(b"no zip archive")
    with pytest.raises(tieops.TieopsError) as caught:
        tieops.from_torch(tmp_path / "m.onnx")
    assert "fix: use from_onnx" in str(caught.value)
    fixed = tieops.session(tieops.from_torch(net, (torch.zeros(1, 3),)), "cpu")
    with pytest.raises(PreconditionError) as caught:
        fixed.run({"input": np.zeros((2, 3), np.float32)})
    assert "dynamic_shapes" in str(caught.value)


@pytest.mark.slow
def test_a_failure_of_the_optimizer_is_an_export_error():
    """It fails on a split that is computed, as ProphetNet's predicting streams are."""
    from tests.corpus.families import build

    case = build("prophetnet", 150)
    with pytest.raises(ExportError, match="cannot clean up") as caught:
        tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    assert "onnxscript says" in caught.value.facts


class Called(nn.Module):
    """Takes everything that a forward can: numbers, flags, texts, dicts, any number of tensors."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x, scale=1.0, how="plus", none=None, *more, tree=None, flag=False, **rest):
        hidden = self.fc(x) * scale
        for each in (*more, *(tree or {}).values(), *rest.values()):
            hidden = hidden - each if how == "minus" else hidden + each
        return hidden if flag else -hidden


ONE, TWO, THREE = torch.randn(3, 2, 5)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((ONE, 2), {}),
        ((ONE, 0.5, "minus", None, TWO, THREE), {"flag": True}),
        ((), {"x": ONE, "how": "minus", "z": TWO, "flag": True}),
        ((ONE,), {"tree": {"b": TWO, "a": THREE}, "scale": 3}),
        ((ONE, TWO, "plus", None, ONE, ONE), {"z": TWO}),
    ],
    ids=["number", "any number", "keywords", "tree", "one tensor twice"],
)
@pytest.mark.slow
def test_a_forward_called_in_any_way_is_verified_as_it_was_called(args, kwargs):
    net = Called().eval()
    model = tieops.from_torch(net, args, kwargs)
    assert tieops.verify(model, against=net, rtol=1e-4)


def test_a_tensor_that_is_passed_twice_or_is_a_parameter_is_an_input_of_its_own():
    """torch reads one placeholder for all tensors that are one object."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4))

        def forward(self, x, y, z):
            return x - 2 * y + 3 * z * self.weight

    net = Net()
    model = tieops.from_torch(net, (net.weight, (x := torch.randn(2, 4)), x))
    assert tieops.verify(model, against=net, rtol=1e-4)
    assert [each.name for each in model.parameters] == ["weight"]


def test_a_lazy_module_is_refused_and_stays_lazy():
    net = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(PreconditionError, match="expected initialized parameters, got a lazy"):
        tieops.from_torch(net, torch.zeros(1, 2))
    assert type(net[0]) is nn.LazyLinear
    assert isinstance(net[0].weight, nn.UninitializedParameter)


def test_a_function_is_refused_with_what_to_do():
    with pytest.raises(PreconditionError, match="cannot read a function") as caught:
        tieops.from_torch(torch.nn.functional.relu, torch.zeros(1, 2))
    assert "fix: call it in the forward of an nn.Module" in str(caught.value)
