"""Find the calls that lead into the bodies of functions."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from tieops.errors import UnsupportedModelError
from tieops.ir.walk import layer_name_of, nested_graphs

__all__ = [
    "Path",
    "bound_attribute",
    "call_behind",
    "call_paths",
    "call_title",
    "calls_of",
    "function_graphs",
]

Path = tuple[onnx_ir.Node, ...]
"""Calls that lead into a body, outermost first."""
Functions = Mapping[onnx_ir.OperatorIdentifier, onnx_ir.Function]
MAX_CALLS = 100_000
"""How many function calls a model may make once all are written out."""


def function_graphs(model: onnx_ir.Model) -> dict[onnx_ir.Graph, onnx_ir.Function]:
    """Return the graphs of all functions, those nested in them too, each with its function."""
    return {
        graph: function
        for function in model.functions.values()
        for graph in nested_graphs(function.graph)
    }


def call_paths(model: onnx_ir.Model) -> Mapping[onnx_ir.OperatorIdentifier, list[Path]]:
    """Return, for every function, each chain of calls that reaches it from the main graph.

    Raises:
        UnsupportedModelError: If functions call each other in a circle, or the calls written out
            are more than ``MAX_CALLS`` (a few bytes of functions can spell out 2**40 nodes).
    """
    paths: dict[onnx_ir.OperatorIdentifier, list[Path]] = {}
    if not model.functions:
        return paths
    calls: dict[object, list[onnx_ir.Node]] = {
        owner: calls_of(model, graph)
        for owner, graph in [(None, model.graph)]
        + [(key, function.graph) for key, function in model.functions.items()]
    }
    stack: list[Path] = [(node,) for node in reversed(calls[None])]
    made = 0
    while stack:
        path = stack.pop()
        callee = path[-1].op_identifier()
        if any(node.op_identifier() == callee for node in path[:-1]):
            raise UnsupportedModelError(
                f"function {callee[1]} calls itself",
                {"calls": " → ".join(node.op_type for node in path)},
                "ONNX functions must not be recursive: export the model again",
            )
        made += 1
        if made > MAX_CALLS:
            raise UnsupportedModelError(
                f"the model makes more than {MAX_CALLS} function calls once all are inlined",
                {"functions": len(model.functions)},
                "inline or simplify its functions first",
            )
        paths.setdefault(callee, []).append(path)
        stack.extend((*path, node) for node in reversed(calls[callee]))
    return paths


def calls_of(model: onnx_ir.Model, graph: onnx_ir.Graph) -> list[onnx_ir.Node]:
    """Return the calls of functions in a graph and in those nested in it."""
    return [n for g in nested_graphs(graph) for n in g if n.op_identifier() in model.functions]


def call_behind(model: onnx_ir.Model, node: onnx_ir.Node) -> onnx_ir.Node | None:
    """Return a call of the same graph that reads what is made of a node's outputs, if there is one.

    No other call is in between.
    """
    seen, pending = {node}, [node]
    while pending:
        for reader in [use.node for out in pending.pop().outputs for use in out.uses()]:
            if reader in seen or reader.graph is not node.graph:
                continue
            if reader.op_identifier() in model.functions:
                return reader
            seen.add(reader)
            pending.append(reader)
    return None


def bound_attribute(
    node: onnx_ir.Node, name: str, path: Path, functions: Functions
) -> onnx_ir.Attr | None:
    """Return an attribute of a node as the calls that lead to it bind it.

    A reference takes what the call gives, else the default of the function, else it is left out.

    Args:
        node: The node.
        name: The attribute's name.
        path: The calls that lead to the node.
        functions: The model's.

    Returns:
        None where the attribute is not given, also by a reference that no call on the path binds.
    """
    found = node.attributes.get(name)
    for call in reversed(path):
        if found is None or not found.is_ref():
            break
        outer = found.ref_attr_name or ""
        found = call.attributes.get(outer)
        if found is None:
            found = functions[call.op_identifier()].attributes.get(outer)
        if found is not None and found.type == onnx_ir.AttributeType.UNDEFINED:
            return None  # declared without a default
    return None if found is None or found.is_ref() else found


def call_title(call: onnx_ir.Node) -> str:
    """Return what layers within a call are called after."""
    return layer_name_of(call) or call.name or call.op_type
