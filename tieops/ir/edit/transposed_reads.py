"""Redirect readers of one stored tensor to another one, through a permutation of its axes.

Passes are built from these edits. They change the graph in place, and no values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir

from tieops.ir.edit.name_authority import NameAuthority
from tieops.ir.edit.values import keep_as_output
from tieops.ir.operators.predicates import is_concat, is_view
from tieops.ir.operators.views import transpose_order
from tieops.ir.view import Shape

__all__ = [
    "TransposedInputs",
    "merge_views",
    "permute",
    "substitute",
]


TransposedInputs = dict[tuple[onnx_ir.Value, Shape], onnx_ir.Node]
"""The Transpose that gives a value in some order, where one was found or made."""


def permute(
    keep: onnx_ir.Value,
    perm: Shape,
    names: NameAuthority,
    transposed: TransposedInputs | None = None,
) -> onnx_ir.Value:
    """Return a value that is ``keep`` with its axes in the order ``perm``; adds a node if needed.

    An existing Transpose of ``keep`` with the same order is used again, moved to where every reader
    comes after it.

    Args:
        keep: An initializer.
        perm: Axis ``i`` of the result is axis ``perm[i]`` of ``keep``.
        names: Where a new value gets its name.
        transposed: Where what is found is remembered for the next time, so that the readers of
            ``keep``, who may be many, are gone through once.
    """
    if perm == tuple(range(len(perm))):
        return keep
    graph = keep.graph
    assert isinstance(graph, onnx_ir.Graph), f"{keep.name} belongs to no graph"
    transposed = {} if transposed is None else transposed
    node = transposed.get((keep, perm))
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
    transposed[keep, perm] = node
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
    names: NameAuthority,
    transposed: TransposedInputs | None = None,
) -> None:
    """Make every reader of ``old`` read ``keep`` with its axes in the order ``perm``.

    A reader that transposes what it reads gets the two orders composed, and none at all where they
    cancel. A graph output that was ``old`` keeps its name through an Identity.

    Args:
        old: The value to leave without readers; it keeps its place, removing it is the caller's.
        keep: A value that is visible wherever ``old`` is.
        perm: The order of ``keep``'s axes in which it equals ``old``.
        names: Where new values get their names.
        transposed: Shared by calls for one ``keep``; see ``permute``.
    """
    rank = len(perm)
    transposed = {} if transposed is None else transposed
    for node, _ in old.uses():
        inner = transpose_order(node, rank)
        if inner is None or node.outputs[0].is_graph_output():
            continue
        both = tuple(perm[axis] for axis in inner)
        source = permute(keep, both, names, transposed)
        if source is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(source)
            owner = node.graph
            assert owner is not None
            owner.remove(node, safe=True)
    if not old.uses() and not old.is_graph_output():
        return
    source = permute(keep, perm, names, transposed)
    for node, index in old.uses():
        node.replace_input_with(index, source)
    keep_as_output(old, source, names)


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
            attributes = tuple(
                sorted(
                    (key, str(a.value), a.ref_attr_name or "") for key, a in node.attributes.items()
                )
            )
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
