"""Real PyTorch models: exactly the module's ties, every learnable to the bit, one stored copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tieops
from fixtures.torch_models import tie_groups
from tests.support.torch_modules import (
    CASES,
    Wanted,
    tie_names,
)
from tieops.importers.torch.rnn_weights import unpack
from tieops.ir.metadata.keys import aliases_of
from tieops.runtime import Session

NO_TIES = ("llama_untied-150", "llama_untied-2000", "nn.Transformer")


@pytest.fixture(scope="module")
def wanted(pytestconfig: pytest.Config) -> Callable[[str], Wanted]:
    """Build each model once for all tests of this file."""
    built: dict[str, Wanted] = {}

    def get(name: str) -> Wanted:
        if name not in built:
            built[name] = CASES[name](pytestconfig)
        return built[name]

    return get


def described(model: tieops.TiedModel) -> dict[frozenset[str], list[tuple[str, str]]]:
    return {
        frozenset(tie.names): sorted((slot.name, str(slot.view)) for slot in tie.slots)
        for tie in model.ties
    }


def stored(model: tieops.TiedModel) -> dict[str, np.ndarray]:
    """Return what is stored under every name; recurrent weights in torch's own layout."""
    found: dict[str, np.ndarray] = {}
    for value in model.ir.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        packed = value.metadata_props.get("tieops.packed")
        if packed:
            found |= unpack(array, **json.loads(packed))
        else:
            found |= dict.fromkeys(aliases_of(value), array)
    return found


def unique_bytes(module: torch.nn.Module) -> int:
    storages = [each.untyped_storage() for each in (*module.parameters(), *module.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def exactly(path: Path) -> Session:
    """Open a model without optimizations and without prepacking.

    ONNX Runtime multiplies by a stored matrix, which it packs first, in another order than by the
    output of a Transpose: the last bit may differ where one of the two became the other.
    """
    plain = {"session.disable_prepacking": "1"}
    return tieops.session(path, provider="cpu", optimize=False, options=plain)


SLOW = {"gpt2", "qwen2", "llama", "llama_untied", "albert", "t5", "bart", "rxnmapper"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.partition("-")[0] in SLOW else [])
        for name in CASES
    ],
)
@pytest.mark.slow
def test_a_model_comes_out_of_torch_whole_and_tied(name, wanted, tmp_path):
    case = wanted(name)
    model = tieops.from_torch(
        case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes
    )

    groups = tie_groups(case.module)
    assert bool(groups or case.shared) == (name not in NO_TIES)
    assert tie_names(model) == groups
    single = {tie.names[0]: len(tie.slots) for tie in model.ties if len(tie.names) == 1}
    assert single == case.shared
    assert not [each for each in model.duplicates if not each.held_back]

    have = stored(model)
    state = {**case.module.state_dict(keep_vars=True)}
    assert set(state) - set(have) == set()
    for fqn, tensor in state.items():
        array = tensor.detach().numpy()
        assert have[fqn].dtype == array.dtype, fqn
        assert have[fqn].shape == array.shape, fqn
        assert have[fqn].tobytes() == array.tobytes(), fqn

    path = tmp_path / "model.onnx"
    written = tieops.to_onnx(model, path)
    assert written.stored_bytes <= 1.01 * unique_bytes(case.module)
    assert written.file_bytes >= written.stored_bytes
    assert tieops.verify(path, against=case.module, rtol=1e-4, atol=case.atol)

    again = tieops.from_onnx(path)
    assert tie_names(again) == groups
    wrote = {names: [slot for slot, _ in slots] for names, slots in described(model).items()}
    read = {names: [slot for slot, _ in slots] for names, slots in described(again).items()}
    assert read == wrote
    portable = tieops.to_onnx(model, tmp_path / "portable.onnx", tie_form="portable")
    assert described(tieops.from_onnx(portable)) == described(model)


# The exporter from before torch.export, which fails on decoder-only models in torch itself.
OLD = ("bert-150", "bert-2000", "albert-150", "albert-2000", "t5-150", "t5-2000", "bart-150",
       "bart-2000", "lstm-150", "lstm-2000", "autoencoder-150", "seed language model", "rxnmapper",
       "seed autoencoder")  # fmt: skip


@pytest.mark.parametrize("name", OLD)
@pytest.mark.filterwarnings(
    # torch says that this exporter is the old one, from two places.
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning:torch.onnx",
    # Tracing follows one way through each Python branch of torch's and transformers' own code.
    "ignore::torch.jit.TracerWarning",
    # Hints about opsets and batch sizes, from the exporter's operators.
    "ignore:Exporting a:UserWarning:torch.onnx",
)
@pytest.mark.slow
def test_a_model_of_the_old_exporter_comes_back_to_one_copy(name, wanted, tmp_path):
    case = wanted(name)
    old = tmp_path / "old.onnx"
    names = [*case.kwargs] or list(case.dynamic_shapes)
    torch.onnx.export(
        case.module.eval(),
        case.args,
        old,
        kwargs=case.kwargs,
        dynamo=False,
        input_names=names,
        dynamic_axes=case.dynamic_shapes,
        opset_version=17,
    )
    model = tieops.from_onnx(old)
    tied = tieops.tie(model)
    assert not [each for each in tied.duplicates if not each.held_back]
    # What the file has no name for (two embeddings that share one object) is a slot's name in it.
    known = {
        frozenset(name for name in (*tie.names, *(slot.name for slot in tie.slots)))
        for tie in tied.ties
    }
    weights = [group for group in tie_groups(case.module) if not any("bias" in n for n in group)]
    assert known >= {*weights}
    assert {len(tie.slots) for tie in tied.ties} >= {*case.shared.values()}
    # This exporter leaves operands of its own, many for so small a model: the layers' are counted.
    assert sum(each.nbytes for each in tied.parameters) <= 1.01 * unique_bytes(case.module)
    written = tieops.to_onnx(tied, tmp_path / "tied.onnx", tie_form="portable")
    assert tieops.verify(
        exactly(written.path), against=exactly(old), rtol=0, atol=0, optimize=False
    )
    gemm = tieops.to_onnx(tied, tmp_path / "gemm.onnx")
    assert tieops.verify(gemm, against=old, rtol=0, atol=0, optimize=False)
    assert tieops.verify(gemm, against=case.module, rtol=1e-4, atol=case.atol)
