"""What each value of a model depends on: inputs, random numbers, or stored tensors alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir

from tieops.ir.lanes import Functions, Wiring
from tieops.ir.scopes import nested_graphs

__all__ = ["is_random", "reached_from_inputs"]

_RANDOM_OPERATORS = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
))  # fmt: skip

# What a value depends on is a set of bits. Bit 0 is chance; in a function, bit 1 + i is input i.
_CHANCE = 1
_Summary = tuple[int, ...]
"""What each output of a function depends on."""
_Summaries = Mapping[onnx_ir.OperatorIdentifier, _Summary]


def is_random(node: onnx_ir.Node) -> bool:
    """Tell whether a node draws random numbers: a Dropout does if it is training, or might be.

    Example:
        >>> is_random(onnx_ir.node("RandomNormal", [])), is_random(onnx_ir.node("Dropout", [None]))
        (True, False)
    """
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type != "Dropout":
        return node.op_type in _RANDOM_OPERATORS
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return False  # off by default (since opset 7, before which nobody exports today)
    tensor = onnx_ir.convenience.get_const_tensor(mode)
    return tensor is None or bool(tensor.numpy().any())


def reached_from_inputs(model: onnx_ir.Model) -> set[onnx_ir.Value]:
    """Return the values of the main graph, and of what nests in it, that a caller's feeds change.

    Each output of an If, a Loop, a Scan or a function call depends on what it is made from there,
    and on what decides whether or how often it is made. Inputs that merely override a stored tensor
    do not count; random operators do, for what they compute is no constant either.
    """
    summaries = _summaries(model.functions)
    fed = {value: _CHANCE for value in model.graph.inputs if not value.is_initializer()}
    found = _spread(model.graph, fed, model.functions, summaries)
    return {value for value, depends in found.items() if depends}


def _summaries(functions: Functions) -> _Summaries:
    done: dict[onnx_ir.OperatorIdentifier, _Summary] = {}
    for key in _callees_first(functions):
        function = functions[key]
        given = {value: 2 << i for i, value in enumerate(function.inputs)}
        sets = _spread(function.graph, given, functions, done)
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


def _spread(
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
            and counts as random: nothing can be told about it.
    """
    found = dict(known)
    wirings = {node: Wiring.of(node, functions) for inner in nested_graphs(graph) for node in inner}
    readers: dict[onnx_ir.Value, list[onnx_ir.Node]] = {}
    for node, wiring in wirings.items():
        for body in wiring.bodies:
            for output in body.outputs:
                readers.setdefault(output, []).append(node)
    pending = deque(wirings)
    waiting = set(pending)
    while pending:
        node = pending.popleft()
        waiting.discard(node)
        for value, new in _step(wirings[node], found, functions, summaries):
            old = found.get(value, 0)
            if old | new == old:
                continue
            found[value] = old | new
            again = {use.node for use in value.uses()} | {*readers.get(value, ())}
            fresh = [each for each in again if each in wirings and each not in waiting]
            waiting.update(fresh)
            pending += fresh
    return found


def _step(
    wiring: Wiring,
    found: Mapping[onnx_ir.Value, int],
    functions: Functions,
    summaries: _Summaries,
) -> Iterator[tuple[onnx_ir.Value, int]]:
    """Yield what one node adds to what values depend on."""
    node = wiring.node
    called = node.op_identifier() in functions
    summary = summaries.get(node.op_identifier()) if wiring.lanes is not None else None
    if called and summary is not None:
        given = [0 if value is None else found.get(value, 0) for value in node.inputs]
        for output, needs in zip(node.outputs, summary, strict=False):
            through = _union(each for i, each in enumerate(given) if needs >> (i + 1) & 1)
            yield output, (needs & _CHANCE) | through
        return
    for sources, targets in wiring.flows():
        union = _union(found.get(source, 0) for source in sources)
        yield from ((target, union) for target in targets)
    if called or is_random(node):
        yield from ((output, _CHANCE) for output in node.outputs)


def _union(sets: Iterable[int]) -> int:
    union = 0
    for each in sets:
        union |= each
    return union
