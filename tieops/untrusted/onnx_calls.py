"""Count the function calls of a ModelProto over the call graph, before anything follows one.

Forty functions that call the next one twice are 3 KB of file and 2**40 nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import onnx

from tieops.errors import UnsupportedModelError
from tieops.ir.operators.identity import domain_of
from tieops.untrusted.limits import Limits, check_limit
from tieops.untrusted.onnx_tensors import shown

__all__ = ["Key", "check_calls", "function_key", "node_graphs", "node_key"]

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def function_key(function: onnx.FunctionProto) -> Key:
    """Return what nodes call a function by."""
    return domain_of(function.domain), function.name, function.overload


def node_key(node: onnx.NodeProto) -> Key:
    """Return what a node calls: the key of a function if there is one, else an operator's."""
    return domain_of(node.domain), node.op_type, node.overload


def node_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def check_calls(proto: onnx.ModelProto, limits: Limits) -> None:
    """Refuse functions that call themselves, and calls that amount to too many nodes.

    Raises:
        UnsupportedModelError: With the calls, or the number of nodes.
    """
    known = {function_key(function): function for function in proto.functions}
    called: dict[Key | None, Counter[Key]] = {}
    nodes: dict[Key | None, int] = {}
    for key, body in [(None, proto.graph.node), *((k, f.node) for k, f in known.items())]:
        called[key], nodes[key] = _count(body, known)
        check_limit(limits, "nodes", nodes[key], "nodes of one graph and those nested in it")
    for key in _callees_first(called, limits):
        nodes[key] += sum(times * nodes[callee] for callee, times in called[key].items())
    total = nodes[None]
    if total > limits.nodes:
        what = f"nodes with all calls of {len(known)} functions written out"
        check_limit(limits, "nodes", total, what)


def _count(
    body: Sequence[onnx.NodeProto], known: dict[Key, onnx.FunctionProto]
) -> tuple[Counter[Key], int]:
    called: Counter[Key] = Counter()
    stack, count = [body], 0
    while stack:
        nodes = stack.pop()
        count += len(nodes)
        for node in nodes:
            if known:
                key = node_key(node)
                if key in known:
                    called[key] += 1
            stack.extend(graph.node for graph in node_graphs(node))
    return called, count


def _callees_first(called: dict[Key | None, Counter[Key]], limits: Limits) -> list[Key | None]:
    """Return every function after those that it calls; the main graph is None."""
    order: list[Key | None] = []
    depth: dict[Key | None, int] = {}
    for start in called:
        path: list[Key | None] = [start] if start not in depth else []
        waiting = {start: list(called[start])} if path else {}
        while path:
            key = path[-1]
            if waiting[key]:
                callee = waiting[key].pop()
                if callee in waiting:
                    _refuse_circle([*path[path.index(callee) :], callee])
                if callee not in depth:
                    path.append(callee)
                    waiting[callee] = list(called[callee])
                continue
            path.pop()
            del waiting[key]
            depth[key] = 1 + max((depth[callee] for callee in called[key]), default=-1)
            check_limit(limits, "call_depth", depth[key], "functions that call functions")
            order.append(key)
    return order


def _refuse_circle(circle: list[Key | None]) -> None:
    names = [shown(key[1]) for key in circle if key is not None]
    listed = names if len(names) <= 8 else [*names[:7], "…", names[-1]]
    raise UnsupportedModelError(
        f"function {names[0]} calls itself",
        {"calls": " → ".join(listed)},
        "ONNX functions must not be recursive: export the model again",
    )
