"""Find Ifs with a constant condition, and inline the branch that runs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir

from tieops.ir.dataflow.liveness import Liveness, release
from tieops.ir.edit import NameAuthority, insert_initializer, remove_initializer
from tieops.ir.operators.operands import known_array
from tieops.ir.operators.predicates import is_if
from tieops.ir.walk import all_graphs, all_nodes, nested_graphs

__all__ = ["constant_ifs", "fold_constant_conditions"]

_BRANCHES = ("then_branch", "else_branch")


def constant_ifs(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Node, bool]]:
    """Yield every If whose condition is the same on each run, and what it is.

    A condition is a constant if it is stored, and no caller can override it, or is computed from
    such tensors by Identity, Cast, logic and comparisons.
    """
    for node in all_nodes(model):
        taken = _decision(node)
        if taken is not None:
            yield node, taken


def fold_constant_conditions(model: onnx_ir.Model) -> list[tuple[str, str]]:
    """Put the branch that runs in the place of each If that is decided, in place.

    Returns:
        What went, as pairs of a kind and a name: a branch for each If, and what only it or the
        condition needed.
    """
    liveness = Liveness(model)
    return [*_inline_decided(model), *liveness.remove_newly_dead()]


def _inline_decided(model: onnx_ir.Model) -> list[tuple[str, str]]:
    names: NameAuthority | None = None
    functions = {function.graph for function in model.functions.values()}  # have no initializers
    gone: list[tuple[str, str]] = []
    # Outer Ifs come first: what nests in a branch that goes need not be looked at.
    graphs = list(all_graphs(model))
    while graphs:
        graph = graphs.pop(0)
        pending = list(graph)
        while pending:
            node = pending.pop(0)
            taken = _decision(node)
            if taken is None:
                continue
            names = names or NameAuthority(model)
            gone.append((_BRANCHES[taken], f"of {node.name or f'If_{node.outputs[0].name}'}"))
            as_nodes = graph in functions
            moved = _inline(graph, node, taken=taken, names=names, as_nodes=as_nodes)
            pending = [*moved, *pending]
    return gone


def _decision(node: onnx_ir.Node) -> bool | None:
    """Return the condition of an If if it is a constant; None for any other node."""
    if not is_if(node) or not node.inputs:
        return None
    attributes = [node.attributes.get(name) for name in _BRANCHES]
    if any(each is None or each.is_ref() for each in attributes):
        return None
    condition = known_array(node.inputs[0])
    return bool(condition.item()) if condition is not None and condition.size == 1 else None


def _inline(
    graph: onnx_ir.Graph, node: onnx_ir.Node, *, taken: bool, names: NameAuthority, as_nodes: bool
) -> list[onnx_ir.Node]:
    """Replace an If by the nodes of the branch that runs; return these.

    ``as_nodes`` makes Constant nodes of what the branch stores.
    """
    branches = [node.attributes[name].as_graph() for name in _BRANCHES]
    runs, other = branches if taken else reversed(branches)
    for each in nested_graphs(other):
        for name in (value.name for value in _values(each)):
            names.release(name or "")
    release(other)
    results = list(runs.outputs)
    runs.outputs.clear()
    for value in [value for value in _values(runs) if value.name]:
        names.release(value.name or "")
        value.name = names.take(value.name or "")
    for value in list(runs.initializers.values()):
        remove_initializer(value)
        _store(graph, node, value, as_node=as_nodes)
    moved = list(runs)
    runs.remove(moved)
    graph.insert_before(node, moved)
    moved += _hand_over(graph, node, results)
    graph.remove(node, safe=True)
    return moved


def _store(
    graph: onnx_ir.Graph, before: onnx_ir.Node, value: onnx_ir.Value, *, as_node: bool
) -> None:
    if not as_node:
        insert_initializer(graph, value)
        return
    assert value.const_value is not None
    constant = onnx_ir.node("Constant", [], {"value": value.const_value})
    (output,) = constant.outputs
    name, value.name = value.name, None
    output.name, output.type, output.shape = name, value.type, value.shape
    output.metadata_props.update(value.metadata_props)
    graph.insert_before(before, constant)
    value.replace_all_uses_with(output)


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.initializers.values()
    yield from (output for node in graph for output in node.outputs)


def _hand_over(
    graph: onnx_ir.Graph, node: onnx_ir.Node, results: list[onnx_ir.Value]
) -> list[onnx_ir.Node]:
    """Let the readers of an If read its branch's results; return the nodes that this takes."""
    added: list[onnx_ir.Node] = []
    for old, new in zip(node.outputs, results, strict=True):
        if old.is_graph_output():
            if new.producer() is None or new.is_graph_output() or new.graph is not graph:
                # What is stored, read twice or made elsewhere cannot take the output's name.
                identity = onnx_ir.Node("", "Identity", [new], num_outputs=1)
                graph.insert_before(node, identity)
                added.append(identity)
                new = identity.outputs[0]
            name, old.name = old.name, None
            new.name, new.type, new.shape = name, old.type, old.shape
            new.metadata_props.update(old.metadata_props)
        elif new.shape is None:
            new.type, new.shape = new.type or old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    return added
