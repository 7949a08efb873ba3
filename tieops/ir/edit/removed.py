"""Detach removed nodes, so that they no longer count as users of a model's values."""

from __future__ import annotations

import onnx_ir

from tieops.ir.walk import all_graphs

__all__ = ["release_removed"]


def release_removed(model: onnx_ir.Model) -> None:
    """Make the uses of every value those by nodes of the model, and no others.

    Removing a node lets go of what it reads itself, but not of what the nodes in its branches and
    bodies read: those of an If that was folded stay among the uses of the outer values. onnx_ir's
    own passes and onnxscript's optimizer leave them, and whoever walks uses would walk out of the
    model.

    Args:
        model: Changed in place; what it computes, and its bytes in a file, stay as they are.

    Example:
        >>> model = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (bool c, float[2] x) => (float[2] y) {
        ...   y = Relu(x)
        ...   z = If(c) <then_branch = a () => (float[2] p) { p = Relu(x) },
        ...               else_branch = b () => (float[2] q) { q = Neg(x) }>
        ... }''')
        >>> model.graph.remove(model.graph[1], safe=True)
        >>> x = model.graph.inputs[1]
        >>> len(x.uses())
        3
        >>> release_removed(model)
        >>> len(x.uses())
        1
    """
    graphs = list(all_graphs(model))
    present = {node for graph in graphs for node in graph}
    for graph in graphs:
        _release(graph, present)


def _release(graph: onnx_ir.Graph, present: set[onnx_ir.Node]) -> None:
    outputs = (output for node in graph for output in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *outputs):
        for node, index in value.uses():
            if node not in present:
                node.replace_input_with(index, None)
