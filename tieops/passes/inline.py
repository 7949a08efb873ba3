"""Inlining one call of a function: what its body holds can be changed then for this call alone."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir
import onnx_ir.passes.common as common_passes

from tieops.errors import PreconditionError
from tieops.ir.brief import printable
from tieops.ir.fresh import FreshNames
from tieops.ir.scopes import nested_graphs
from tieops.passes.base import Change
from tieops.passes.ways import Ways
from tieops.tied_model import TiedModel

__all__ = ["inline_behind", "inline_path"]

_MARK = "tieops.inlining"


def inline_path(
    model: onnx_ir.Model, path: Sequence[onnx_ir.Node], node: onnx_ir.Node
) -> tuple[onnx_ir.Node, list[Change]]:
    """Inline the calls that lead to a node of a function, in place; other calls stay calls.

    Args:
        model: The graph.
        path: The calls, outermost first.
        node: A node of the function that the last of them calls.

    Returns:
        The node as the main graph has it now, and what was done.

    Raises:
        PreconditionError: If a call or the node lies in the body of an If, Loop or Scan, or the
            function cannot be inlined. Calls further out may have been then.
    """
    changes: list[Change] = []
    call = path[0]
    for inner in (*path[1:], node):
        function = model.functions[call.op_identifier()]
        if call.graph is not model.graph or inner.graph is not function.graph:
            name = printable(inner.name or inner.op_type)
            raise PreconditionError(
                f"{name} lies in a function and in the body of an If, Loop or Scan",
                {"calls": " → ".join(each.op_type for each in path)},
                "a branch cannot change its size alone: name a head outside of it",
            )
        inner.metadata_props[_MARK] = ""
        try:
            changes.append(_inline(model, call))
        finally:
            del inner.metadata_props[_MARK]
        call = next(each for each in model.graph if _MARK in each.metadata_props)
        del call.metadata_props[_MARK]
    return call, changes


def inline_behind(model: onnx_ir.Model, node: onnx_ir.Node) -> list[Change]:
    """Inline all calls of the main graph that come after a node on the way to an output.

    Raises:
        PreconditionError: If one of the functions cannot be inlined.
    """
    changes: list[Change] = []
    while (call := _call_behind(model, node)) is not None:
        changes.append(_inline(model, call))
    return changes


def _call_behind(model: onnx_ir.Model, node: onnx_ir.Node) -> onnx_ir.Node | None:
    seen, pending = {node}, [node]
    while pending:
        for reader in [use.node for out in pending.pop().outputs for use in out.uses()]:
            if reader in seen or reader.graph is not model.graph:
                continue
            if reader.op_identifier() in model.functions:
                return reader
            seen.add(reader)
            pending.append(reader)
    return None


def _inline(model: onnx_ir.Model, call: onnx_ir.Node) -> Change:
    """Put a copy of a function's body in the place of one of its calls."""
    function = model.functions[call.op_identifier()]
    names = FreshNames(model)
    ways = Ways(model, names)
    if ways.has_other_calls(call):
        # What the body stores stays one tensor for all of its calls.
        held = [p.value for p in TiedModel(model).parameters if p.value.graph is function.graph]
        for value in held:
            if ways.can_lift(value):
                ways.lift(value)
    alone = function.clone()
    alone.name = names.take(f"{function.name}_alone")
    for graph in nested_graphs(alone.graph):
        for node in graph:
            node.name = names.take(node.name or f"{node.op_type}_{node.outputs[0].name}")
            for output in node.outputs:
                output.name = names.take(output.name or node.op_type)
    model.functions[alone.identifier()] = alone
    name, call.op_type = call.op_type, alone.name
    try:
        common_passes.InlinePass(criteria=lambda each: each is alone)(model)
    except ValueError as error:
        del model.functions[alone.identifier()]
        call.op_type = name
        raise PreconditionError(
            f"the function {printable(function.name)} cannot be inlined",
            {"why": error},
            "name a head outside of it, or export the model without functions",
        ) from error
    return Change(f"call of {name}", "inlined, so that its size can change")
