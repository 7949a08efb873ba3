"""Copy chains of nodes so that they read other values."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from tieops.ir.edit.initializers import add_initializer
from tieops.ir.edit.name_authority import NameAuthority
from tieops.ir.metadata.keys import origin_of, set_origin
from tieops.ir.operators.predicates import is_dequantization

__all__ = ["copy_node", "copy_nodes"]


def copy_nodes(
    model: onnx_ir.Model,
    chains: Sequence[Sequence[onnx_ir.Node]],
    replaced: dict[onnx_ir.Value, onnx_ir.Value],
    names: NameAuthority,
) -> dict[onnx_ir.Value, onnx_ir.Value]:
    """Copy chains of nodes so that they read other values; each node once, behind its original.

    Args:
        model: The model that the nodes are part of.
        chains: Nodes in the order of reading.
        replaced: Which values stand for which; grows by the copies' outputs.
        names: Where copies get their names.

    Returns:
        ``replaced``.
    """
    done: set[onnx_ir.Node] = set()
    pending = [node for chain in chains for node in chain]
    while pending:
        # A Concat is copied when all of its parts that are copied have been.
        ready = [n for n in pending if not _waits(n, pending)] or pending[:1]
        for node in dict.fromkeys(ready):
            if node not in done:
                _copy_behind(model, node, replaced, names)
                done.add(node)
        pending = [node for node in pending if node not in done]
    return replaced


def _waits(node: onnx_ir.Node, pending: Sequence[onnx_ir.Node]) -> bool:
    before = {value.producer() for value in node.inputs if value is not None}
    return any(other in before for other in pending if other is not node)


def copy_node(
    node: onnx_ir.Node, inputs: Sequence[onnx_ir.Value | None], names: NameAuthority
) -> onnx_ir.Node:
    """Return a copy of a node that reads other values, in no graph yet."""
    copy = onnx_ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        name=names.take(f"{node.name or node.op_type}_copy"),
        num_outputs=len(node.outputs),
    )
    copy.metadata_props.update(node.metadata_props)
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name = names.take(f"{old.name or node.op_type}_copy")
        new.type, new.shape, new.const_value = old.type, old.shape, old.const_value
    return copy


def _copy_behind(
    model: onnx_ir.Model,
    node: onnx_ir.Node,
    replaced: dict[onnx_ir.Value, onnx_ir.Value],
    names: NameAuthority,
) -> None:
    inputs = [None if value is None else replaced.get(value, value) for value in node.inputs]
    if is_dequantization(node):
        # Scale and zero point belong to the quantized values: they are not shared either.
        inputs[1:] = [_own_operand(model, value, names) for value in inputs[1:]]
    copy = copy_node(node, inputs, names)
    replaced.update(zip(node.outputs, copy.outputs, strict=True))
    graph = node.graph
    assert graph is not None
    graph.insert_after(node, copy)


def _own_operand(
    model: onnx_ir.Model, value: onnx_ir.Value | None, names: NameAuthority
) -> onnx_ir.Value | None:
    if value is None or value.const_value is None or value.graph is not model.graph:
        return value
    origin = origin_of(value) or value.name or ""
    set_origin(value, origin)
    own = add_initializer(model, names.take(f"{value.name}_copy"), value.const_value.numpy())
    set_origin(own, origin)
    return own
