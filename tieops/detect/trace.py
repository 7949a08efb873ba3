"""Following each stored tensor through the nodes that only move its elements, to who reads it.

The walk goes forward from the tensor. Captures into If/Loop/Scan bodies need nothing of their own:
in onnx_ir the inner node's input is the outer value. A function is entered at each of its calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir

from tieops.ir.functions.calls import call_paths, function_graphs
from tieops.ir.learnables import Learnables
from tieops.ir.operators.views import ViewTransfer
from tieops.ir.parameter import Entry, Parameter
from tieops.ir.scopes import stored_values
from tieops.ir.view import View

__all__ = ["Arrival", "Exposure", "Trace", "trace"]

Path = tuple[onnx_ir.Node, ...]


@dataclass(frozen=True, eq=False)
class Arrival:
    """One parameter arriving at one input of a node that does more than move it."""

    parameter: Parameter
    view: View
    nodes: Path
    node: onnx_ir.Node
    index: int
    path: Path
    entry: Entry | None = None


@dataclass(frozen=True, eq=False)
class Exposure:
    """A parameter that is, through a view, an output of the main graph."""

    parameter: Parameter
    view: View
    nodes: Path
    output: onnx_ir.Value


@dataclass(frozen=True)
class Trace:
    """All that is read of all stored tensors."""

    arrivals: Mapping[onnx_ir.Value, Sequence[Arrival]]
    """For each stored value its readers, in no particular order; empty where nobody reads it."""
    exposures: Sequence[Exposure]

    @cached_property
    def learnables(self) -> Learnables:
        """What of all that is stored counts as learnable."""
        return Learnables(self.arrivals)


@dataclass(frozen=True)
class _At:
    value: onnx_ir.Value
    view: View
    nodes: Path
    path: Path
    entry: Entry | None = None


def trace(model: onnx_ir.Model) -> Trace:
    """Trace every stored tensor of a model to its readers.

    Raises:
        UnsupportedModelError: If the model's functions are recursive or too many calls.
    """
    paths = call_paths(model)
    functions = function_graphs(model)
    outputs = set(model.graph.outputs)
    transfer = ViewTransfer()
    arrivals: dict[onnx_ir.Value, list[Arrival]] = {}
    exposures: list[Exposure] = []
    for value in stored_values(model):
        parameter = Parameter(value)
        found = arrivals.setdefault(value, [])
        if value.type is not None and value.dtype == onnx_ir.DataType.STRING:
            continue
        start = View(parameter.shape)
        function = functions.get(value.graph) if value.graph is not None else None
        contexts: Iterable[Path] = (
            [()] if function is None else paths.get(function.identifier(), [])
        )
        stack = [_At(value, start, (), path) for path in contexts]
        while stack:
            at = stack.pop()
            if at.value in outputs and not at.path:
                exposures.append(Exposure(parameter, at.view, at.nodes, at.value))
            stack += _returns(at, model)
            for node, index in at.value.uses():
                callee = model.functions.get(node.op_identifier())
                if callee is not None:
                    entry = at.entry or (Entry(index, at.view, at.nodes) if not at.path else None)
                    path = (*at.path, node)
                    stack.append(_At(callee.inputs[index], at.view, at.nodes, path, entry))
                    continue
                onward = transfer.through(node, index, at.view)
                if onward is None:
                    found.append(
                        Arrival(parameter, at.view, at.nodes, node, index, at.path, at.entry)
                    )
                    continue
                nodes = (*at.nodes, node)
                stack += [_At(output, seen, nodes, at.path, at.entry) for output, seen in onward]
    return Trace(arrivals, exposures)


def _returns(at: _At, model: onnx_ir.Model) -> list[_At]:
    # A function whose output is a view of what it was given passes it on to its caller.
    if not at.path:
        return []
    call = at.path[-1]
    outputs = model.functions[call.op_identifier()].outputs
    return [
        _At(
            call.outputs[i], at.view, at.nodes, at.path[:-1], at.entry if len(at.path) > 1 else None
        )
        for i, output in enumerate(outputs)
        if output is at.value and i < len(call.outputs)
    ]
