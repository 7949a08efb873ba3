"""Values that are computed from stored ones by moving elements only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.operators.predicates import is_concat, only_moves
from tieops.ir.operators.views import moved_arrays

__all__ = ["NotStaticError", "chain_of", "data_inputs", "evaluate"]

Array = np.ndarray[Any, Any]


class NotStaticError(Exception):
    """Says why a value cannot be computed now; never leaves the importer."""


def data_inputs(node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """Return the inputs whose elements a node of a chain moves."""
    inputs = node.inputs if is_concat(node) else node.inputs[:1]
    return tuple(value for value in inputs if value is not None)


def chain_of(value: onnx_ir.Value) -> tuple[onnx_ir.Node, ...]:
    """Return the nodes that compute a value, each after those that it reads."""
    order: dict[onnx_ir.Node, None] = {}
    stack = [(value, False)]
    while stack:
        current, is_ready = stack.pop()
        node = current.producer()
        if node is None or node in order:
            continue
        if is_ready:
            order[node] = None
            continue
        if not only_moves(node):
            raise NotStaticError(f"it is computed by {node.op_type} {node.name}")
        stack.append((current, True))
        stack += [(each, False) for each in reversed(data_inputs(node))]
    return tuple(order)


def evaluate(
    chain: Iterable[onnx_ir.Node], arrays: dict[onnx_ir.Value, Array]
) -> dict[onnx_ir.Value, Array]:
    """Return what a chain makes of arrays, by value; in the chain's order."""
    found = dict(arrays)
    for node in chain:
        moved = moved_arrays(node, [found[value] for value in data_inputs(node)])
        if len(moved) < len(node.outputs):
            raise NotStaticError(f"{node.op_type} {node.name} is not static")
        found.update(moved)
    return found
