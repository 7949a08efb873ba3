"""Clean up the graph that torch's exporter writes, and annotate it."""

from __future__ import annotations

import onnx_ir
import onnxscript.optimizer
import torch
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from tieops.errors import ExportError
from tieops.importers.onnx import innermost
from tieops.importers.torch.quiet import quiet
from tieops.ir.edit import NameAuthority
from tieops.ir.metadata.keys import PADDING_IDX
from tieops.ir.metadata.torch_inputs import TorchInputs, set_torch_inputs
from tieops.ir.metadata.torch_kinds import is_said_in_state
from tieops.ir.operators.predicates import is_gather
from tieops.ir.walk import all_graphs, nested_graphs

__all__ = [
    "name_apart",
    "note_layout",
    "note_padding",
    "note_program",
    "tidy",
]


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
        with quiet():
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
