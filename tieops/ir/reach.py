"""What the inputs reach, and what the outputs need; the rest can go."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir

from tieops.ir.scopes import all_graphs, all_nodes, nested_graphs, subgraphs_of

__all__ = ["RANDOM_OPERATORS", "Liveness", "prune", "reached_from_inputs"]

RANDOM_OPERATORS = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
))  # fmt: skip


def reached_from_inputs(model: onnx_ir.Model) -> set[onnx_ir.Value]:
    """Return the values of the main graph that depend on what a caller feeds.

    Inputs that merely override a stored tensor do not count; random operators do, for what they
    compute is no constant either.
    """
    reached: set[onnx_ir.Value] = {
        value for value in model.graph.inputs if not value.is_initializer()
    }
    around = {
        inner: node
        for graph in nested_graphs(model.graph)
        for node in graph
        for inner in subgraphs_of(node)
    }
    random = _random_functions(model)
    pending = list(reached)
    for node in model.graph.all_nodes():
        if node.op_type in RANDOM_OPERATORS or node.op_identifier() in random:
            pending += _new(node, reached, around)
    while pending:
        value = pending.pop()
        for node, _ in value.uses():
            pending += _new(node, reached, around)
    return reached


def _random_functions(model: onnx_ir.Model) -> set[onnx_ir.OperatorIdentifier]:
    """Return the functions that compute random numbers, or call one that does."""
    found: set[onnx_ir.OperatorIdentifier] = set()
    grown = True
    while grown:
        new = {
            key
            for key, function in model.functions.items()
            if key not in found
            and any(
                n.op_type in RANDOM_OPERATORS or n.op_identifier() in found
                for n in function.all_nodes()
            )
        }
        found |= new
        grown = bool(new)
    return found


def _new(
    node: onnx_ir.Node,
    reached: set[onnx_ir.Value],
    around: Mapping[onnx_ir.Graph, onnx_ir.Node],
) -> list[onnx_ir.Value]:
    """Mark what a node computes, and all nodes around it, whose result depends on it."""
    found: list[onnx_ir.Value] = []
    at: onnx_ir.Node | None = node
    while at is not None:
        fresh = [output for output in at.outputs if output not in reached]
        # What a body is handed depends on what its node is handed.
        fresh += [v for graph in subgraphs_of(at) for v in graph.inputs if v not in reached]
        reached.update(fresh)
        found += fresh
        at = around.get(at.graph) if isinstance(at.graph, onnx_ir.Graph) else None
    return found


class Liveness:
    """What is read now, so that what an edit leaves without readers can be told from the rest.

    Args:
        model: The model, before the edit.
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        self._model = model
        self._dead = {node for node in all_nodes(model) if not _is_read(node)}
        self._unread = {
            value
            for graph in all_graphs(model)
            for value in graph.initializers.values()
            if not value.uses()
        }

    def remove_newly_dead(self) -> list[tuple[str, str]]:
        """Remove what nobody needs any more; return what it was and its name."""
        gone: list[tuple[str, str]] = []
        for graph in reversed(list(all_graphs(self._model))):
            for node in reversed(list(graph)):
                if node in self._dead or _is_read(node):
                    continue
                for inner in subgraphs_of(node):
                    _release(inner)
                gone.append(("node", node.name or node.op_type))
                graph.remove(node, safe=True)
            for value in list(graph.initializers.values()):
                if _is_needed(value) or value in self._unread:
                    continue
                gone.append(("initializer", value.name or ""))
                del graph.initializers[value.name or ""]
        return gone + _prune_functions(self._model)


def _is_read(node: onnx_ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs)


def _is_needed(value: onnx_ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output() or value.is_graph_input()


def prune(model: onnx_ir.Model, *, unused_inputs: bool = False) -> list[tuple[str, str]]:
    """Remove what no output needs: nodes, stored tensors, functions; return what went by name.

    Trailing optional outputs of nodes that nobody reads lose their names, so that a runtime need
    not compute them. Graph inputs go only if ``unused_inputs`` says so.
    """
    gone: list[tuple[str, str]] = []
    again = True
    while again:
        for graph in reversed(list(all_graphs(model))):
            gone += _prune_nodes(graph)
        # An output that an If need not compute sets its branches' nodes free.
        trimmed = [_trim_if(node) for node in list(all_nodes(model)) if node.op_type == "If"]
        again = True in trimmed
    for graph in all_graphs(model):
        for value in list(graph.initializers.values()):
            if not _is_needed(value):
                gone.append(("initializer", value.name or ""))
                del graph.initializers[value.name or ""]
    gone += _prune_functions(model)
    if unused_inputs:
        unused = [v for v in model.graph.inputs if not v.uses() and not v.is_graph_output()]
        for value in unused:
            model.graph.inputs.remove(value)
            if value.name is not None and value.name in model.graph.initializers:
                del model.graph.initializers[value.name]
            gone.append(("input", value.name or ""))
    return gone


def _prune_nodes(graph: onnx_ir.Graph | onnx_ir.Function) -> list[tuple[str, str]]:
    gone: list[tuple[str, str]] = []
    for node in reversed(list(graph)):
        if _is_read(node):
            _drop_trailing(node)
            continue
        for inner in subgraphs_of(node):
            _release(inner)
        gone.append(("node", node.name or f"{node.op_type}"))
        graph.remove(node, safe=True)
    return gone


def _trim_if(node: onnx_ir.Node) -> bool:
    """Take outputs that nobody reads from an If and its branches; tell whether there were any."""
    needed = [i for i, out in enumerate(node.outputs) if out.uses() or out.is_graph_output()]
    graph = node.graph
    if len(needed) in (0, len(node.outputs)) or graph is None or node.domain not in ("", "ai.onnx"):
        return False
    for branch in subgraphs_of(node):
        kept = [branch.outputs[i] for i in needed]
        branch.outputs.clear()
        branch.outputs.extend(kept)
    attributes = list(node.attributes.values())
    node.attributes.clear()
    new = onnx_ir.Node(
        node.domain, node.op_type, node.inputs, attributes, name=node.name, num_outputs=len(needed)
    )
    new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)
    for index, out in zip(needed, new.outputs, strict=True):
        old = node.outputs[index]
        name, out.type, out.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(out, replace_graph_outputs=True)
        old.name = None
        out.name = name
    graph.remove(node, safe=True)
    return True


def _release(graph: onnx_ir.Graph) -> None:
    """Let go of what the nodes of a graph that is about to vanish read outside of it."""
    for inner in list(nested_graphs(graph)):
        inner.outputs.clear()
        for node in reversed(list(inner)):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)


def _drop_trailing(node: onnx_ir.Node) -> None:
    """Take names from optional outputs at the end that nobody reads, where the operator allows."""
    training = node.attributes.get("training_mode")
    if training is not None and (training.is_ref() or training.as_int()):
        return  # its outputs belong together then
    needed = len(node.outputs)
    while needed > 1:
        output = node.outputs[needed - 1]
        if output.uses() or output.is_graph_output() or not _is_optional(node, needed - 1):
            break
        needed -= 1
    if needed < len(node.outputs):
        node.resize_outputs(needed)


def _is_optional(node: onnx_ir.Node, index: int) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
    except onnx.defs.SchemaError:
        return False
    if index >= len(schema.outputs):
        return False
    return schema.outputs[index].option == onnx.defs.OpSchema.FormalParameterOption.Optional


def _prune_functions(model: onnx_ir.Model) -> list[tuple[str, str]]:
    called: set[onnx_ir.OperatorIdentifier] = set()
    pending = [model.graph]
    while pending:
        for graph in nested_graphs(pending.pop()):
            for node in graph:
                key = node.op_identifier()
                if key in model.functions and key not in called:
                    called.add(key)
                    pending.append(model.functions[key].graph)
    unused = [key for key in model.functions if key not in called]
    for key in unused:
        del model.functions[key]
    return [("function", key[1]) for key in unused]
