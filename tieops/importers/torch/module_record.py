"""Record in the graph what torch reports of a program's tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir
import torch
from torch import Tensor, nn

from tieops.analysis.trace import trace
from tieops.ir.evidence import Evidence
from tieops.ir.metadata.keys import TORCH_NOTES, aliases_of, evidence_of, packed_parts, set_evidence
from tieops.ir.metadata.torch_kinds import Kind, note_kind, word_of
from tieops.ir.storage.value_samples import is_uniform
from tieops.ir.walk import stored_values

__all__ = ["note_learnables"]


@dataclass(frozen=True)
class _Said:
    """The parameters and buffers of a program, under every name."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, bool]
    """For each buffer whether it is persistent."""


def note_learnables(
    model: onnx_ir.Model,
    source: nn.Module | torch.export.ExportedProgram,
    notes: Iterable[str] = (),
    written: Iterable[str] = (),
) -> None:
    """Record what each stored tensor is: a parameter, frozen or not, a buffer, or a constant.

    Args:
        model: The exported graph; its stored tensors have the module's names. Changed in place.
        source: The module or the program that it was exported from.
        notes: What the graph cannot say, a line each.
        written: The names of the buffers that the forward writes.
    """
    said = _of_module(source) if isinstance(source, nn.Module) else _of_program(source)
    for value in stored_values(model):
        _note(value, said)
    traced = trace(model)
    for value in traced.uses:
        if word_of(value) is not None:
            continue
        if traced.learnables.kind_by_use(value) is Kind.PARAMETER:
            # Torch's exporter filled it in: the ones of a norm that learns nothing.
            note_kind(value, Kind.CONSTANT)
    for value, uses in traced.uses.items():
        # The module has one parameter here, whatever its values are when it is exported.
        is_bare = len(uses) > 1 and word_of(value) is not None and evidence_of(value) is None
        if is_bare and is_uniform(value):
            set_evidence(value, Evidence.STORAGE)
    lines = [*notes, *(f"the forward writes the buffer {name}" for name in written)]
    model.metadata_props[TORCH_NOTES] = json.dumps(lines)


def _note(value: onnx_ir.Value, said: _Said) -> None:
    parts = packed_parts(value)
    names = parts or aliases_of(value)
    parameters = [name for name in names if name in said.parameters]
    if parameters:
        frozen = {name for name in parameters if not said.parameters[name].requires_grad}
        is_frozen = len(frozen) == len(parameters)
        buffers = {name: said.buffers[name] for name in names if name in said.buffers}
        note_kind(
            value,
            Kind.PARAMETER,
            frozen=True if is_frozen else frozen or False,
            buffers={} if parts else buffers,
        )
        return
    buffers = [said.buffers[name] for name in names if name in said.buffers]
    if buffers:
        note_kind(value, Kind.BUFFER, persistent=any(buffers))


def _of_module(module: nn.Module) -> _Said:
    # A buffer's module knows whether it is persistent, and nobody else.
    passing = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, each in module.named_modules(remove_duplicate=False)
        for name in getattr(each, "_non_persistent_buffers_set", ())
    }
    buffers = dict(module.named_buffers(remove_duplicate=False))
    return _Said(
        dict(module.named_parameters(remove_duplicate=False)),
        {name: name not in passing for name in buffers},
    )


def _of_program(program: torch.export.ExportedProgram) -> _Said:
    signature = program.graph_signature
    passing = set(signature.non_persistent_buffers)
    state = program.state_dict
    return _Said(
        {name: state[name] for name in signature.parameters if name in state},
        {name: name not in passing for name in signature.buffers},
    )
