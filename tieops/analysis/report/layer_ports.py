"""The inputs and outputs of a layer, with their types and shapes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir

from tieops.analysis.shapes import shaped
from tieops.ir.layer import Layer
from tieops.ir.notation import brief
from tieops.ir.operators.predicates import is_constant_operator
from tieops.ir.walk import all_graphs, nodes_within, subgraphs_of

__all__ = ["Port", "Ports"]

Size = int | str | None
"""A number, the name of a size that varies, or nothing known."""


@dataclass(frozen=True)
class Port:
    """A value at the edge of a layer.

    Args:
        name: The value's name in the graph.
        type: Its dtype and shape as one word, such as ``f32[batch,768]``.
        shape: Its sizes; None if not even their number is known.
    """

    name: str
    type: str
    shape: tuple[Size, ...] | None


class Ports:
    """Tells the ports of layers.

    Args:
        model: The graph.
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        self._shaped = shaped(model)
        self._outside = {value for graph in all_graphs(model) for value in graph.outputs}

    def inputs(self, layer: Layer) -> tuple[Port, ...]:
        """Return what a layer reads that is neither stored nor made within it, in order."""
        stored = {node for slot in layer.slots for read in slot.reads for node in read.nodes}
        own = {*layer.nodes, *stored}
        nodes = list(nodes_within(layer.nodes))
        bodies = {graph for node in nodes for graph in subgraphs_of(node)}
        found: dict[onnx_ir.Value, None] = {}
        weights = {(slot.node, slot.index) for slot in layer.slots}
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is None or (node, index) in weights or _is_stored(value):
                    continue
                if value.producer() not in own and value.graph not in bodies:
                    found[value] = None
        return tuple(self.port(value) for value in found)

    def outputs(self, layer: Layer) -> tuple[Port, ...]:
        """Return what a layer makes that others read, in order."""
        own = set(layer.nodes)
        return tuple(
            self.port(value)
            for node in layer.nodes
            for value in node.outputs
            if value in self._outside or any(user.node not in own for user in value.uses())
        )

    def port(self, value: onnx_ir.Value) -> Port:
        """Return any value of the graph as a port."""
        better = self._shaped.get(value, value)
        sizes = None
        if better.shape is not None:
            sizes = tuple(_size(each) for each in better.shape.dims)
        return Port(value.name or "", brief(value.dtype or better.dtype, sizes), sizes)


def _size(size: int | onnx_ir.SymbolicDim) -> Size:
    # ONNX's inference invents a name for each size that it cannot tell.
    named = size if isinstance(size, int) else size.value
    return None if isinstance(named, str) and named.startswith("unk__") else named


def _is_stored(value: onnx_ir.Value) -> bool:
    producer = value.producer()
    is_given = value.is_graph_input()
    return (value.const_value is not None and not is_given) or (
        producer is not None and is_constant_operator(producer)
    )
