"""Clean up the graph that torch's exporter writes, and annotate it.

Annotations are what torch reports of a program's tensors (parameter or buffer, frozen, padding, how
inputs nest), recorded while the module is available.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from tieops.analysis.trace import trace
from tieops.errors import ExportError
from tieops.importers.onnx import innermost
from tieops.importers.torch.isolation import suppress_torch_logging
from tieops.ir.edit import NameAuthority
from tieops.ir.evidence import Evidence
from tieops.ir.metadata.keys import (
    PADDING_IDX,
    TORCH_NOTES,
    aliases_of,
    evidence_of,
    packed_parts,
    set_evidence,
)
from tieops.ir.metadata.torch_inputs import TorchInputs, set_torch_inputs
from tieops.ir.metadata.torch_kinds import Kind, is_said_in_state, note_kind, word_of
from tieops.ir.operators.predicates import is_gather
from tieops.ir.storage.value_samples import is_uniform
from tieops.ir.walk import all_graphs, nested_graphs, stored_values

__all__ = ["name_apart", "note_layout", "note_learnables", "note_padding", "note_program", "tidy"]


def name_apart(model: onnx_ir.Model) -> None:
    """Give each value of an inner graph a name that no other value has.

    The exporter numbers the values of each graph by themselves, and an inner graph sees the outer.
    """
    names = NameAuthority(model)
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        seen: set[str | None] = set()
        for graph in nested_graphs(root):
            outputs = (output for node in graph for output in node.outputs)
            for value in (*graph.inputs, *graph.initializers.values(), *outputs):
                if value.name in seen and value.name is not None and graph is not root:
                    value.name = names.take(value.name)
                seen.add(value.name)


def tidy(model: onnx_ir.Model) -> None:
    """Let onnxscript's optimizer clean the program up, without letting it see a learnable.

    With its values hidden a parameter cannot be folded into a copy, merged with an equal one, or
    dropped for being zero; shapes and scalars still are.

    Raises:
        ExportError: If the optimizer fails.
    """
    hidden: dict[onnx_ir.Value, onnx_ir.TensorProtocol] = {}
    for value in model.graph.initializers.values():
        if is_said_in_state(value) and value.const_value is not None:
            hidden[value] = value.const_value
            value.const_value = None
    try:
        with suppress_torch_logging():
            onnxscript.optimizer.optimize_ir(model)
    except onnx_ir.passes.PassError as error:
        raise ExportError(
            "onnxscript cannot clean up what torch exported",
            {"onnxscript says": innermost(error)},
            "remove the operation it names from the module, or install another onnxscript",
        ) from error
    for value, tensor in hidden.items():
        value.const_value = tensor


def note_program(model: onnx_ir.Model) -> None:
    """Drop what the exporter notes for itself.

    Stack traces and FX source hold paths of the exporting machine and are most of a file's text;
    beside them it leaves objects of its own, with the tensors that it traced.
    """
    for graph in all_graphs(model):
        for value in (*graph.inputs, *graph.initializers.values()):
            value.meta.clear()
        for node in graph:
            for key in ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "namespace"):
                node.metadata_props.pop(key, None)
            for each in (node, *node.outputs):
                each.meta.clear()


def note_padding(model: onnx_ir.Model, exported: torch.export.ExportedProgram) -> None:
    """Remember the padding row of each embedding: it matters to training alone."""
    rows = {
        node.name: node.args[2]
        for node in exported.graph.nodes
        if node.target is torch.ops.aten.embedding.default and len(node.args) > 2
    }
    for node in model.graph.all_nodes():
        row = rows.get(node.outputs[0].name or "") if is_gather(node) else None
        if isinstance(row, int) and row >= 0:
            node.metadata_props[PADDING_IDX] = str(row)


def note_layout(model: onnx_ir.Model, exported: torch.export.ExportedProgram) -> None:
    """Remember how the inputs nest, so that the module can be called with the graph's inputs."""
    spec = exported.call_spec.in_spec
    if spec is None:
        return
    try:
        text = pytree.treespec_dumps(spec)
    except NotImplementedError:
        return  # a container that torch cannot spell; names and order are what is left
    leaves = [
        each.arg
        for each in exported.graph_signature.input_specs
        if each.kind is InputKind.USER_INPUT
    ]
    constants = {
        index: each.value for index, each in enumerate(leaves) if isinstance(each, ConstantArgument)
    }
    set_torch_inputs(model, TorchInputs(text, constants))


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
