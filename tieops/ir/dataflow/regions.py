"""Region interface: how values enter the bodies of a node, go around its loops, and leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.ir.operators.identity import is_runtime_domain, is_standard
from tieops.ir.operators.predicates import is_if, is_loop, is_scan
from tieops.ir.walk import subgraphs_of

__all__ = [
    "SCAN_INPUT_ATTRIBUTES",
    "SCAN_OUTPUT_ATTRIBUTES",
    "Flow",
    "Functions",
    "RegionArgument",
    "RegionInterface",
]

Functions = Mapping[onnx_ir.OperatorIdentifier, onnx_ir.Function]
Flow = tuple[Sequence[onnx_ir.Value], Sequence[onnx_ir.Value]]

SCAN_INPUT_ATTRIBUTES = ("scan_input_axes", "scan_input_directions")
"""Attributes of a Scan with one entry for each of its scanned inputs."""
SCAN_OUTPUT_ATTRIBUTES = ("scan_output_axes", "scan_output_directions")
"""Attributes of a Scan with one entry for each of its stacked outputs."""


@dataclass(frozen=True)
class RegionArgument:
    """The positions that carry one value through a node and its bodies: they go together or stay.

    A loop-carried value has all four: the node's input is its first value, the body's input its
    value in one round, the body's output its next value, and the node's output its last.
    """

    input: int | None = None
    body_input: int | None = None
    body_output: int | None = None
    output: int | None = None
    is_fixed: bool = False
    """Whether the node cannot do without it, whoever reads it: a condition, a trip count."""
    is_passed_on: bool = True
    """Whether what goes in comes out: for its trip count a body is given the iteration number."""

    @property
    def kind(self) -> str:
        """``"state"``, ``"input"`` or ``"output"``."""
        if self.output is None:
            return "input"
        return "output" if self.input is None else "state"


@dataclass(frozen=True)
class RegionInterface:
    """A node, its bodies (subgraphs, or the function that it calls) and what goes through them.

    ``arguments`` is None where a node has no bodies, or what its bodies' inputs and outputs mean is
    not known: then everything that goes in may end up in everything that comes out.
    """

    node: onnx_ir.Node
    bodies: tuple[onnx_ir.Graph, ...]
    arguments: tuple[RegionArgument, ...] | None

    @classmethod
    def of(cls, node: onnx_ir.Node, functions: Functions) -> RegionInterface:
        """Return the interface of a node; malformed nodes have no known arguments."""
        inner = tuple(subgraphs_of(node))
        function = functions.get(node.op_identifier())
        if function is not None:
            arguments = None if inner else _call_arguments(node, function)
            return cls(node, (*inner, function.graph), arguments)
        if not is_standard(node):
            return cls(node, inner, None)
        if is_if(node) and len(inner) == 2:
            return cls(node, inner, _if_arguments(node, inner))
        if is_loop(node) and len(inner) == 1:
            return cls(node, inner, _loop_arguments(node, inner[0]))
        if is_scan(node) and len(inner) == 1:
            return cls(node, inner, _scan_arguments(node, inner[0]))
        return cls(node, inner, None)

    def sources(self, argument: RegionArgument) -> list[onnx_ir.Value]:
        """Return what an argument's value comes from: the node's input, the bodies' outputs."""
        found = _at(self.node.inputs, argument.input)
        return found + [v for body in self.bodies for v in _at(body.outputs, argument.body_output)]

    def targets(self, argument: RegionArgument) -> list[onnx_ir.Value]:
        """Return what an argument's value goes to: the bodies' inputs, the node's output."""
        found = [v for body in self.bodies for v in _at(body.inputs, argument.body_input)]
        return found + _at(self.node.outputs, argument.output)

    def flows(self) -> Iterator[Flow]:
        """Yield pairs of values: each of the second is made from all of the first."""
        if self.arguments is None:
            yield self._everything()
            return
        for argument in self.arguments:
            yield self.sources(argument), self.targets(argument)
        # A condition or a trip count decides whether, and how often, a body runs, although none of
        # its numbers flows into the outputs.
        # What controls a node decides about all that comes out of it.
        control = [
            v for argument in self.arguments if argument.is_fixed for v in self.sources(argument)
        ]
        if control:
            yield control, self.node.outputs

    def passed_on(self) -> Iterator[Flow]:
        """Yield pairs of values: each of the first goes into, round or out of a body as the second.

        Where it is not known what becomes of them, all that goes in may be all that comes out.
        """
        if self.arguments is None:
            if self.bodies:
                yield self._everything()
            return
        for argument in self.arguments:
            if argument.is_passed_on:
                yield self.sources(argument), self.targets(argument)

    def _everything(self) -> Flow:
        return (
            [v for v in self.node.inputs if v is not None]
            + [v for body in self.bodies for v in body.outputs],
            [v for body in self.bodies for v in body.inputs] + [*self.node.outputs],
        )


def _at(values: Sequence[onnx_ir.Value | None], index: int | None) -> list[onnx_ir.Value]:
    value = None if index is None or index >= len(values) else values[index]
    return [] if value is None else [value]


def _call_arguments(
    node: onnx_ir.Node, function: onnx_ir.Function
) -> tuple[RegionArgument, ...] | None:
    inputs, outputs = len(function.inputs), len(function.outputs)
    if len(node.inputs) > inputs or len(node.outputs) > outputs:
        return None
    # A runtime may run its own kernel instead of this function, with the signature that it knows.
    # So the inputs and outputs of such a call are never removed.
    fixed = is_runtime_domain(node.domain)
    return tuple(
        RegionArgument(input=i, body_input=i, is_fixed=fixed) for i in range(inputs)
    ) + tuple(RegionArgument(body_output=i, output=i, is_fixed=fixed) for i in range(outputs))


def _if_arguments(
    node: onnx_ir.Node, branches: Sequence[onnx_ir.Graph]
) -> tuple[RegionArgument, ...] | None:
    count = len(node.outputs)
    if len(node.inputs) != 1 or any(
        branch.inputs or len(branch.outputs) != count for branch in branches
    ):
        return None
    outputs = [RegionArgument(body_output=i, output=i) for i in range(count)]
    return (RegionArgument(input=0, is_fixed=True), *outputs)


def _loop_arguments(node: onnx_ir.Node, body: onnx_ir.Graph) -> tuple[RegionArgument, ...] | None:
    # State i is input 2 + i of the node and of the body (after trip count and condition), output
    # 1 + i of the body (after the condition), and output i of the node, which returns no condition.
    states = len(body.inputs) - 2
    given = len(node.inputs)
    # The trip count and the condition may be left out, from the end too.
    known = given == 2 + states or (states == 0 and given < 2)
    if states < 0 or not known or len(body.outputs) < 1 + states:
        return None
    if len(node.outputs) >= len(body.outputs):
        return None
    scanned = range(states, len(body.outputs) - 1)
    return (
        RegionArgument(input=0, body_input=0, is_fixed=True, is_passed_on=False),
        RegionArgument(input=1, body_input=1, body_output=0, is_fixed=True),
        *(RegionArgument(2 + i, 2 + i, 1 + i, i) for i in range(states)),
        *(RegionArgument(body_output=1 + i, output=i) for i in scanned),
    )


def _scan_arguments(node: onnx_ir.Node, body: onnx_ir.Graph) -> tuple[RegionArgument, ...] | None:
    """Return the arguments of a Scan.

    Those of opset 8, which has a batch axis and takes sequence lengths first, are not known.
    """
    count = node.attributes.get("num_scan_inputs")
    if count is None or count.is_ref() or len(node.inputs) != len(body.inputs):
        return None
    states = len(body.inputs) - count.as_int()
    stacked = len(body.outputs) - states
    if not 0 <= states < len(body.inputs) or stacked < 0 or len(node.outputs) > len(body.outputs):
        return None
    for names, wanted in (
        (SCAN_INPUT_ATTRIBUTES, len(body.inputs) - states),
        (SCAN_OUTPUT_ATTRIBUTES, stacked),
    ):
        listed = [node.attributes[name] for name in names if name in node.attributes]
        if any(each.is_ref() or len(each.as_ints()) != wanted for each in listed):
            return None
    # All scanned inputs have one length, so any one of them determines the number of iterations.
    scanned = range(states, len(body.inputs))
    # One of them has to stay to determine the number of iterations. A stored one is preferred,
    # because keeping it does not keep a graph input alive.
    pace = next((i for i in scanned if _is_stored(node.inputs[i])), states)
    return (
        *(RegionArgument(i, i, i, i) for i in range(states)),
        *(RegionArgument(input=i, body_input=i, is_fixed=i == pace) for i in scanned),
        *(RegionArgument(body_output=i, output=i) for i in range(states, len(body.outputs))),
    )


def _is_stored(value: onnx_ir.Value | None) -> bool:
    return value is not None and onnx_ir.convenience.get_const_tensor(value) is not None
