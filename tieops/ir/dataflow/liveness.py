"""Liveness: find the values that outputs depend on, and remove the rest."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import onnx
import onnx_ir

from tieops.ir.dataflow.dead_arguments import find_dead_arguments
from tieops.ir.dataflow.regions import RegionInterface
from tieops.ir.edit import remove_initializer
from tieops.ir.walk import all_graphs, all_nodes, nested_graphs, subgraphs_of

__all__ = [
    "Liveness",
    "dependent_values",
    "eliminate_dead_code",
    "is_all_live",
    "live_nodes",
    "live_values",
    "release",
]


class Liveness:
    """What is read now, to find afterwards what an edit has left without readers.

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
                    release(inner)
                gone.append(("node", node.name or node.op_type))
                graph.remove(node, safe=True)
            for value in list(graph.initializers.values()):
                if _is_needed(value) or value in self._unread:
                    continue
                gone.append(("initializer", value.name or ""))
                remove_initializer(value)
        return gone + _prune_functions(self._model)


def _is_read(node: onnx_ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs)


def _is_needed(value: onnx_ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output() or value.is_graph_input()


def live_values(
    outputs: Iterable[onnx_ir.Value],
    interfaces: Iterable[RegionInterface],
    *,
    cuts: Container[onnx_ir.Value] = (),
) -> set[onnx_ir.Value]:
    """Return the values that some outputs are made from, in all graphs.

    A state of a loop that feeds nothing but its own next value is not among them, nor is an input
    of a function, or what is given for it in a call, if no needed output of the function is made
    from it.

    Args:
        outputs: The outputs.
        interfaces: Of every node of the model.
        cuts: Values that are going to be given: what makes them is not needed for them.
    """
    flows = [(interface.node, *flow) for interface in interfaces for flow in interface.flows()]
    into: dict[onnx_ir.Value, list[int]] = {}
    for index, (_, _, targets) in enumerate(flows):
        for target in targets:
            into.setdefault(target, []).append(index)
    needed: set[onnx_ir.Value] = set()
    # One function may have calls that somebody needs and others: these feed its inputs for nobody.
    waiting: dict[onnx_ir.Node, list[int]] = {}
    awake: set[onnx_ir.Node] = set()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in needed:
            continue
        needed.add(value)
        if value in cuts:
            continue
        indices = into.pop(value, [])
        producer = value.producer()
        if producer is not None and producer not in awake:
            awake.add(producer)
            indices += waiting.pop(producer, [])
        for index in indices:
            node, sources, targets = flows[index]
            if node in awake:
                pending += [source for source in sources if source not in needed]
                flows[index] = (node, (), targets)
            else:
                waiting.setdefault(node, []).append(index)
    return needed


def dependent_values(
    values: Iterable[onnx_ir.Value], interfaces: Iterable[RegionInterface]
) -> set[onnx_ir.Value]:
    """Return the values that are made from some values, these included, in all graphs.

    Args:
        values: The values.
        interfaces: Of every node of the model.
    """
    onward: dict[onnx_ir.Value, list[Sequence[onnx_ir.Value]]] = {}
    for interface in interfaces:
        for sources, targets in interface.flows():
            for source in sources:
                onward.setdefault(source, []).append(targets)
    found: set[onnx_ir.Value] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        if value not in found:
            found.add(value)
            pending += [each for targets in onward.get(value, ()) for each in targets]
    return found


def live_nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """Yield the nodes that the model's outputs are made from, in subgraphs and functions too."""
    interfaces = _interfaces(model)
    live = live_values(model.graph.outputs, interfaces)
    yield from (each.node for each in interfaces if _makes(each.node, live))


def eliminate_dead_code(
    model: onnx_ir.Model, *, unused_inputs: bool = False
) -> list[tuple[str, str]]:
    """Remove what no output needs; return what went, as pairs of a kind and a name.

    Nodes go, stored tensors, functions; of the Ifs, Loops, Scans and functions that stay, the
    outputs that nobody reads, the states that only feed themselves and the inputs that nobody
    reads; optional outputs of other nodes, at the end. Graph inputs go only if ``unused_inputs``
    says so.
    """
    interfaces = _interfaces(model)
    needed = live_values(model.graph.outputs, interfaces)
    dead = find_dead_arguments(interfaces, needed)
    gone = [name for each in dead for name in each.gone()]
    for each in dead:
        each.disconnect()
    gone += _remove_nodes(model, needed)
    for each in dead:
        each.rebuild()
    gone += [name for node in list(all_nodes(model)) for name in _drop_trailing(node)]
    for graph in all_graphs(model):
        for value in list(graph.initializers.values()):
            if not _is_needed(value):
                gone.append(("initializer", value.name or ""))
                remove_initializer(value)
    if unused_inputs:
        unused = [v for v in model.graph.inputs if not v.uses() and not v.is_graph_output()]
        for value in unused:
            model.graph.inputs.remove(value)
            remove_initializer(value)
            gone.append(("input", value.name or ""))
    return gone


def is_all_live(model: onnx_ir.Model) -> bool:
    """Return whether no node, no stored tensor and no function is dead, but for their arguments.

    Args:
        model: The model; left alone. Looking costs less than a copy.
    """
    interfaces = _interfaces(model)
    needed = live_values(model.graph.outputs, interfaces)
    called = {interface.node.op_identifier() for interface in interfaces}
    return (
        all(_makes(interface.node, needed) for interface in interfaces)
        and all(
            value in needed or value.is_graph_input()
            for graph in all_graphs(model)
            for value in graph.initializers.values()
        )
        and called.issuperset(model.functions)
    )


def _interfaces(model: onnx_ir.Model) -> list[RegionInterface]:
    return [RegionInterface.of(node, model.functions) for node in all_nodes(model)]


def _remove_nodes(model: onnx_ir.Model, needed: set[onnx_ir.Value]) -> list[tuple[str, str]]:
    """Remove the nodes that compute nothing that is needed, and functions that nobody calls."""
    gone: list[tuple[str, str]] = []
    # Inner graphs first, since their nodes read what outer ones compute.
    for graph in reversed(list(_needed_graphs(model, needed))):
        dead = [node for node in reversed(list(graph)) if not _makes(node, needed)]
        for node in dead:
            for inner in subgraphs_of(node):
                release(inner)
        gone += [("node", node.name or node.op_type) for node in dead]
        graph.remove(dead, safe=True)
    return gone + _prune_functions(model)


def _makes(node: onnx_ir.Node, needed: set[onnx_ir.Value]) -> bool:
    return any(output in needed for output in node.outputs)


def _needed_graphs(model: onnx_ir.Model, needed: set[onnx_ir.Value]) -> Iterator[onnx_ir.Graph]:
    """Yield the graphs of which something is needed, outer before inner."""
    pending = [model.graph]
    pending += [
        function.graph
        for function in model.functions.values()
        if any(output in needed for output in function.outputs)
    ]
    while pending:
        graph = pending.pop()
        yield graph
        pending += [inner for node in graph if _makes(node, needed) for inner in subgraphs_of(node)]


def release(graph: onnx_ir.Graph) -> None:
    """Let go of what the nodes of a graph that is about to vanish read outside of it."""
    for inner in list(nested_graphs(graph)):
        inner.outputs.clear()
        for node in reversed(list(inner)):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)


def _drop_trailing(node: onnx_ir.Node) -> list[tuple[str, str]]:
    """Take optional outputs at the end that nobody reads, where the operator allows; return them.

    A runtime need not compute them then.
    """
    training = node.attributes.get("training_mode")
    if training is not None and (training.is_ref() or training.as_int()):
        return []  # its outputs belong together then
    count = len(node.outputs)
    while count > 1:
        output = node.outputs[count - 1]
        if output.uses() or output.is_graph_output() or not _is_optional(node, count - 1):
            break
        count -= 1
    # An output that the node leaves out has no name.
    names = [output.name for output in node.outputs[count:] if output.name]
    if count < len(node.outputs):
        node.resize_outputs(count)
    return [("output", f"{name} of {node.op_type}") for name in names]


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
