"""Captures of nested graphs: the outer values that they read, and the order this requires."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import onnx_ir

from tieops.ir.walk import subgraphs_of

__all__ = ["branch_captures", "is_in_order"]


def branch_captures(
    model: onnx_ir.Model,
) -> Iterator[tuple[list[onnx_ir.Graph], dict[onnx_ir.Graph, set[str]]]]:
    """Yield the graphs of each node that has several, and the outer names that each graph reads."""
    captured: dict[onnx_ir.Graph, set[str]] = {}
    several: list[list[onnx_ir.Graph]] = []
    stack: list[tuple[onnx_ir.Graph, ...]] = [
        (graph,) for graph in (model.graph, *(each.graph for each in model.functions.values()))
    ]
    while stack:
        within = stack.pop()
        for node in within[-1]:
            for value in node.inputs if len(within) > 1 else ():
                for graph in reversed(within[1:]):
                    if value is None or value.graph is graph:
                        break
                    captured[graph].add(value.name or "")
            inner = list(subgraphs_of(node))
            captured.update((graph, set()) for graph in inner)
            stack += [(*within, graph) for graph in inner]
            if len(inner) > 1:
                several.append(inner)
    for branches in several:
        yield branches, captured


def is_in_order(graph: onnx_ir.Graph) -> bool:
    """Return whether each node comes after what it and the graphs within it read."""
    done: set[onnx_ir.Node | None] = {None}
    stack: list[tuple[onnx_ir.Node | None, Iterator[onnx_ir.Node]]] = [(None, iter(graph))]
    while stack:
        owner, nodes = stack[-1]
        node = next(nodes, None)
        if node is None:
            stack.pop()
            done.add(owner)
            continue
        if any(value is not None and value.producer() not in done for value in node.inputs):
            return False
        # What is within a node cannot read what the node gives.
        stack.append((node, chain.from_iterable(subgraphs_of(node))))
    return True
