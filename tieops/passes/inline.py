"""Inlining for passes: what stays one tensor, and the calls around a head."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from tieops.errors import PreconditionError, TieopsError, UnsupportedModelError
from tieops.ir.edit import NameAuthority
from tieops.ir.functions.calls import Path, call_behind, calls_of
from tieops.ir.functions.inlining import Inliner
from tieops.ir.notation import printable
from tieops.model import TiedModel
from tieops.passes.base import Change

__all__ = ["inline_all", "inline_behind", "inline_path", "inliner_of"]

_BECAUSE = "inlined, so that its size can change"


def inliner_of(
    tied: TiedModel, model: onnx_ir.Model, names: NameAuthority, *, runtime_functions: bool = False
) -> Inliner:
    """Return what inlines calls of a model: parameters stay tied, and layers keep their names."""
    held = [parameter.value for parameter in tied.parameters]
    layers = {(slot.path, slot.node): slot.layer for slot in tied.slots}
    return Inliner(model, names, held, layers, runtime_functions=runtime_functions)


def inline_all(model: onnx_ir.Model) -> None:
    """Inline all calls of all functions, in place; what a body stores is stored once.

    Raises:
        UnsupportedModelError: If a function cannot be inlined.
    """
    inliner = inliner_of(TiedModel(model), model, NameAuthority(model), runtime_functions=True)
    while calls := calls_of(model, model.graph):
        _check(inliner, calls, UnsupportedModelError, "export the model without functions")
        inliner.inline(calls)


def inline_path(
    inliner: Inliner, model: onnx_ir.Model, path: Path, node: onnx_ir.Node
) -> tuple[onnx_ir.Node, list[Change]]:
    """Inline the calls that lead to a node of a function, in place; other calls stay calls.

    Args:
        inliner: Inlines calls of the model.
        model: The graph.
        path: The calls, outermost first.
        node: A node of the function that the last of them calls.

    Returns:
        The node as the main graph has it now, and what was done.

    Raises:
        PreconditionError: If a call or the node lies in the body of an If, Loop or Scan, or a
            function cannot be inlined; nothing has changed then.
    """
    graph = model.graph
    for inner in (*path, node):
        if inner.graph is not graph:
            raise PreconditionError(
                f"{printable(inner.name or inner.op_type)} lies in a function and in the body of "
                "an If, Loop or Scan",
                {"calls": " → ".join(each.op_type for each in path)},
                "a branch cannot change its size alone: name a head outside of it",
            )
        if inner is not node:
            graph = model.functions[inner.op_identifier()].graph
    changes: list[Change] = []
    left, now = path, node
    _check(inliner, path)
    while left:
        changes += _inline(inliner, left[:1])
        left, now = inliner.now(path, node)
    return now, changes


def inline_behind(inliner: Inliner, model: onnx_ir.Model, node: onnx_ir.Node) -> list[Change]:
    """Inline all calls of the main graph that come after a node on the way to an output.

    Raises:
        PreconditionError: If one of the functions cannot be inlined.
    """
    changes: list[Change] = []
    while (call := call_behind(model, node)) is not None:
        _check(inliner, [call])
        changes += _inline(inliner, [call])
    return changes


def _check(
    inliner: Inliner,
    calls: Sequence[onnx_ir.Node],
    error: type[TieopsError] = PreconditionError,
    fix: str = "name a head outside of it, or export the model without functions",
) -> None:
    """Refuse calls that cannot be inlined."""
    why = inliner.obstacle(calls)
    if why:
        what = f"the function {printable(calls[0].op_type)} cannot be inlined"
        raise error(what, {"why": why}, fix)


def _inline(inliner: Inliner, calls: Sequence[onnx_ir.Node]) -> list[Change]:
    return [Change(f"call of {call.op_type}", _BECAUSE) for call in inliner.inline(calls)]
