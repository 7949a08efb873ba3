"""Calls of modules: which nodes of a module belong to one call of it.

A module that computes with its own vector may read it many times in one call, and it may be called
many times. ``from_torch`` records the calls (``tieops.call``). In a file there is evidence of them:

- torch's dynamo exporter writes within which modules a node lies, and through which lines of the
  program it came to be. A call has ended where a node lies outside the module, or where a caller
  has gone to another line.
- The older exporter gives every call of a module a path of its own ("/norm", "/norm_1").

Without such evidence all reads are one call.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir

from tieops.ir.walk import Scope, SourceLine, nodes_within, scope_of, source_lines

__all__ = ["ModuleCalls", "record_call"]

CALL = "tieops.call"
"""On a node: which call of its module it belongs to, counted from 0."""


def record_call(node: onnx_ir.Node, number: int) -> None:
    """Record which call of its module a node belongs to; the first is 0."""
    node.metadata_props[CALL] = str(number)


def _recorded(node: onnx_ir.Node) -> int | None:
    text = node.metadata_props.get(CALL, "")
    return int(text) if text.isdecimal() and len(text) < 10 else None


class ModuleCalls:
    """Reports which call of its module a node belongs to.

    Args:
        model: The model, whose calls are counted by graph.
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        self._numbers: dict[onnx_ir.Node, int] = {}
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            self._count(graph)

    def of(self, node: onnx_ir.Node) -> int | None:
        """Return the number of the call that a node belongs to; None where nothing tells it.

        The layers of torch's own are none of those that compute with a vector again and again:
        what one of them reads once more is its next call.
        """
        return self._numbers.get(node)

    def _count(self, graph: onnx_ir.Graph) -> None:
        begun = Counter[str]()
        calls: dict[str, _Call] = {}
        for node in nodes_within(list(graph)):
            scope, number = scope_of(node), _recorded(node)
            if number is not None:
                self._numbers[node] = number
            elif scope is None:
                continue
            elif not scope.around or not scope.fqn:  # the model itself is called once
                self._numbers[node] = 0
            else:
                calls = _continued(calls, scope, source_lines(node), begun)
                if not scope.is_torch:
                    self._numbers[node] = calls[scope.fqn].number


@dataclass(frozen=True)
class _Call:
    """A call that has not ended: its number, and the lines of those who made it."""

    number: int
    callers: tuple[SourceLine, ...] | None


def _continued(
    calls: dict[str, _Call], scope: Scope, lines: tuple[SourceLine, ...], begun: Counter[str]
) -> dict[str, _Call]:
    """Return the calls that a node lies within, those of before where they have not ended."""
    found: dict[str, _Call] = {}
    depth, is_new = 0, False
    for module in scope.around:
        # The frames of torch's own modules are not written.
        depth += not module.is_torch
        callers = _callers(lines, depth)
        last = calls.get(module.fqn)
        moved = last is not None and None not in (callers, last.callers) and callers != last.callers
        # A call within a new call is new, too.
        if last is None or moved or is_new:
            is_new = True
            last = _Call(begun[module.fqn], callers)
            begun[module.fqn] += 1
        found[module.fqn] = last
    return found


def _callers(lines: tuple[SourceLine, ...], depth: int) -> tuple[SourceLine, ...] | None:
    """Return the lines at which the callers of a module stand; None if they are not all written.

    A ``forward`` that calls another one of its class is counted twice, so that fewer callers are
    compared than there are.
    """
    ends = [place for place, line in enumerate(lines, 1) if line.function == "forward"]
    if len(ends) < depth:
        return None
    return lines[: ends[depth - 2]] if depth > 1 else ()
