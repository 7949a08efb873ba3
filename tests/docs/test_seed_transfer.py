"""The seed page, step by step: build, inspect, transfer, untie, each run and verified."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
import torch

import tieops
from fixtures.torch_models import TiedLanguageModel
from tests.support.model_facts import serialized
from tieops.passes.untie import UntiePass

VOCAB, WIDTH, CLASSES = 1000, 300, 15
FLOAT_BYTES = 4
EMB_BYTES = VOCAB * WIDTH * FLOAT_BYTES
TOKENS = torch.arange(10).reshape(2, 5)


class WithWeights(TiedLanguageModel):
    """The seed's network, which hands its weight out as MATLAB's ``emb/weights``."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(x), self.emb.weight.t()


@pytest.fixture(scope="module")
def net() -> WithWeights:
    torch.manual_seed(0)
    return WithWeights(VOCAB, WIDTH).eval()


@pytest.fixture(scope="module")
def model(net: WithWeights) -> tieops.TiedModel:
    return tieops.from_torch(
        net,
        (TOKENS,),
        dynamic_shapes={"x": {0: "batch", 1: "sequence"}},
        output_names=["probabilities", "emb/weights"],
    )


@pytest.fixture(scope="module")
def transfer(model: tieops.TiedModel) -> tieops.TiedModel:
    before = serialized(model.ir)
    wide = tieops.replace_head(model, "fc", out_features=CLASSES, lr_factor=10, name="fcNew")
    assert output_names(wide) == ["probabilities", "emb/weights"]
    assert emb_readers(wide) == ["Gather", "Transpose"]
    small = tieops.remove_disconnected_outputs(wide)
    assert serialized(model.ir) == before, "the argument was changed"
    return small


def plain(net: WithWeights, classes: int = VOCAB) -> TiedLanguageModel:
    """Return the network without the extra output, with an untied head of another size if asked."""
    other = TiedLanguageModel(VOCAB, WIDTH).eval()
    other.load_state_dict(net.state_dict())
    if classes != VOCAB:
        other.fc = torch.nn.Linear(WIDTH, classes)
    return other


def output_names(model: tieops.TiedModel) -> list[str | None]:
    return [output.name for output in model.ir.graph.outputs]


def emb_readers(model: tieops.TiedModel) -> list[str]:
    return sorted(node.op_type for node, _ in model.ir.graph.initializers["emb.weight"].uses())


def stored(model: tieops.TiedModel) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.numpy() for parameter in model.parameters}


def test_the_output_layer_owns_its_bias_only(model: tieops.TiedModel) -> None:
    (fc,) = [layer for layer in model.layers if layer.name == "fc"]
    homes = {slot.name: slot.parameter.name for slot in fc.slots}
    assert homes == {"fc.weight": "emb.weight", "fc.bias": "fc.bias"}
    assert "fc.weight" not in stored(model)
    (tie,) = model.ties
    assert tie.names == ("emb.weight", "fc.weight")
    assert [(slot.name, str(slot.view)) for slot in tie.slots][1] == ("fc.weight", "transpose")
    owned = sum(parameter.nbytes for parameter in model.parameters)
    assert model.ledger.logical_bytes - owned == EMB_BYTES
    lines = str(model).splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("fc ")]
    assert "Linear" in lines[place]
    assert "weight f32[300,1000] (tied to emb.weight, transposed)" in lines[place + 1]


def test_the_network_runs_and_hands_its_weight_out(
    model: tieops.TiedModel, net: WithWeights, tmp_path
) -> None:
    written = tieops.to_onnx(model, tmp_path / "model.onnx")
    assert tieops.verify(written, against=net)
    found = tieops.session(written, provider="cpu").run({"x": TOKENS.numpy()})
    assert found["emb/weights"].tobytes() == net.emb.weight.detach().numpy().T.tobytes()
    assert found["probabilities"].shape == (2, 5, VOCAB)


def test_transfer_drops_the_transpose_and_the_weights_output(
    model: tieops.TiedModel, transfer: tieops.TiedModel
) -> None:
    assert output_names(transfer) == ["probabilities"]
    assert emb_readers(transfer) == ["Gather"]
    assert not transfer.ties
    gone = {parameter.name for parameter in model.parameters} - {*stored(transfer)}
    assert gone == {"fc.bias"}
    shape = transfer.ir.graph.outputs[0].shape
    assert shape is not None
    assert [str(size) for size in shape] == ["batch", "sequence", str(CLASSES)]


def test_the_new_layer_owns_a_weight_and_a_bias_at_factor_10(
    transfer: tieops.TiedModel, tmp_path
) -> None:
    tieops.to_onnx(transfer, tmp_path / "transfer.onnx")
    for model in (transfer, tieops.from_onnx(tmp_path / "transfer.onnx")):
        found = {each.name: (each.shape, each.lr_factor) for each in model.parameters}
        assert found.pop("fcNew.weight") == ((CLASSES, WIDTH), 10.0)
        assert found.pop("fcNew.bias") == ((CLASSES,), 10.0)
        assert {factor for _, factor in found.values()} == {1.0}
        (layer,) = [layer for layer in model.layers if layer.name == "fcNew"]
        homes = [(slot.name, slot.parameter.name) for slot in layer.slots]
        assert homes == [("fcNew.weight", "fcNew.weight"), ("fcNew.bias", "fcNew.bias")]
        assert "fc" not in {layer.name for layer in model.layers}


def test_the_embedding_keeps_its_values_name_and_size(
    transfer: tieops.TiedModel, net: WithWeights
) -> None:
    found = stored(transfer)["emb.weight"]
    assert found.shape == (VOCAB, WIDTH)
    assert found.tobytes() == net.emb.weight.detach().numpy().tobytes()
    (emb,) = [each for each in transfer.parameters if each.name == "emb.weight"]
    assert emb.names == ("emb.weight",)


def test_transfer_computes_what_torch_does_with_the_same_head(
    transfer: tieops.TiedModel, net: WithWeights, tmp_path
) -> None:
    reference = plain(net, CLASSES)
    arrays = stored(transfer)
    with torch.no_grad():
        reference.fc.weight.copy_(torch.from_numpy(arrays["fcNew.weight"].copy()))
        reference.fc.bias.copy_(torch.from_numpy(arrays["fcNew.bias"].copy()))
    written = tieops.to_onnx(transfer, tmp_path / "transfer.onnx")
    assert tieops.verify(written, against=reference)
    with torch.no_grad():
        reference.fc.bias[3] += 1
    with pytest.raises(tieops.TieopsError, match="differ"):
        bool(tieops.verify(written, against=reference))


def test_the_untied_copy_owns_the_same_values_twice(
    model: tieops.TiedModel, net: WithWeights
) -> None:
    untied = tieops.untie(model)
    assert not untied.ties
    arrays, weight = stored(untied), net.emb.weight.detach().numpy()
    assert arrays["emb.weight"].tobytes() == weight.tobytes()
    assert arrays["fc.weight"].shape == (WIDTH, VOCAB)
    assert arrays["fc.weight"].tobytes() == weight.T.tobytes()
    homes = {slot.name: slot.parameter.name for slot in untied.slots}
    assert (homes["emb.weight"], homes["fc.weight"]) == ("emb.weight", "fc.weight")
    assert homes["fc.bias"] == "fc.bias"
    owned = sum(parameter.nbytes for parameter in untied.parameters)
    assert owned == untied.ledger.logical_bytes
    assert untied.ledger.stored_bytes == model.ledger.stored_bytes + EMB_BYTES


def test_the_untied_copy_is_bitwise_the_tied_network(
    model: tieops.TiedModel, net: WithWeights, tmp_path
) -> None:
    tied = tieops.remove_disconnected_outputs(model)
    untied = tieops.remove_disconnected_outputs(tieops.untie(model))
    paths = [
        tieops.to_onnx(each, tmp_path / f"{i}.onnx").path for i, each in enumerate((tied, untied))
    ]
    assert output_names(untied) == ["probabilities"]
    assert emb_readers(untied) == ["Gather"]
    assert tieops.verify(paths[1], against=paths[0], rtol=0, atol=0, optimize=False)
    assert tieops.verify(paths[1], against=plain(net))


def test_the_untied_copy_hands_the_same_weight_out(model: tieops.TiedModel, tmp_path) -> None:
    for name, each in (("tied", model), ("untied", tieops.untie(model))):
        tieops.to_onnx(each, tmp_path / f"{name}.onnx")
    assert tieops.verify(
        tmp_path / "untied.onnx", against=tmp_path / "tied.onnx", rtol=0, atol=0, optimize=False
    )


def test_tying_the_untied_copy_brings_everything_back(model: tieops.TiedModel) -> None:
    again = tieops.tie(tieops.untie(model))
    assert [tie.names for tie in again.ties] == [tie.names for tie in model.ties]
    assert sorted(map(str, again.slots)) == sorted(map(str, model.slots))
    assert again.ledger == model.ledger
    onnx.checker.check_model(onnx_ir.to_proto(again.ir), full_check=True)


def test_nothing_is_copied_before_it_is_written(model: tieops.TiedModel) -> None:
    graph = model.clone()
    UntiePass()(graph)
    untied = tieops.TiedModel(graph)
    arrays = stored(untied)
    assert np.shares_memory(arrays["emb.weight"], arrays["fc.weight"])
