"""Find out what each value depends on: inputs, random numbers, or stored tensors alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import onnx_ir

from tieops.ir.dataflow.regions import Flow, Functions, RegionInterface
from tieops.ir.operators.predicates import is_random
from tieops.ir.operators.traits import is_pure
from tieops.ir.walk import nested_graphs

__all__ = ["input_dependent_values"]

# What a value depends on is a set of bits. Bit 0 is chance, and in the main graph what is fed too,
# since either makes it no constant; in a function, bit 1 + i is input i.
_CHANCE = 1
_Summary = tuple[int, ...]
"""What each output of a function depends on."""
_Summaries = Mapping[onnx_ir.OperatorIdentifier, _Summary]


def input_dependent_values(model: onnx_ir.Model) -> set[onnx_ir.Value]:
    """Return the values of the main graph, and of what nests in it, that a caller's feeds change.

    Each output of an If, a Loop, a Scan or a function call depends on what it is made from there,
    and on what decides whether or how often it is made. Inputs that merely override a stored tensor
    do not count; random operators do, for what they compute is not a constant either, and so does
    somebody's own operator, which may be one.
    """
    summaries = _summaries(model.functions)
    fed = {value: _CHANCE for value in model.graph.inputs if not value.is_initializer()}
    return {*_propagated(model.graph, fed, model.functions, summaries)}


def _summaries(functions: Functions) -> _Summaries:
    done: dict[onnx_ir.OperatorIdentifier, _Summary] = {}
    for key in _callees_first(functions):
        function = functions[key]
        given = {value: 2 << i for i, value in enumerate(function.inputs)}
        sets = _propagated(function.graph, given, functions, done)
        done[key] = tuple(sets.get(output, 0) for output in function.outputs)
    return done


def _callees_first(functions: Functions) -> Iterator[onnx_ir.OperatorIdentifier]:
    """Yield every function once, after those that it calls unless they call it back."""
    seen: set[onnx_ir.OperatorIdentifier] = set()
    for start in functions:
        stack = [(start, False)]
        while stack:
            key, is_ready = stack.pop()
            if is_ready:
                yield key
            elif key not in seen:
                seen.add(key)
                stack.append((key, True))
                stack += [
                    (node.op_identifier(), False)
                    for graph in nested_graphs(functions[key].graph)
                    for node in graph
                    if node.op_identifier() in functions
                ]


def _propagated(
    graph: onnx_ir.Graph,
    known: Mapping[onnx_ir.Value, int],
    functions: Functions,
    summaries: _Summaries,
) -> dict[onnx_ir.Value, int]:
    """Return what the values of a graph and its subgraphs depend on; absent if on nothing.

    Args:
        graph: The graph.
        known: What its inputs stand for.
        functions: All functions of the model.
        summaries: Of the functions that were looked at. What calls itself is not among them yet,
            and counts as random, because nothing is known about it.
    """
    flows, by_chance = _flows(graph, functions, summaries)
    found = {**known, **dict.fromkeys(by_chance, _CHANCE)}
    readers: dict[onnx_ir.Value, list[int]] = {}
    for index, (sources, _) in enumerate(flows):
        for source in sources:
            readers.setdefault(source, []).append(index)
    passed = [0] * len(flows)
    pending = deque(found)
    while pending:
        depends = found[value := pending.popleft()]
        for index in readers.get(value, ()):
            if passed[index] | depends == passed[index]:
                continue
            passed[index] |= depends
            for target in flows[index][1]:
                old = found.get(target, 0)
                if old | depends != old:
                    found[target] = old | depends
                    pending.append(target)
    return found


def _flows(
    graph: onnx_ir.Graph, functions: Functions, summaries: _Summaries
) -> tuple[list[Flow], list[onnx_ir.Value]]:
    """Return what flows to what in a graph and its subgraphs, and the values that chance makes."""
    flows: list[Flow] = []
    by_chance: list[onnx_ir.Value] = []
    for node in (node for inner in nested_graphs(graph) for node in inner):
        interface = RegionInterface.of(node, functions)
        is_call = node.op_identifier() in functions
        summary = summaries.get(node.op_identifier()) if interface.arguments is not None else None
        if is_call and summary is not None:
            flows += _call_flows(node, summary)
            by_chance += [o for o, s in zip(node.outputs, summary, strict=False) if s & _CHANCE]
            continue
        flows += interface.flows()
        if is_call or is_random(node) or not is_pure(node):
            by_chance += node.outputs
    return flows, by_chance


def _call_flows(node: onnx_ir.Node, summary: _Summary) -> Iterator[Flow]:
    """Yield how values go through a call of a function that was looked at."""
    for output, depends in zip(node.outputs, summary, strict=False):
        given = [v for i, v in enumerate(node.inputs) if v is not None and depends >> (i + 1) & 1]
        yield given, [output]
