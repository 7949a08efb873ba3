"""Surgery on real models: the promised bits, bytes to the byte, back again, and new heads."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch

import tieops
from fixtures.torch_models import build
from tests.support.onnx_models import inputs, model_path
from tests.support.wheels import fetch
from tieops.model import TiedModel

CLASSES = 15
SIZES = (150, 32)
RXNMAPPER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
NAMES = ("gpt2", "qwen2", "bert", "t5", "bart", "albert")


@dataclass(frozen=True)
class Given:
    """A model with the module it came from, and how its module is called."""

    model: TiedModel
    module: torch.nn.Module | None = None
    feeds: list[dict[str, np.ndarray]] | None = None
    atol: float = 1e-5


def _architecture(name: str) -> Given:
    case = build(name, *SIZES)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    return Given(model, case.module)


def _rxnmapper(config: pytest.Config) -> Given:
    from transformers import AlbertConfig, AlbertForMaskedLM

    sizes = json.loads(fetch("rxnmapper", f"{RXNMAPPER}/config.json", config).read_text("utf-8"))
    weights = fetch("rxnmapper", f"{RXNMAPPER}/pytorch_model.bin", config)
    module = AlbertForMaskedLM(AlbertConfig(**sizes)).eval()
    state = torch.load(weights, weights_only=True, map_location="cpu")
    missing, _ = module.load_state_dict(state, strict=False)
    assert missing == []
    tokens = torch.arange(18).reshape(2, 9)
    dims = {"input_ids": {0: "batch", 1: "sequence"}}
    model = tieops.from_torch(module, (), {"input_ids": tokens}, dynamic_shapes=dims)
    return Given(model, module, atol=1e-4)


def _old_bert() -> Given:
    case, file = build("bert", *SIZES), io.BytesIO()
    torch.onnx.export(
        case.module,
        (),
        file,
        kwargs=case.inputs,
        dynamo=False,
        input_names=[*case.inputs],
        dynamic_axes=case.dynamic_shapes,
        opset_version=17,
    )
    return Given(tieops.tie(tieops.from_onnx(file.getvalue())), case.module)


def _file(name: str, config: pytest.Config) -> Given:
    return Given(tieops.tie(tieops.from_onnx(model_path(name, config))), feeds=inputs(name))


CASES: dict[str, Callable[[pytest.Config], Given]] = {
    name: lambda _, name=name: _architecture(name) for name in NAMES
}
CASES |= {
    "rxnmapper": _rxnmapper,
    "old bert": lambda _: _old_bert(),
    "silero-vad": lambda config: _file("silero-vad", config),
    "basic-pitch": lambda config: _file("basic-pitch", config),
}
SLOW = {"gpt2", "qwen2", "albert", "t5", "bart", "rxnmapper"}
OLD_EXPORTER = [
    # torch says that this exporter is the old one, from two places.
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning:torch.onnx",
    # Tracing follows one way through each Python branch of torch's and transformers' own code.
    "ignore::torch.jit.TracerWarning",
    # Hints about opsets and batch sizes, from the exporter's operators.
    "ignore:Exporting a:UserWarning:torch.onnx",
]


def cases(*names: str) -> pytest.MarkDecorator:
    marked: list[Any] = []
    for name in names:
        marks = [pytest.mark.slow] if name in SLOW else []
        if name == "old bert":
            marks += [pytest.mark.filterwarnings(each) for each in OLD_EXPORTER]
        marked.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", marked)


@pytest.fixture(scope="module")
def given(pytestconfig: pytest.Config) -> Callable[[str], Given]:
    """Import each model once for all tests of this file."""
    made: dict[str, Given] = {}

    def get(name: str) -> Given:
        if name not in made:
            made[name] = CASES[name](pytestconfig)
        return made[name]

    return get


def facts(model: TiedModel) -> Any:
    """Return what ``tie(untie(m))`` must bring back: ties, slots and bytes."""
    ties = sorted((tie.names, [str(slot) for slot in tie.slots]) for tie in model.ties)
    return ties, sorted(str(slot) for slot in model.slots), model.ledger


def read_twice(model: TiedModel) -> list[Any]:
    """Return the ties of two readers or more; one reader under two names stays as it is."""
    return [tie for tie in model.ties if len(tie.slots) > 1]


def same_bits(after: TiedModel, before: TiedModel, given: Given, folder: Any) -> None:
    """Compare what is written for both, to the last bit."""
    written = tieops.to_onnx(after, folder / "after.onnx").path
    against = tieops.to_onnx(before, folder / "before.onnx").path
    assert tieops.verify(
        written, against=against, rtol=0, atol=0, optimize=False, inputs=given.feeds
    )


@cases(*CASES)
@pytest.mark.slow
def test_untied_is_the_same_to_the_last_bit(name, given, tmp_path):
    case = given(name)
    before = str(case.model)
    free = tieops.untie(case.model)
    assert str(case.model) == before
    assert read_twice(case.model)
    assert not read_twice(free)
    same_bits(free, case.model, case, tmp_path)


@cases(*CASES)
@pytest.mark.slow
def test_untied_stores_what_each_slot_reads(name, given):
    model = given(name).model
    free = tieops.untie(model)
    # A scalar that several operators read is no tie: it stays one.
    slots = [slot for slot in free.slots if slot.parameter.elements > 1]
    # Nor are buffers that no layer reads, such as positions: nobody owns them.
    parameters = {read.parameter for slot in slots for read in slot.reads}
    owned = {each.name: each.nbytes for each in parameters}
    assert sum(owned.values()) == sum(slot.logical_bytes for slot in slots)
    # Nothing else changed: masks, shapes and other operands are what they were.
    grown = free.ledger.stored_bytes - model.ledger.stored_bytes
    assert grown > 0
    assert grown == sum(each.nbytes for each in free.parameters) - sum(
        each.nbytes for each in model.parameters
    )


@pytest.mark.slow
@cases(*CASES)
def test_tie_brings_back_names_slots_and_bytes(name, given, tmp_path):
    case = given(name)
    again = tieops.tie(tieops.untie(case.model))
    assert facts(again) == facts(case.model)
    same_bits(again, case.model, case, tmp_path)


@cases("t5", "bart", "silero-vad", "basic-pitch")
def test_outputs_that_stay_are_the_same_to_the_last_bit(name, given, tmp_path):
    case = given(name)
    names = [str(output.name) for output in case.model.ir.graph.outputs]
    assert len(names) > 1
    whole = tieops.session(tieops.to_onnx(case.model, tmp_path / "whole.onnx"), optimize=False,
                           provider="cpu")  # fmt: skip
    feeds = case.feeds or [_made(case.model)]
    for kept in names:
        small = tieops.remove_disconnected_outputs(case.model, keep=[kept])
        assert [output.name for output in small.ir.graph.outputs] == [kept]
        assert small.ledger.stored_bytes <= case.model.ledger.stored_bytes
        stored = small.ir.graph.initializers.values()
        assert all(value.uses() or value.is_graph_output() for value in stored)
        onnx.checker.check_model(onnx_ir.to_proto(small.ir))
        path = tieops.to_onnx(small, tmp_path / "small.onnx")
        session = tieops.session(path, provider="cpu", optimize=False)
        read = {str(value.name) for value in small.inputs}
        for each in feeds:
            got = session.run({key: array for key, array in each.items() if key in read})
            assert [*got] == [kept]
            assert got[kept].tobytes() == whole.run(each)[kept].tobytes()


def _made(model: TiedModel) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for value in model.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        sizes = tuple(size if isinstance(size, int) else 2 for size in value.shape)
        floats = rng.standard_normal(sizes)
        ids = rng.integers(0, SIZES[0], sizes)
        feeds[str(value.name)] = (
            ids if value.dtype == onnx_ir.DataType.INT64 else floats.astype(np.float32)
        )
    return feeds


@cases(*NAMES, "rxnmapper", "old bert")
def test_a_new_head_computes_what_torch_does(name, given, tmp_path):
    case = given(name)
    assert case.module is not None
    before = str(case.model)
    small = tieops.replace_head(case.model, out_features=CLASSES, lr_factor=10, seed=3)
    assert str(case.model) == before
    weight, bias = (each for each in small.parameters if each.lr_factor == 10)
    assert (weight.shape[0], bias.shape) == (CLASSES, (CLASSES,))
    reference = copy.deepcopy(case.module)
    head = torch.nn.Linear(weight.shape[1], CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight.numpy().copy()))
        head.bias.copy_(torch.from_numpy(bias.numpy().copy()))
    reference.set_output_embeddings(head)
    if hasattr(reference, "final_logits_bias"):  # BART adds one of the vocabulary's size
        reference.final_logits_bias = torch.zeros(1, CLASSES)
    written = tieops.to_onnx(small, tmp_path / "small.onnx")
    assert tieops.verify(written, against=reference, rtol=1e-4, atol=case.atol)
    assert (
        tieops.session(written, provider="cpu")
        .run(_made(small))[str(small.ir.graph.outputs[0].name)]
        .shape[-1]
        == CLASSES
    )


@cases(*NAMES, "rxnmapper", "old bert")
def test_a_new_head_leaves_everything_else_as_it_was(name, given):
    model = given(name).model
    small = tieops.replace_head(model, out_features=CLASSES, lr_factor=10)
    was = {each.name: each for each in model.parameters}
    now = {each.name: each for each in small.parameters if each.lr_factor == 1}
    assert {*now} <= {*was}
    for key, parameter in now.items():
        assert parameter.shape == was[key].shape, key
        assert parameter.numpy().tobytes() == was[key].numpy().tobytes(), key
    tables = {slot.parameter.name for slot in model.slots if slot.node.op_type == "Gather"}
    assert tables
    assert tables <= {*now}
    (shared,) = [t.parameter.name for t in model.ties if t.parameter.shape[0] in (SIZES[0], 591)
                 and t.parameter.name in tables]  # fmt: skip
    assert any(slot.parameter.name == shared for slot in small.slots)
    homes = {slot.layer for slot in small.slots if slot.parameter.name == shared}
    assert len(homes) == len({s.layer for s in model.slots if s.parameter.name == shared}) - 1
