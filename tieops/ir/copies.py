"""Stored tensors made anew: names that are free, values that are views, functions of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.parameter import Read
from tieops.ir.scopes import is_constant

__all__ = ["call_own_copy", "remove_dead_views", "store"]


def store(
    model: onnx_ir.Model, name: str, array: np.ndarray[Any, Any], like: Read
) -> onnx_ir.Value:
    """Store values as a new initializer of the main graph; an array that is a view stays one."""
    tensor = onnx_ir.Tensor(
        array,
        dtype=like.parameter.dtype,
        shape=onnx_ir.Shape(array.shape),
        name=name,
    )
    value = onnx_ir.Value(
        name=name,
        const_value=tensor,
        type=onnx_ir.TensorType(tensor.dtype),
        shape=onnx_ir.Shape(array.shape),
    )
    model.graph.initializers.add(value)
    # Before IR version 4 every initializer had to be a graph input.
    model.ir_version = max(model.ir_version, 4)
    return value


def remove_dead_views(nodes: Sequence[onnx_ir.Node]) -> None:
    """Remove the nodes of a view, the last first, as far as nobody reads them any more."""
    for node in reversed(nodes):
        if node.graph is None:
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            return
        node.graph.remove(node, safe=True)


def call_own_copy(
    model: onnx_ir.Model, path: Sequence[onnx_ir.Node], stored: onnx_ir.Value
) -> onnx_ir.Value:
    """Give one chain of calls functions of its own; return its copy of a Constant's value.

    Args:
        model: The model; gets the new functions.
        path: The calls, outermost first. The outermost one is changed in place.
        stored: The output of a Constant node in the function that the last call reaches.
    """
    call = path[0]
    for depth in range(len(path)):
        old = model.functions[path[depth].op_identifier()]
        nodes = list(old.all_nodes())
        new = old.clone()
        names = {(key[0], key[1]) for key in model.functions}
        counts = itertools.count(1)
        new.name = next(
            name for i in counts if (old.domain, name := f"{old.name}_{i}") not in names
        )
        model.functions[new.identifier()] = new
        call.op_type, call.overload = new.name, new.overload
        copies = dict(zip(nodes, new.all_nodes(), strict=True))
        if depth + 1 < len(path):
            call = copies[path[depth + 1]]
            continue
        producer = stored.producer()
        assert producer is not None
        copy = copies[producer]
        tensor = copy.attributes["value"].as_tensor()
        fresh = onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        copy.attributes["value"] = onnx_ir.AttrTensor("value", fresh)
        copy.outputs[0].const_value = None
        is_constant(copy)
        return copy.outputs[0]
    raise AssertionError("a path has at least one call")
