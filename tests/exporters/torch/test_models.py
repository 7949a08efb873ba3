"""to_torch on real models: outputs, names, ties, gradients, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tieops
from tests.support.module_ties import groups_of, names_of
from tests.support.onnx_models import MODELS, inputs, model_path
from tests.support.torch_modules import CASES, Wanted, tie_names

NAMES = [name for name in CASES if not name.endswith("-2000")]
QUICK = ("bert-150", "lstm-150", "autoencoder-150", "seed language model", "seed autoencoder")


def marked(names: list[str]) -> list[Any]:
    return [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in names]


@pytest.fixture(scope="module")
def imported(pytestconfig) -> Callable[[str], tuple[Wanted, tieops.TiedModel]]:
    """Import each model once for all tests of this file."""
    made: dict[str, tuple[Wanted, tieops.TiedModel]] = {}

    def get(name: str) -> tuple[Wanted, tieops.TiedModel]:
        if name not in made:
            case = CASES[name](pytestconfig)
            model = tieops.from_torch(
                case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes
            )
            made[name] = (case, model)
        return made[name]

    return get


def tensors(found: Any) -> list[Tensor]:
    """Return all tensors of an output, however it nests."""
    if isinstance(found, Tensor):
        return [found]
    found = list(found.values()) if hasattr(found, "values") else found
    return [t for each in found for t in tensors(each)] if isinstance(found, list | tuple) else []


def trained(outputs: list[Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of the outputs."""
    module.zero_grad()
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(each.shape, generator=generator) for each in outputs]
    torch.stack([(o * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum().backward()
    return {n: p.grad.clone() for n, p in names_of(module).items() if p.grad is not None}


@pytest.mark.parametrize("name", marked(NAMES))
@pytest.mark.slow
def test_a_model_comes_back_to_torch_with_its_names_ties_and_gradients(name, imported, tmp_path):
    case, model = imported(name)
    net = tieops.to_torch(model)
    assert groups_of(net) == groups_of(case.module)
    assert len([*net.parameters()]) == len([*case.module.parameters()])
    assert net.state_dict().keys() == case.module.state_dict().keys()
    net.load_state_dict(case.module.state_dict())
    case.module.load_state_dict(net.state_dict())

    written = tieops.to_onnx(model, tmp_path / "model.onnx")
    assert tieops.verify(net, against=written.path, rtol=1e-4, atol=case.atol)

    args = (*case.args, *case.kwargs.values())
    found = tensors(net(*args))
    wanted = tensors(case.module(*case.args, **case.kwargs))[: len(found)]
    for each, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-4, atol=case.atol)
    ours, theirs = trained(found, net), trained(wanted, case.module)
    assert ours.keys() == theirs.keys()
    for fqn, gradient in theirs.items():
        scale = float(gradient.abs().max())
        # What attention does to a bias of its keys cancels: nothing but rounding is left.
        atol = 1e-4 * scale + 1e-7 * max(float(g.abs().max()) for g in theirs.values())
        torch.testing.assert_close(ours[fqn], gradient, rtol=1e-4, atol=atol, msg=fqn)


@pytest.mark.parametrize("name", marked([n for n in NAMES if n != "rxnmapper"]))
@pytest.mark.slow
def test_the_way_back_has_the_ties_and_the_bytes(name, imported):
    case, model = imported(name)
    net = tieops.to_torch(model)
    args = tuple(case.args) + tuple(case.kwargs.values())
    dims = tuple(case.dynamic_shapes.values())
    again = tieops.from_torch(net, args, dynamic_shapes=dims)
    assert tie_names(again) == tie_names(model)
    stored = {n: each for each in model.parameters for n in each.names}
    found = {n: each for each in again.parameters for n in each.names}
    for fqn in names_of(case.module):
        assert found[fqn].numpy().tobytes() == stored[fqn].numpy().tobytes(), fqn
    assert again.ledger.stored_bytes <= 1.01 * model.ledger.stored_bytes
    assert tieops.verify(again, against=case.module, rtol=1e-4, atol=case.atol)


# --- ONNX files ----------------------------------------------------------------------------------


def bytes_of_files() -> dict[str, np.ndarray]:
    """Return what magika looks at: the beginnings of files of different kinds."""
    root = Path(__file__).resolve().parents[3]
    files = [root / "README.md", Path(__file__), root / "LICENSE"]
    rows = [np.frombuffer(path.read_bytes()[:2048], np.uint8) for path in files]
    return {"bytes": np.stack(rows).astype(np.int32)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_an_onnx_file_runs_in_torch(name, pytestconfig):
    source = model_path(name, pytestconfig)
    net = tieops.to_torch(tieops.from_onnx(source))
    # Random bytes are of no kind: what magika says about them hangs on rounding.
    given = [bytes_of_files()] if name == "magika" else inputs(name)
    assert tieops.verify(net, against=source, rtol=1e-4, atol=1e-5, inputs=given)


def test_silero_vad_trains_through_its_branches(pytestconfig):
    net = tieops.to_torch(tieops.from_onnx(model_path("silero-vad", pytestconfig)))
    (feeds, *_) = inputs("silero-vad") or []
    outputs = net(*(torch.from_numpy(np.asarray(feeds[n])) for n in net.meta["input_names"]))
    outputs[0].sum().backward()
    trained_ones = [n for n, p in net.named_parameters() if p.grad is not None]
    assert len(trained_ones) >= 14
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["bert-150", "lstm-150", "autoencoder-150"])
@pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning:torch.onnx",
    "ignore::torch.jit.TracerWarning",
    "ignore:Exporting a:UserWarning:torch.onnx",
)
def test_a_file_of_the_old_exporter_gets_its_modules_names_back(name, pytestconfig, tmp_path):
    """It writes Linear weights as transposed copies without names, and LSTM weights packed."""
    case = CASES[name](pytestconfig)
    path = tmp_path / "old.onnx"
    torch.onnx.export(
        case.module,
        case.args,
        path,
        kwargs=case.kwargs,
        dynamo=False,
        input_names=[*case.kwargs] or list(case.dynamic_shapes),
        dynamic_axes=case.dynamic_shapes,
        opset_version=17,
    )
    net = tieops.to_torch(tieops.tie(tieops.from_onnx(path)))
    names = names_of(net)
    # A bias with two names is in the file under one of them.
    assert names.keys() >= {n for n in names_of(case.module) if n != "cls.predictions.decoder.bias"}
    assert len([*net.parameters()]) == len([*case.module.parameters()])
    for fqn, parameter in names.items():
        assert parameter.equal(names_of(case.module)[fqn]), fqn
    net.load_state_dict(case.module.state_dict(), strict=False)
    assert tieops.verify(net, against=path, rtol=1e-4, atol=case.atol)
