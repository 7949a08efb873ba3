"""Add, rename, move and remove stored tensors of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.edit.name_authority import NameAuthority
from tieops.ir.edit.transposed_reads import substitute

__all__ = [
    "add_initializer",
    "drop_unread",
    "insert_initializer",
    "move_to_main_graph",
    "remove_initializer",
    "rename_initializer",
]


def add_initializer(
    model: onnx_ir.Model, name: str, data: np.ndarray[Any, Any] | onnx_ir.TensorProtocol
) -> onnx_ir.Value:
    """Store a tensor as a new initializer of the main graph; an array that is a view stays one.

    Args:
        model: The graph.
        name: Its name; no other value may have it.
        data: Its values, or a tensor that nobody else holds: it is renamed with its value.
    """
    tensor = onnx_ir.Tensor(data, name=name) if isinstance(data, np.ndarray) else data
    value = onnx_ir.Value(
        name=name,
        const_value=tensor,
        type=onnx_ir.TensorType(tensor.dtype),
        shape=onnx_ir.Shape(tensor.shape.numpy()),
    )
    model.graph.initializers.add(value)
    # Before IR version 4 every initializer had to be a graph input.
    model.ir_version = max(model.ir_version, 4)
    return value


def insert_initializer(graph: onnx_ir.Graph, value: onnx_ir.Value) -> None:
    """Store a value that has a tensor in a graph; it keeps its name, which must be free there."""
    graph.register_initializer(value)


def rename_initializer(value: onnx_ir.Value, name: str, names: NameAuthority) -> None:
    """Store a tensor under another name, or the next one that is free, as the last of its graph."""
    graph = value.graph
    assert isinstance(graph, onnx_ir.Graph)
    remove_initializer(value)
    names.release(value.name or "")
    value.name = names.claim(name)
    graph.initializers.add(value)


def remove_initializer(value: onnx_ir.Value) -> None:
    """Remove a stored tensor from its graph; nodes that read it go on reading the value."""
    graph = value.graph
    if isinstance(graph, onnx_ir.Graph) and value.name is not None:
        graph.initializers.pop(value.name, None)


def move_to_main_graph(
    model: onnx_ir.Model, value: onnx_ir.Value, names: NameAuthority
) -> onnx_ir.Value:
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
    new = add_initializer(model, names.take(name), tensor)
    new.type, new.shape = value.type or new.type, value.shape or new.shape
    new.metadata_props.update(value.metadata_props)
    substitute(value, new, tuple(range(tensor.shape.rank())), names)
    drop_unread([value])
    return new


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
        else:
            remove_initializer(value)
        gone.append(value.name or "")
    return gone
