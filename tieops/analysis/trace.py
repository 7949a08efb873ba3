"""Trace each stored tensor to its readers, through views and computations on weights alone.

The walk goes forward from the tensor. Captures into If/Loop/Scan bodies need no special treatment:
in onnx_ir, the inner node's input is the outer value. A function is entered at each of its calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir

from tieops.analysis.computed_weights import Computations, ComputedUse, owns_outright, uses_itself
from tieops.analysis.shapes import shaped
from tieops.ir.functions.calls import call_paths, function_graphs
from tieops.ir.learnables.rules import Learnables
from tieops.ir.metadata.keys import was_computed_with
from tieops.ir.metadata.torch_kinds import Kind, word_of
from tieops.ir.operators.roles import is_learnable_role, kind_of
from tieops.ir.operators.views import ViewTransfer
from tieops.ir.parameter import Entry, Parameter
from tieops.ir.view import Computed, View
from tieops.ir.walk import stored_values

__all__ = ["EscapingUse", "Trace", "Use", "trace"]

Path = tuple[onnx_ir.Node, ...]


@dataclass(frozen=True, eq=False)
class Use:
    """One parameter, read at one input of a node that does more than move it.

    Where a weight is computed from stored tensors alone, it is read at the node that uses the
    result with something else, and the view ends in what is computed.
    """

    parameter: Parameter
    view: View
    nodes: Path
    node: onnx_ir.Node
    index: int
    path: Path
    entry: Entry | None = None


@dataclass(frozen=True, eq=False)
class EscapingUse:
    """A parameter that is, through a view, an output of the main graph."""

    parameter: Parameter
    view: View
    nodes: Path
    output: onnx_ir.Value


@dataclass(frozen=True)
class Trace:
    """All that is read of all stored tensors."""

    uses: Mapping[onnx_ir.Value, Sequence[Use]]
    """For each stored value its readers, in no particular order; empty where nobody reads it."""
    escaping: Sequence[EscapingUse]

    @cached_property
    def learnables(self) -> Learnables:
        """What of all that is stored counts as learnable."""
        return Learnables(self.uses)


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
    uses: dict[onnx_ir.Value, list[Use]] = {}
    escaping: list[EscapingUse] = []
    computations, shapes = Computations(model), _Shapes(model)
    for value in stored_values(model):
        parameter = Parameter(value)
        found = uses.setdefault(value, [])
        if value.type is not None and value.dtype == onnx_ir.DataType.STRING:
            continue
        may_compute = _may_be_computed_with(parameter)
        start = View(parameter.shape)
        function = functions.get(value.graph) if value.graph is not None else None
        contexts: Iterable[Path] = (
            [()] if function is None else paths.get(function.identifier(), [])
        )
        stack = [_At(value, start, (), path) for path in contexts]
        used, computers = list[Use](), list[Use]()
        while stack:
            at = stack.pop()
            if at.value in outputs and not at.path and not at.view.computed:
                escaping.append(EscapingUse(parameter, at.view, at.nodes, at.value))
            stack += _returns(at, model)
            computing: list[Use] = []
            for node, index in at.value.uses():
                if node.op_identifier() in model.functions:
                    stack.append(_entered(at, node, index, model))
                    continue
                onward = None if at.view.computed else transfer.through(node, index, at.view)
                if onward is None:
                    here = Use(parameter, at.view, at.nodes, node, index, at.path, at.entry)
                    computes = may_compute and not uses_itself(node, index)
                    if computes and computations.is_fixed(node, at.path):
                        computing.append(here)
                    else:
                        (used if at.view.computed else found).append(here)
                    continue
                nodes = (*at.nodes, node)
                stack += [_At(output, seen, nodes, at.path, at.entry) for output, seen in onward]
            if computing:
                ends, onward_at = _used(at, computing, computations, shapes, model)
                used += ends
                stack += onward_at
                computers += [] if at.view.computed else computing
        found += used if _is_weight(parameter, used) else computers
    return Trace(uses, escaping)


class _Shapes:
    """Tells static shapes: what the graph says, else what inference finds, which runs once."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self._model = model

    @cached_property
    def _inferred(self) -> Mapping[onnx_ir.Value, onnx_ir.Value]:
        return shaped(self._model)

    def of(self, value: onnx_ir.Value) -> tuple[int, ...] | None:
        shape = value.shape
        if shape is None or not shape.is_static():
            better = self._inferred.get(value)
            shape = None if better is None else better.shape
        if shape is None or not shape.is_static():
            return None
        return tuple(int(size) for size in shape.numpy())


def _may_be_computed_with(parameter: Parameter) -> bool:
    """Return whether what is computed from a tensor may be a weight: it is not an operand."""
    if _is_torch_parameter(parameter):
        return True
    return parameter.dtype.is_floating_point() and parameter.elements > 1


def _is_torch_parameter(parameter: Parameter) -> bool:
    return word_of(parameter.value) is Kind.PARAMETER


def _is_weight(parameter: Parameter, used: Sequence[Use]) -> bool:
    """Return whether a layer uses what is computed from a tensor as its weight.

    Elsewhere the tensor arrives at who computes: the angles of a rotary embedding are a constant
    that many layers multiply by what is computed from them. What was untied stays what it was.
    """
    if _is_torch_parameter(parameter) or was_computed_with(parameter.value):
        return bool(used)
    return any(is_learnable_role(each.node, each.index) for each in used)


def _used(
    at: _At,
    computing: Sequence[Use],
    computations: Computations,
    shapes: _Shapes,
    model: onnx_ir.Model,
) -> tuple[list[Use], list[_At]]:
    """Follow what is computed from a view to who uses it.

    Returns:
        Where it arrives, and where it goes on into functions or out of one.
    """
    parameter = computing[0].parameter
    products = [each for each in computing if kind_of(each.node) is not None]
    own = [
        each
        for each in products
        if owns_outright(
            each.node, parameter.names, computations.uses(at.value, [each.node], at.path)
        )
    ]
    rest = [each for each in computing if each not in own]
    uses = computations.uses(at.value, [each.node for each in rest], at.path) if rest else []
    found, onward = own, list[_At]()
    for use in uses:
        nodes = (*at.nodes, *use.nodes)
        there = _At(use.value, _computed(at.view, use, shapes), nodes, at.path, at.entry)
        if use.node is None:
            onward += _returns(there, model)
        elif use.node.op_identifier() in model.functions:
            onward.append(_entered(there, use.node, use.index, model))
        else:
            found.append(Use(parameter, there.view, nodes, use.node, use.index, at.path, at.entry))
    return found, onward


def _computed(view: View, use: ComputedUse, shapes: _Shapes) -> View:
    # Where nothing says a shape (a result of somebody's own operator), it is taken to stay.
    known = shapes.of(use.value)
    sizes = view.shape if known is None else known
    before = View(view.source, view.steps[:-1]) if view.computed else view
    return before.then(Computed((*view.computed, *use.nodes), sizes))


def _entered(at: _At, call: onnx_ir.Node, index: int, model: onnx_ir.Model) -> _At:
    """Return where a value arrives in the function that it is handed to."""
    callee = model.functions[call.op_identifier()]
    entry = at.entry or (Entry(index, at.view, at.nodes) if not at.path else None)
    return _At(callee.inputs[index], at.view, at.nodes, (*at.path, call), entry)


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
