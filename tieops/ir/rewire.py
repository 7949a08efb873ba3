"""Making readers of one stored tensor read another one, through a permutation of its axes.

These are the edits that every pass is made of. They change the graph in place and no values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir

from tieops.ir.fresh import FreshNames
from tieops.ir.operators.views import is_concat, is_view, transpose_order
from tieops.ir.view import Shape

__all__ = [
    "Turned",
    "drop_unread",
    "hoist",
    "merge_views",
    "permute",
    "substitute",
]


Turned = dict[tuple[onnx_ir.Value, Shape], onnx_ir.Node]
"""The Transpose that gives a value in some order, where one was found or made."""


def permute(
    keep: onnx_ir.Value, perm: Shape, names: FreshNames, turned: Turned | None = None
) -> onnx_ir.Value:
    """Return a value that is ``keep`` with its axes in the order ``perm``; adds a node if needed.

    An existing Transpose of ``keep`` with the same order is used again, moved to where every reader
    comes after it.

    Args:
        keep: An initializer.
        perm: Axis ``i`` of the result is axis ``perm[i]`` of ``keep``.
        names: Where a new value gets its name.
        turned: Where what is found is remembered for the next time, so that the readers of
            ``keep``, who may be many, are gone through once.
    """
    if perm == tuple(range(len(perm))):
        return keep
    graph = keep.graph
    assert isinstance(graph, onnx_ir.Graph), f"{keep.name} belongs to no graph"
    turned = {} if turned is None else turned
    node = turned.get((keep, perm))
    if node is None or node.graph is not graph or node.inputs[0] is not keep:
        node = next((use for use in _transposing(keep, perm) if use.graph is graph), None)
    if node is not None:
        graph.remove(node)
    else:
        node = onnx_ir.node("Transpose", [keep], {"perm": list(perm)})
        out = node.outputs[0]
        out.name = names.take(f"{keep.name}_transposed")
        node.name = f"{out.name}_transpose"
        out.type = keep.type
        if keep.shape is not None:
            out.shape = onnx_ir.Shape([keep.shape[axis] for axis in perm])
    turned[keep, perm] = node
    first = next(iter(graph), None)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)
    return node.outputs[0]


def _transposing(value: onnx_ir.Value, perm: Shape) -> Iterator[onnx_ir.Node]:
    for node, index in value.uses():
        if index == 0 and transpose_order(node, len(perm)) == perm:
            yield node


def substitute(
    old: onnx_ir.Value,
    keep: onnx_ir.Value,
    perm: Shape,
    names: FreshNames,
    turned: Turned | None = None,
) -> None:
    """Make every reader of ``old`` read ``keep`` with its axes in the order ``perm``.

    A reader that transposes what it reads gets the two orders composed, and none at all where they
    cancel. A graph output that was ``old`` keeps its name through an Identity.

    Args:
        old: The value to leave without readers; it keeps its place, removing it is the caller's.
        keep: A value that is visible wherever ``old`` is.
        perm: The order of ``keep``'s axes in which it equals ``old``.
        names: Where new values get their names.
        turned: Shared by calls for one ``keep``; see ``permute``.
    """
    rank = len(perm)
    turned = {} if turned is None else turned
    for node, _ in old.uses():
        inner = transpose_order(node, rank)
        if inner is None or node.outputs[0].is_graph_output():
            continue
        both = tuple(perm[axis] for axis in inner)
        source = permute(keep, both, names, turned)
        if source is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(source)
            owner = node.graph
            assert owner is not None
            owner.remove(node, safe=True)
    if not old.uses() and not old.is_graph_output():
        return
    source = permute(keep, perm, names, turned)
    for node, index in old.uses():
        node.replace_input_with(index, source)
    _keep_outputs(old, source, names)


def _keep_outputs(old: onnx_ir.Value, source: onnx_ir.Value, names: FreshNames) -> None:
    graph = old.graph
    if graph is None or not old.is_graph_output():
        return
    name = old.name
    identity = onnx_ir.node("Identity", [source], name=f"{name}_identity")
    out = identity.outputs[0]
    out.type, out.shape = old.type, old.shape
    positions = [i for i, output in enumerate(graph.outputs) if output is old]
    old.name = names.take(f"{name}_stored")
    out.name = name
    graph.append(identity)
    for position in positions:
        graph.outputs[position] = out


def hoist(model: onnx_ir.Model, value: onnx_ir.Value, names: FreshNames) -> onnx_ir.Value:
    """Move a stored tensor to the main graph, where every subgraph sees it, with its readers.

    It keeps its name, unless that stays behind as the name of a graph's output.

    Args:
        model: The graph.
        value: A tensor that is stored in the main graph or one nested in it, not in a function.
        names: Where new values get their names.
    """
    tensor = value.const_value
    assert tensor is not None
    name = value.name or "weight"
    if not value.is_graph_output():
        names.release(name)
    new = onnx_ir.Value(
        name=names.take(name),
        const_value=tensor,
        type=value.type or onnx_ir.TensorType(tensor.dtype),
        shape=value.shape or onnx_ir.Shape(tensor.shape.numpy()),
    )
    new.metadata_props.update(value.metadata_props)
    model.graph.initializers.add(new)
    # Before IR version 4 every initializer had to be a graph input.
    model.ir_version = max(model.ir_version, 4)
    substitute(value, new, tuple(range(tensor.shape.rank())), names)
    drop_unread([value])
    return new


def merge_views(values: Iterable[onnx_ir.Value]) -> None:
    """Make one node of equal nodes that read the same stored tensors, and so on down their views.

    Args:
        values: Stored tensors whose readers may be equal, since they were made one.
    """
    pending = list(values)
    order = _Order()
    while pending:
        value = pending.pop()
        seen: dict[object, onnx_ir.Node] = {}
        for node in dict.fromkeys(use.node for use in value.uses()):
            if not (is_concat(node) or is_view(node)):
                continue
            attributes = tuple(sorted((key, str(a.value)) for key, a in node.attributes.items()))
            key = (node.op_type, node.graph, tuple(node.inputs), attributes, len(node.outputs))
            first = seen.setdefault(key, node)
            if first is not node and not any(o.is_graph_output() for o in node.outputs):
                seen[key] = left = _merge(*order.sorted(first, node))
                pending += left.outputs


class _Order:
    """Tells which of two nodes comes first; nodes may go meanwhile, and none may come."""

    def __init__(self) -> None:
        self._places: dict[onnx_ir.Node, int] = {}

    def sorted(self, *nodes: onnx_ir.Node) -> list[onnx_ir.Node]:
        graph = nodes[0].graph
        assert graph is not None
        if nodes[0] not in self._places:
            self._places.update((node, place) for place, node in enumerate(graph))
        return sorted(nodes, key=self._places.__getitem__)


def _merge(first: onnx_ir.Node, other: onnx_ir.Node) -> onnx_ir.Node:
    """Make one node of two equal ones, the earlier one first; return the one that is left."""
    if any(output.is_graph_output() for output in other.outputs):
        return first
    graph = first.graph
    assert graph is not None
    for mine, theirs in zip(first.outputs, other.outputs, strict=True):
        theirs.replace_all_uses_with(mine)
    graph.remove(other, safe=True)
    return first


def drop_unread(values: Iterable[onnx_ir.Value]) -> list[str]:
    """Remove stored values that nobody reads from their graphs; return the names that went."""
    gone: list[str] = []
    for value in values:
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        graph, producer = value.graph, value.producer()
        if graph is None:
            continue
        if producer is not None:
            graph.remove(producer, safe=True)
        elif value.name is not None and value.name in graph.initializers:
            del graph.initializers[value.name]
        gone.append(value.name or "")
    return gone
