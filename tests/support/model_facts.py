"""What tests say of a model: its bytes, its numbers, its ties, and what nobody reads in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort

import tieops
from tieops.ir.walk import all_graphs, all_nodes
from tieops.model import TiedModel

Arrays = Mapping[str, np.ndarray]


def outputs(model: tieops.TiedModel, feeds: Arrays) -> dict[str, np.ndarray]:
    """Run a graph as it is: no optimization, and no packing, which depends on what is constant."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    data = onnx_ir.to_proto(model.ir).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def unread(model: tieops.TiedModel) -> list[str]:
    return [
        str(value.name)
        for value in model.ir.graph.initializers.values()
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input()
    ]


def dead(model: tieops.TiedModel) -> list[str]:
    """Return what computes for nobody: nodes, and functions that are not called."""
    bodies = [model.ir.graph, *model.ir.functions.values()]
    nodes = [node for body in bodies for node in body]
    called = {node.op_identifier() for body in bodies for node in body.all_nodes()}
    return [
        str(node.op_type)
        for node in nodes
        if not any(output.uses() or output.is_graph_output() for output in node.outputs)
    ] + [key[1] for key in model.ir.functions if key not in called]


def operators(model: tieops.TiedModel) -> list[str]:
    return [node.op_type for node in model.ir.graph.all_nodes()]


def homes(model: tieops.TiedModel) -> dict[str, str]:
    return {slot.name: slot.parameter.name for slot in model.slots}


def facts(model: tieops.TiedModel) -> Any:
    """Return what ``tie(untie(m))`` must bring back: ties, names, slots and bytes."""
    ties = sorted((tie.names, [str(slot) for slot in tie.slots]) for tie in model.ties)
    return ties, sorted(str(slot) for slot in model.slots), model.ledger


def serialized(model: onnx_ir.Model) -> bytes:
    return onnx_ir.to_proto(model).SerializeToString(deterministic=True)


def ties_of(model: TiedModel) -> dict[str, list[list[str]]]:
    ties: dict[str, list[list[str]]] = {}
    for tie in model.ties:
        ties.setdefault(tie.parameter.name, []).append(sorted(slot.name for slot in tie.slots))
    return {name: sorted(groups) for name, groups in ties.items()}


def same_bits(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return [(a.dtype, a.shape, a.tobytes()) for a in some] == [
        (b.dtype, b.shape, b.tobytes()) for b in others
    ]


def left(model: tieops.TiedModel) -> list[str]:
    return [str(value.name) for value in model.ir.graph.outputs]


def stored(model: tieops.TiedModel) -> list[str]:
    return [*model.ir.graph.initializers]


def unread_anywhere(model: tieops.TiedModel) -> Iterator[str]:
    """Yield what nothing reads, in all graphs and functions, looked at port by port."""
    for graph in all_graphs(model.ir):
        for value in graph.initializers.values():
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                yield f"initializer {value.name}"
    read = {
        (node.op_identifier(), i)
        for node in all_nodes(model.ir)
        for i, output in enumerate(node.outputs)
        if output.uses() or output.is_graph_output()
    }
    for key, function in model.ir.functions.items():
        yield from (f"input {v.name} of {key}" for v in function.inputs if _is_lost(v))
        count = len(function.outputs)
        yield from (f"output {i} of {key}" for i in range(count) if (key, i) not in read)
    for node in all_nodes(model.ir):
        lost = [_is_lost(output) for output in node.outputs]
        if all(lost):
            yield f"{node.op_type} {node.name}"
        if node.domain == "" and node.op_type in ("If", "Loop", "Scan"):
            yield from (f"{node.op_type} {port}" for port in _unread_ports(node, lost))


def _unread_ports(node: onnx_ir.Node, lost: list[bool]) -> Iterator[str]:
    if node.op_type == "If":
        yield from (f"output {i}" for i, is_lost in enumerate(lost) if is_lost)
        return
    body = node.attributes["body"].as_graph()
    first = 2 if node.op_type == "Loop" else 0
    scanned = node.attributes["num_scan_inputs"].as_int() if node.op_type == "Scan" else 0
    states = len(body.inputs) - first - scanned
    for i, is_lost in enumerate(lost):
        if is_lost and (i >= states or _is_lost(body.inputs[first + i])):
            yield f"output {i}"
    unread = [value.name for value in body.inputs[first + states :] if _is_lost(value)]
    if len(unread) > 1:
        yield f"inputs {unread}"


def _is_lost(value: onnx_ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()
