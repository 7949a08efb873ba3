"""Walk the nodes that a model's outputs depend on, from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir

from tieops.ir.functions.calls import Path
from tieops.ir.walk import subgraphs_of

__all__ = ["nodes_before_outputs"]


def nodes_before_outputs(
    model: onnx_ir.Model,
    is_end: Callable[[Path, onnx_ir.Node], bool],
    outputs: Iterable[onnx_ir.Value] | None = None,
) -> Iterator[tuple[Path, onnx_ir.Node]]:
    """Yield the nodes that the outputs are made from, each once, with the calls that lead to it.

    Calls are entered and not yielded; the bodies of an If, Loop or Scan are entered too.

    Args:
        model: The model.
        is_end: Whether what comes before a node is not wanted; the node itself is yielded.
        outputs: Some of the model's outputs; all by default.
    """
    functions = model.functions
    seen: set[tuple[Path, onnx_ir.Value]] = set()
    reached: set[tuple[Path, onnx_ir.Node]] = set()
    wanted = model.graph.outputs if outputs is None else outputs
    pending: list[tuple[Path, onnx_ir.Value | None]] = [((), value) for value in wanted]
    while pending:
        path, value = pending.pop()
        if value is None or (path, value) in seen:
            continue
        seen.add((path, value))
        node = value.producer()
        if node is None:
            if path and value in functions[path[-1].op_identifier()].inputs:
                place = functions[path[-1].op_identifier()].inputs.index(value)
                pending += [(path[:-1], given) for given in path[-1].inputs[place : place + 1]]
            continue
        if node.op_identifier() in functions:
            inside = functions[node.op_identifier()].outputs[node.outputs.index(value)]
            pending.append(((*path, node), inside))
            continue
        if (path, node) in reached:
            continue
        reached.add((path, node))
        yield path, node
        if not is_end(path, node):
            pending += [(path, given) for given in node.inputs]
            pending += [(path, out) for inner in subgraphs_of(node) for out in inner.outputs]
