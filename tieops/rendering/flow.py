"""The data flow of a picture: layers in order, their nested bodies, and who reads whom.

The walk expands function calls, so that a layer of a function appears once per call, as it does in
``model.layers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir

from tieops.analysis.repeats import module_of
from tieops.ir.dataflow.regions import RegionInterface
from tieops.ir.layer import Layer
from tieops.ir.notation import brief
from tieops.ir.operators.identity import operator_name
from tieops.ir.walk import is_constant
from tieops.model import TiedModel

__all__ = ["Bundle", "Flow", "Item", "Leaf", "flow_of", "layers_of", "leaves_of"]

MAX_NEST = 40
"""Bodies and calls nested deeper than this are drawn as one operator."""

Path = tuple[onnx_ir.Node, ...]


@dataclass(eq=False)
class Leaf:
    """What is drawn as one box: a layer, or an input or output of the model."""

    form: str
    """``layer``, ``input`` or ``output``."""
    name: str
    kind: str
    layer: Layer | None = None
    takes: list[str] = field(default_factory=list[str])
    gives: list[str] = field(default_factory=list[str])

    @property
    def is_learnable(self) -> bool:
        """Whether it reads a parameter."""
        return self.layer is not None and self.layer.is_learnable

    @property
    def module(self) -> tuple[str, ...]:
        """The path of the module it comes from; empty if it is not known."""
        return module_of(self.layer) if self.layer is not None else ()


@dataclass(eq=False)
class Bundle:
    """Items that are drawn as one box until it is unfolded; next to each other in the order."""

    form: str
    """``repeat``, ``block``, ``operators``, ``bodies``, ``body``, ``call`` or ``part``."""
    title: str
    items: list[Item]


Item = Leaf | Bundle


@dataclass
class Flow:
    """The layers in order, and an edge from each layer to each that reads a result of it."""

    items: list[Item]
    edges: dict[tuple[Leaf, Leaf], str]
    """The dtype and shape of what flows."""


def leaves_of(items: Sequence[Item]) -> list[Leaf]:
    """Return the leaves below some items, in order."""
    found: list[Leaf] = []
    stack = list(reversed(items))
    while stack:
        item = stack.pop()
        if isinstance(item, Leaf):
            found.append(item)
        else:
            stack.extend(reversed(item.items))
    return found


def layers_of(items: Sequence[Item]) -> list[Layer]:
    """Return the layers below some items, in order."""
    return [leaf.layer for leaf in leaves_of(items) if leaf.layer is not None]


def flow_of(model: TiedModel) -> Flow:
    """Return what flows where in a model.

    Args:
        model: The model. Nothing of its weights is read.
    """
    return _Walk(model).run()


class _Walk:
    def __init__(self, model: TiedModel) -> None:
        self._model = model
        self._layers: dict[tuple[onnx_ir.Node, Path], Layer] = {}
        for layer in model.layers:
            path = layer.slots[0].path if layer.slots else ()
            for node in layer.nodes:
                self._layers[node, path] = layer
        # What moves a parameter on its way to an output is part of a view, as on its way to a slot.
        self._views = {node for each in model.trace.escaping for node in each.nodes}
        self._leaves: dict[tuple[Layer, Path], Leaf] = {}
        self._sources: dict[tuple[onnx_ir.Value, Path], tuple[Leaf, ...]] = {}
        self._edges: dict[tuple[Leaf, Leaf], str] = {}

    def run(self) -> Flow:
        graph = self._model.ir.graph
        items: list[Item] = []
        for value in self._model.inputs:
            leaf = Leaf("input", value.name or "", brief(value.dtype, value.shape))
            self._sources[value, ()] = (leaf,)
            items.append(leaf)
        items += self._items(graph, (), 0)
        for value in graph.outputs:
            leaf = Leaf("output", value.name or "", brief(value.dtype, value.shape))
            self._connect(value, (), leaf)
            items.append(leaf)
        return Flow(items, self._edges)

    def _items(self, graph: onnx_ir.Graph | onnx_ir.Function, path: Path, depth: int) -> list[Item]:
        items: list[Item] = []
        for node in graph:
            function = self._model.ir.functions.get(node.op_identifier())
            if is_constant(node):
                continue
            if function is not None and depth < MAX_NEST:
                items += self._call(node, function, path, depth)
                continue
            layer = self._layers.get((node, path)) or self._layers.get((node, ()))
            moves = layer is None or (not layer.slots and node in self._views)
            if moves and function is None:
                continue  # part of a view
            items += self._place(node, layer, path, depth)
        return items

    def _place(self, node: onnx_ir.Node, layer: Layer | None, path: Path, depth: int) -> list[Item]:
        layer = layer or Layer(node.name or node.op_type, operator_name(node), (node,), ())
        leaf = self._leaves.get((layer, path))
        fresh: list[Item] = []
        if leaf is None:
            # A plain operator of a function is one layer of the model, however often it is called.
            call = f"{path[-1].name or path[-1].op_type}/" if path and not layer.slots else ""
            leaf = self._leaves[layer, path] = Leaf("layer", call + layer.name, layer.kind, layer)
            fresh.append(leaf)
        bodies = self._bodies(node, path, depth)
        for body, graph in bodies:
            for value in graph.outputs:
                self._connect(value, path, leaf)
            fresh.insert(len(fresh) - 1, body)
        for value in node.inputs:
            if value is not None:
                self._connect(value, path, leaf)
        for value in node.outputs:
            self._sources[value, path] = (leaf,)
            if all(use.node not in layer.nodes for use in value.uses()):
                leaf.gives.append(brief(value.dtype, value.shape))
        return [Bundle("bodies", layer.name, fresh)] if bodies else fresh

    def _bodies(
        self, node: onnx_ir.Node, path: Path, depth: int
    ) -> list[tuple[Bundle, onnx_ir.Graph]]:
        found: list[tuple[Bundle, onnx_ir.Graph]] = []
        if depth >= MAX_NEST:
            return found
        for sources, targets in RegionInterface.of(node, {}).flows():
            leaves = {
                leaf: None for each in sources for leaf in self._sources.get((each, path), ())
            }
            for inside in targets:
                if inside.is_graph_input():
                    self._sources[inside, path] = tuple(leaves)
        for name, attribute in node.attributes.items():
            if attribute.is_ref() or attribute.type != onnx_ir.AttributeType.GRAPH:
                continue
            graph = attribute.as_graph()
            items = self._items(graph, path, depth + 1)
            if items:
                found.append(
                    (Bundle("body", f"{name} of {node.name or node.op_type}", items), graph)
                )
        return found

    def _call(
        self, node: onnx_ir.Node, function: onnx_ir.Function, path: Path, depth: int
    ) -> list[Item]:
        inner = (*path, node)
        for inside, outside in zip(function.inputs, node.inputs, strict=False):
            if outside is not None:
                self._sources[inside, inner] = self._sources.get((outside, path), ())
        items = self._items(function, inner, depth + 1)
        for outside, inside in zip(node.outputs, function.outputs, strict=False):
            self._sources[outside, path] = self._sources.get((inside, inner), ())
        return [Bundle("call", node.name or node.op_type, items)] if items else []

    def _connect(self, value: onnx_ir.Value, path: Path, reader: Leaf) -> None:
        for source in self._sources.get((value, path), ()):
            if source is not reader:
                what = brief(value.dtype, value.shape)
                if (source, reader) not in self._edges:
                    reader.takes.append(what)
                self._edges[source, reader] = what
