"""The stages that a model goes through, each a function that raises where it does not hold.

A stage returns nothing if it holds, and the reason, as text, if the model has nothing for it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import tieops
from fixtures.torch_models import Case, tie_groups
from tieops.exporters.onnx import Written
from tieops.runtime import Session
from tieops.verification import make_inputs

__all__ = ["MODULE_STAGES", "STAGES", "Given", "Taken", "take_file", "take_module"]

CLASSES = 15
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Given:
    """What a model is held to: the file or the module that it came from.

    Attributes:
        source: A path, or a module in inference mode.
        feeds: Inputs to compare with; None makes them from the signature.
        atol: How far outputs may be apart where rounding may differ.
        inputs: A module's keyword inputs.
        dynamic_shapes: Which of their sizes vary.
    """

    source: Path | torch.nn.Module
    feeds: list[Arrays] | None = None
    atol: float = 1e-5
    inputs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None

    @property
    def module(self) -> torch.nn.Module | None:
        """The module, if the source is one."""
        return self.source if isinstance(self.source, torch.nn.Module) else None


class Taken:
    """A model on its way: what each stage leaves for the next."""

    def __init__(self, given: Given, model: tieops.TiedModel, folder: Path) -> None:
        self.given, self.model, self.folder = given, model, folder
        self.tied = tieops.tie(model)

    def write(self, name: str, model: tieops.TiedModel, tie_form: str = "portable") -> Written:
        """Write one of the models of this run."""
        return tieops.to_onnx(model, self.folder / f"{name}.onnx", tie_form=tie_form)

    def same_bits(self, written: Path, against: Path, feeds: list[Arrays] | None = None) -> None:
        """Hold what was written to the bits of another file, without ONNX Runtime's rewriting."""
        feeds = feeds or self.given.feeds
        tieops.verify(_exactly(written), against=_exactly(against), rtol=0, atol=0, inputs=feeds)


def _exactly(path: Path) -> Session:
    """Open a model without what ONNX Runtime does to stored matrices and not to computed ones."""
    plain = {"session.disable_prepacking": "1"}
    return tieops.session(path, provider="cpu", optimize=False, options=plain)


def _names(model: tieops.TiedModel) -> set[frozenset[str]]:
    return {frozenset(tie.names) for tie in model.ties if len(tie.names) > 1}


def _facts(model: tieops.TiedModel) -> Any:
    # Which of a tensor's names comes first is where it is stored, and may change.
    ties = sorted((sorted(tie.names), [str(slot) for slot in tie.slots]) for tie in model.ties)
    return ties, sorted(str(slot) for slot in model.slots), model.ledger


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def analyze(run: Taken) -> str | None:
    """No parameter of a module is stored twice; the analysis prints."""
    analysis = tieops.analyze(run.model)
    _check(bool(str(analysis)), "the analysis is empty")
    if run.given.module is not None:
        # Buffers may be equal: the masks of GPT-Neo's layers are.
        learnt = {name for name, _ in run.given.module.named_parameters(remove_duplicate=False)}
        loose = [
            str(each) for each in run.model.duplicates
            if not each.held_back and learnt & {p.name for p in each.parameters}
        ]  # fmt: skip
        _check(not loose, f"stored twice: {'; '.join(loose[:3])}")
    return None


def tie(run: Taken) -> str | None:
    """Nothing is left to tie, the model is no larger, every output has the same bits."""
    left = [str(each) for each in run.tied.duplicates if not each.held_back]
    again = tieops.tie(run.tied)
    _check(not left or again.ledger == run.tied.ledger, f"left to tie: {'; '.join(left[:3])}")
    _check(run.tied.ledger.stored_bytes <= run.model.ledger.stored_bytes, "tied, it is larger")
    run.same_bits(run.write("tied", run.tied).path, run.write("model", run.model).path)
    return None


def untie(run: Taken) -> str | None:
    """No weight has two readers; the same bits; ``tie`` brings names, slots and bytes back."""
    shared = [each for each in run.tied.ties if len(each.slots) > 1]
    free = tieops.untie(run.tied)
    left = [str(each) for each in free.ties if len(each.slots) > 1]
    _check(not left, f"still tied: {'; '.join(left[:3])}")
    run.same_bits(run.write("free", free).path, run.folder / "tied.onnx")
    _check(_facts(tieops.tie(free)) == _facts(run.tied), "tie(untie(model)) is not the model")
    return None if shared else "nothing tied"


def remove_outputs(run: Taken) -> str | None:
    """The first and the last output, each alone, have the same bits."""
    names = [str(value.name) for value in run.tied.ir.graph.outputs]
    if len(names) == 1:
        kept = tieops.remove_disconnected_outputs(run.tied)
        # Stored tensors that nobody reads go; what is read stays.
        _check([v.name for v in kept.ir.graph.outputs] == names, "the one output was removed")
        _check(_facts(kept)[:2] == _facts(run.tied)[:2], "ties or slots changed")
        return "one output"
    for name in dict.fromkeys((names[0], names[-1])):
        small = tieops.remove_disconnected_outputs(run.tied, keep=[name])
        _check([v.name for v in small.ir.graph.outputs] == [name], f"{name} is not alone")
        _check(small.ledger.stored_bytes <= run.tied.ledger.stored_bytes, "it is larger")
        run.same_bits(run.write("small", small).path, run.folder / "tied.onnx")
    return None


def replace_head(run: Taken) -> str | None:
    """With 15 classes it computes what the module with that head does; nothing else changed."""
    small = tieops.replace_head(run.tied, out_features=CLASSES, lr_factor=10, seed=3)
    # Without its head, a tied weight has the name that is left.
    was = {name: each for each in run.tied.parameters for name in each.names}
    fresh = [each for each in small.parameters if each.lr_factor == 10]
    changed = [
        each.name for each in small.parameters
        if each.lr_factor != 10 and each.numpy().tobytes() != was[each.name].numpy().tobytes()
    ]  # fmt: skip
    _check(not changed, f"changed: {', '.join(changed)}")
    written = run.write("head", small, tie_form="gemm").path
    if run.given.module is None:
        feeds = (run.given.feeds or [make_inputs(small.ir)])[0]
        used = {value.name for value in small.inputs}
        found = tieops.session(written, provider="cpu").run(
            {name: array for name, array in feeds.items() if name in used}
        )
        _check(any(CLASSES in each.shape for each in found.values()), "no output has the new size")
        return None
    weight, bias = fresh
    reference = copy.deepcopy(run.given.module)
    head = torch.nn.Linear(weight.shape[1], CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight.numpy().copy()))
        head.bias.copy_(torch.from_numpy(bias.numpy().copy()))
    _set_head(reference, head)
    try:
        reference(**run.given.inputs)
    except RuntimeError:
        return "the module itself cannot take a head of another size"
    tieops.verify(written, against=reference, atol=run.given.atol)
    return None


def _set_head(module: Any, head: torch.nn.Linear) -> None:
    module.set_output_embeddings(head)
    if hasattr(module, "final_logits_bias"):  # BART adds one of the vocabulary's size
        module.final_logits_bias = torch.zeros(1, CLASSES)


def to_onnx(run: Taken) -> str | None:
    """The checker accepts the file; one copy of each parameter; read again, the same ties."""
    written = run.write("written", run.tied, tie_form="gemm")
    onnx.checker.check_model(str(written.path))
    _check(written.stored_bytes <= 1.01 * run.tied.ledger.stored_bytes, "it is larger")
    again = tieops.from_onnx(written.path)
    _check(_names(again) == _names(run.tied), "the file has other ties")
    portable = tieops.from_onnx(run.folder / "tied.onnx")
    _check(_facts(portable) == _facts(run.tied), "the portable file is another model")
    return None


def verify(run: Taken) -> str | None:
    """What was written computes what the module or the file does."""
    path = run.folder / "written.onnx"
    tieops.verify(path, against=run.given.source, inputs=run.given.feeds, atol=run.given.atol)
    return None


def to_torch(run: Taken) -> str | None:
    """The new module has the ties and names of the old, loads its state, computes the same."""
    net = tieops.to_torch(run.tied)
    module = run.given.module
    if module is not None:
        _check(tie_groups(net) == _needed_ties(run.given), "the module has other ties")
        ours, theirs = net.state_dict().keys(), module.state_dict().keys()
        _check(ours <= theirs, f"new names in the state: {', '.join(ours - theirs)}")
        learnt = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        lost = (theirs - ours) & learnt - _unused(module, run.given.inputs)
        _check(not lost, f"names missing in the state: {', '.join(sorted(lost)[:5])}")
        trained = {n: p.requires_grad for n, p in module.named_parameters(remove_duplicate=False)}
        odd = [
            name for name, each in net.named_parameters(remove_duplicate=False)
            if trained.get(name) != each.requires_grad
        ]  # fmt: skip
        _check(not odd, f"trained otherwise: {', '.join(odd[:5])}")
        net.load_state_dict(module.state_dict(), strict=ours == theirs)
    path = run.folder / "written.onnx"
    tieops.verify(net, against=path, inputs=run.given.feeds, atol=run.given.atol)
    return None


STAGES: dict[str, Callable[[Taken], str | None]] = {
    "analyze": analyze,
    "tie": tie,
    "untie": untie,
    "remove outputs": remove_outputs,
    "replace head": replace_head,
    "to_onnx": to_onnx,
    "verify": verify,
    "to_torch": to_torch,
}
"""What a model goes through once it is imported, in order."""


def old_exporter(run: Taken) -> str | None:
    """In the file of ``dynamo=False`` each copy is found by content; one stays, no bit differs."""
    module, path = run.given.module, run.folder / "old.onnx"
    assert module is not None
    inputs, axes = {**run.given.inputs}, {**(run.given.dynamic_shapes or {})}
    order = inspect.signature(module.forward).parameters
    if {*inputs} == {"input_ids"} and "attention_mask" in order:
        # Without one, decoders look for packed sequences, by an operator that it does not know.
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        axes["attention_mask"] = axes.get("input_ids", {})
    # It names inputs in the order of the signature.
    inputs = {name: inputs[name] for name in order if name in inputs}
    try:
        torch.onnx.export(
            module,
            (),
            path,
            kwargs=inputs,
            dynamo=False,
            input_names=[*inputs],
            dynamic_axes=axes,
            opset_version=17,
        )
    except Exception as error:
        return f"torch cannot: {' '.join(str(error).split())[:150]}"
    old = tieops.from_onnx(path)
    tied = tieops.tie(old)
    left = [str(each) for each in tied.duplicates if not each.held_back]
    _check(not left, f"left to tie: {'; '.join(left[:3])}")
    # What the file has no name for (two embeddings that are one object) is a slot's name in it.
    known = [{*tie.names, *(slot.name for slot in tie.slots)} for tie in tied.ties]
    lost = {
        group for group in tie_groups(module)
        if not any("bias" in name for name in group) and not any(group <= each for each in known)
    }  # fmt: skip
    if any(_copies(old, module.get_parameter(min(group))) < 2 for group in lost):
        return f"torch folds {_said(lost)} into another tensor"
    _check(not lost, f"ties missed: {_said(lost)}")
    twice = {g for g in tie_groups(module) if _copies(tied, module.get_parameter(min(g))) > 1}
    _check(not twice, f"still stored twice: {_said(twice)}")
    # Not at other sizes: tracing has fixed some of them in many a model.
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    given = make_inputs(tied.ir) | given  # default arguments have become inputs in some
    feeds = {str(value.name): given[str(value.name)] for value in tied.inputs}
    run.same_bits(run.write("old tied", tied).path, path, [feeds])
    return None


def _copies(model: tieops.TiedModel, parameter: torch.Tensor) -> int:
    """Return how many stored tensors have a parameter's elements, in whatever order of axes."""
    wanted = np.sort(parameter.detach().numpy(), axis=None)
    return sum(
        each.elements == wanted.size and np.array_equal(np.sort(each.numpy(), axis=None), wanted)
        for each in model.parameters
    )


MODULE_STAGES = {"old exporter": old_exporter}
"""What a module goes through besides."""


def take_module(case: Case, atol: float, folder: Path) -> Taken:
    """The ties are those of the module's storages; each name that an output needs has its bits.

    Raises:
        AssertionError: If a tie, a name or a bit is not what the module has.
    """
    module = case.module
    model = tieops.from_torch(module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    unused = _unused(module, case.inputs)
    given = Given(module, None, atol, case.inputs, case.dynamic_shapes)
    truth, found = _needed_ties(given), _names(model)
    _check(found == truth, f"ties missed: {_said(truth - found)}; made up: {_said(found - truth)}")
    stored = {name: each.numpy().tobytes() for each in model.parameters for name in each.names}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        held = stored.get(name) == parameter.detach().numpy().tobytes()
        _check(held or (name in unused and name not in stored), f"{name} is not stored")
    return Taken(given, model, folder)


def _needed_ties(given: Given) -> set[frozenset[str]]:
    """Return the module's ties but for those that no output comes from: a program has no place."""
    assert given.module is not None
    unused = _unused(given.module, given.inputs)
    return {group for group in tie_groups(given.module) if not group <= unused}


def _unused(module: torch.nn.Module, inputs: Mapping[str, Any]) -> set[str]:
    """Return the names of parameters that no output depends on, such as those of a lost pooler."""
    module = copy.deepcopy(module)  # RecurrentGemma keeps what it computed last
    outputs = [each for each in module(**inputs).values() if isinstance(each, torch.Tensor)]
    torch.stack([each.sum() for each in outputs if each.requires_grad]).sum().backward()
    found = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in found if parameter.grad is None}


def _said(groups: set[frozenset[str]]) -> str:
    return ", ".join(" = ".join(sorted(group)) for group in groups) or "none"


def take_file(path: Path, feeds: list[Arrays] | None, atol: float, folder: Path) -> Taken:
    """Import a file."""
    return Taken(Given(path, feeds, atol), tieops.from_onnx(path), folder)
