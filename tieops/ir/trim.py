"""Trimming Ifs, Loops, Scans and functions: ports that carry what nobody needs come off."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir

from tieops.ir.lanes import SCAN_INPUT_ATTRIBUTES, SCAN_OUTPUT_ATTRIBUTES, Lane, Wiring
from tieops.ir.scopes import all_nodes

__all__ = ["Trim", "find_trims", "untrimmed"]

T = TypeVar("T")


@dataclass(frozen=True)
class Trim:
    """Lanes that come off some bodies and the nodes around them.

    ``disconnect`` comes before the nodes that nobody needs are removed, ``rebuild`` after it.
    """

    bodies: tuple[onnx_ir.Graph, ...]
    nodes: tuple[onnx_ir.Node, ...]
    """All calls of a function, or the one node that has the bodies."""
    lanes: tuple[Lane, ...]
    kept: tuple[Lane, ...]

    def gone(self) -> Iterator[tuple[str, str]]:
        """Yield the kind and the name of what comes off."""
        first = self.bodies[0]
        for lane in self.lanes:
            if lane in self.kept:
                continue
            if lane.body_input is not None:
                name = first.inputs[lane.body_input].name
            else:
                name = _picked(first.outputs, [lane.body_output])[0].name
            yield lane.kind, f"{name} of {self.nodes[0].name or self.nodes[0].op_type}"

    def disconnect(self) -> None:
        """Let go of the values that come in, and of those that the bodies compute."""
        for body in self.bodies:
            outputs = _picked(body.outputs, [lane.body_output for lane in self.kept])
            body.outputs.clear()
            body.outputs.extend(outputs)
        staying = {lane.input for lane in self.kept}
        for node in self.nodes:
            for index in range(len(node.inputs)):
                if index not in staying:
                    node.replace_input_with(index, None)

    def rebuild(self) -> None:
        """Take the ports off, which nothing reads any more, from bodies and nodes."""
        for body in self.bodies:
            inputs = _picked(body.inputs, [lane.body_input for lane in self.kept])
            if len(inputs) < len(body.inputs):
                body.inputs.clear()
                body.inputs.extend(inputs)
        for node in self.nodes:
            self._rebuild_node(node)

    def _rebuild_node(self, node: onnx_ir.Node) -> None:
        graph = node.graph
        assert graph is not None
        old = _picked(node.outputs, [lane.output for lane in self.kept])
        inputs = _picked(node.inputs, [lane.input for lane in self.kept])
        attributes = self._attributes(node)
        node.attributes.clear()
        new = onnx_ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes,
            overload=node.overload,
            outputs=[_copied(value) for value in old],
            version=node.version,
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        graph.insert_before(node, new)
        for before, after in zip(old, new.outputs, strict=True):
            before.replace_all_uses_with(after, replace_graph_outputs=True)
        graph.remove(node, safe=True)

    def _attributes(self, node: onnx_ir.Node) -> list[onnx_ir.Attr]:
        """Return a node's attributes; a Scan has some that tell about each of its lanes."""
        if node.op_type != "Scan" or node.domain not in ("", "ai.onnx"):
            return list(node.attributes.values())
        changed: dict[str, onnx_ir.Attr] = {}
        for kind, names in (("input", SCAN_INPUT_ATTRIBUTES), ("output", SCAN_OUTPUT_ATTRIBUTES)):
            stays = [lane in self.kept for lane in self.lanes if lane.kind == kind]
            if kind == "input":
                changed["num_scan_inputs"] = onnx_ir.AttrInt64("num_scan_inputs", sum(stays))
            for name in names:
                if name in node.attributes:
                    listed = itertools.compress(node.attributes[name].as_ints(), stays)
                    changed[name] = onnx_ir.AttrInt64s(name, list(listed))
        return [changed.get(attr.name, attr) for attr in node.attributes.values()]


def find_trims(wirings: Collection[Wiring], needed: Collection[onnx_ir.Value]) -> list[Trim]:
    """Return what can come off the nodes that are needed.

    Args:
        wirings: Of every node of the model.
        needed: What the model's outputs are made from.
    """
    groups: dict[tuple[onnx_ir.Graph, ...], list[Wiring]] = {}
    frozen: set[onnx_ir.Graph] = set()
    for wiring in wirings:
        if any(output in needed for output in wiring.node.outputs):
            groups.setdefault(wiring.bodies, []).append(wiring)
            if wiring.lanes is None:
                frozen.update(wiring.bodies)
    found: list[Trim] = []
    for bodies, group in groups.items():
        lanes = group[0].lanes
        if lanes is None or not frozen.isdisjoint(bodies):
            continue
        kept = tuple(
            lane
            for lane in lanes
            if lane.is_fixed or any(t in needed for each in group for t in each.targets(lane))
        )
        if len(kept) < len(lanes):
            found.append(Trim(bodies, tuple(each.node for each in group), lanes, kept))
    return found


def untrimmed(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Node, str]]:
    """Yield the nodes with bodies that keep outputs nobody reads, and why they do."""
    for node in all_nodes(model):
        wiring = Wiring.of(node, model.functions)
        unread = [v for v in node.outputs if v.name and not v.uses() and not v.is_graph_output()]
        fixed = wiring.lanes is None or all(lane.is_fixed for lane in wiring.lanes)
        if not (wiring.bodies and unread and fixed):
            continue
        if wiring.lanes is not None:
            yield node, "it stands in for an operator that a runtime may have itself"
        elif node.op_type == "Scan" and len(node.inputs) == len(wiring.bodies[0].inputs) + 1:
            yield node, "it is a Scan of opset 8, with a batch axis and sequence lengths"
        else:
            yield node, "how they are made from its bodies' outputs is not known"


def _picked(values: Sequence[T], indices: Sequence[int | None]) -> list[T]:
    """Return the values at some positions; those past the end were left out."""
    return [values[i] for i in indices if i is not None and i < len(values)]


def _copied(value: onnx_ir.Value) -> onnx_ir.Value:
    return onnx_ir.Value(
        name=value.name,
        type=value.type,
        shape=value.shape,
        doc_string=value.doc_string,
        const_value=value.const_value,
        metadata_props=dict(value.metadata_props),
    )
