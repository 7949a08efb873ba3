"""Dead-argument elimination for If, Loop, Scan and functions."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir

from tieops.ir.dataflow.regions import (
    SCAN_INPUT_ATTRIBUTES,
    SCAN_OUTPUT_ATTRIBUTES,
    RegionArgument,
    RegionInterface,
)
from tieops.ir.operators.predicates import is_scan
from tieops.ir.walk import all_nodes

__all__ = ["DeadArguments", "find_dead_arguments", "with_dead_outputs"]

T = TypeVar("T")


@dataclass(frozen=True)
class DeadArguments:
    """Arguments that come off some bodies and the nodes around them.

    ``disconnect`` comes before the nodes that nobody needs are removed, ``rebuild`` after it.
    """

    bodies: tuple[onnx_ir.Graph, ...]
    nodes: tuple[onnx_ir.Node, ...]
    """All calls of a function, or the one node that has the bodies."""
    arguments: tuple[RegionArgument, ...]
    kept: tuple[RegionArgument, ...]

    def gone(self) -> Iterator[tuple[str, str]]:
        """Yield the kind and the name of what comes off."""
        first = self.bodies[0]
        for argument in self.arguments:
            if argument in self.kept:
                continue
            if argument.body_input is not None:
                name = first.inputs[argument.body_input].name
            else:
                name = _picked(first.outputs, [argument.body_output])[0].name
            yield argument.kind, f"{name} of {self.nodes[0].name or self.nodes[0].op_type}"

    def disconnect(self) -> None:
        """Let go of the values that come in, and of those that the bodies compute."""
        for body in self.bodies:
            outputs = _picked(body.outputs, [argument.body_output for argument in self.kept])
            body.outputs.clear()
            body.outputs.extend(outputs)
        staying = {argument.input for argument in self.kept}
        for node in self.nodes:
            for index in range(len(node.inputs)):
                if index not in staying:
                    node.replace_input_with(index, None)

    def rebuild(self) -> None:
        """Take the dead inputs and outputs, which nothing reads any more, from bodies and nodes."""
        for body in self.bodies:
            inputs = _picked(body.inputs, [argument.body_input for argument in self.kept])
            if len(inputs) < len(body.inputs):
                body.inputs.clear()
                body.inputs.extend(inputs)
        for node in self.nodes:
            self._rebuild_node(node)

    def _rebuild_node(self, node: onnx_ir.Node) -> None:
        graph = node.graph
        assert graph is not None
        old = _picked(node.outputs, [argument.output for argument in self.kept])
        inputs = _picked(node.inputs, [argument.input for argument in self.kept])
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
        """Return a node's attributes; a Scan has some that tell about each of its arguments."""
        if not is_scan(node):
            return list(node.attributes.values())
        changed: dict[str, onnx_ir.Attr] = {}
        for kind, names in (("input", SCAN_INPUT_ATTRIBUTES), ("output", SCAN_OUTPUT_ATTRIBUTES)):
            stays = [argument in self.kept for argument in self.arguments if argument.kind == kind]
            if kind == "input":
                changed["num_scan_inputs"] = onnx_ir.AttrInt64("num_scan_inputs", sum(stays))
            for name in names:
                if name in node.attributes:
                    listed = itertools.compress(node.attributes[name].as_ints(), stays)
                    changed[name] = onnx_ir.AttrInt64s(name, list(listed))
        return [changed.get(attr.name, attr) for attr in node.attributes.values()]


def find_dead_arguments(
    interfaces: Collection[RegionInterface], needed: Collection[onnx_ir.Value]
) -> list[DeadArguments]:
    """Return what can come off the nodes that are needed.

    Args:
        interfaces: Of every node of the model.
        needed: What the model's outputs are made from.
    """
    groups: dict[tuple[onnx_ir.Graph, ...], list[RegionInterface]] = {}
    frozen: set[onnx_ir.Graph] = set()
    for interface in interfaces:
        if any(output in needed for output in interface.node.outputs):
            groups.setdefault(interface.bodies, []).append(interface)
            if interface.arguments is None:
                frozen.update(interface.bodies)
    found: list[DeadArguments] = []
    for bodies, group in groups.items():
        arguments = group[0].arguments
        if arguments is None or not frozen.isdisjoint(bodies):
            continue
        kept = tuple(
            argument
            for argument in arguments
            if argument.is_fixed
            or any(t in needed for each in group for t in each.targets(argument))
        )
        if len(kept) < len(arguments):
            found.append(DeadArguments(bodies, tuple(each.node for each in group), arguments, kept))
    return found


def with_dead_outputs(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Node, str]]:
    """Yield the nodes with bodies that keep outputs nobody reads, and why they do."""
    for node in all_nodes(model):
        interface = RegionInterface.of(node, model.functions)
        unread = [v for v in node.outputs if v.name and not v.uses() and not v.is_graph_output()]
        fixed = interface.arguments is None or all(
            argument.is_fixed for argument in interface.arguments
        )
        if not (interface.bodies and unread and fixed):
            continue
        if interface.arguments is not None:
            yield node, "it stands in for an operator that a runtime may have itself"
        elif is_scan(node) and len(node.inputs) == len(interface.bodies[0].inputs) + 1:
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
