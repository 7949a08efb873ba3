"""Values that are computed from stored ones by moving elements around, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir

__all__ = ["STEPS", "NotStaticError", "chain_of", "data_inputs", "evaluate"]

Array = np.ndarray[Any, Any]


class NotStaticError(Exception):
    """Says why a value cannot be computed now; never leaves the importer."""


def data_inputs(node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return tuple(value for value in inputs if value is not None)


def chain_of(value: onnx_ir.Value) -> tuple[onnx_ir.Node, ...]:
    """Return the nodes that compute a value, each after those that it reads."""
    order: dict[onnx_ir.Node, None] = {}
    stack = [(value, False)]
    while stack:
        current, is_ready = stack.pop()
        node = current.producer()
        if node is None or node in order:
            continue
        if is_ready:
            order[node] = None
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in STEPS:
            raise NotStaticError(f"it is computed by {node.op_type} {node.name}")
        stack.append((current, True))
        stack += [(each, False) for each in reversed(data_inputs(node))]
    return tuple(order)


def evaluate(
    chain: Iterable[onnx_ir.Node], arrays: dict[onnx_ir.Value, Array]
) -> dict[onnx_ir.Value, Array]:
    found = dict(arrays)
    for node in chain:
        results = STEPS[node.op_type](node, [found[value] for value in data_inputs(node)])
        found.update(zip(node.outputs, results, strict=True))
    return found


def _ints(node: onnx_ir.Node, name: str, index: int) -> list[int] | None:
    """Return a list that is an attribute up to some opset and a constant input after it."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    tensor = None if value.is_graph_input() else onnx_ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise NotStaticError(f"{node.op_type} {node.name} is not static")
    return [int(number) for number in tensor.numpy().reshape(-1)]


def _slice(node: onnx_ir.Node, arrays: list[Array]) -> list[Array]:
    starts, ends = _ints(node, "starts", 1) or [], _ints(node, "ends", 2) or []
    axes = _ints(node, "axes", 3) or list(range(len(starts)))
    steps = _ints(node, "steps", 4) or [1] * len(starts)
    ranges = [slice(None)] * arrays[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        ranges[axis] = slice(start, end, step)
    return [arrays[0][tuple(ranges)]]


def _split(node: onnx_ir.Node, arrays: list[Array]) -> list[Array]:
    axis = node.attributes.get_int("axis", 0)
    length, count = arrays[0].shape[axis], len(node.outputs)
    even = -(-length // count)
    sizes = _ints(node, "split", 1) or [even] * count
    return np.split(arrays[0], np.cumsum(sizes)[:-1].tolist(), axis)


def _reshape(node: onnx_ir.Node, arrays: list[Array]) -> list[Array]:
    sizes = _ints(node, "shape", 1) or []
    if not node.attributes.get_int("allowzero", 0):
        sizes = [size or arrays[0].shape[axis] for axis, size in enumerate(sizes)]
    return [arrays[0].reshape(sizes)]


def _squeeze(node: onnx_ir.Node, arrays: list[Array]) -> list[Array]:
    axes = _ints(node, "axes", 1)
    return [np.squeeze(arrays[0], None if axes is None else tuple(axes))]


def _transpose(node: onnx_ir.Node, arrays: list[Array]) -> list[Array]:
    perm = node.attributes.get_ints("perm")
    return [arrays[0].transpose(None if perm is None else tuple(perm))]


STEPS: dict[str, Callable[[onnx_ir.Node, list[Array]], list[Array]]] = {
    "Concat": lambda node, arrays: [np.concatenate(arrays, node.attributes["axis"].as_int())],
    "Identity": lambda node, arrays: arrays,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": lambda node, arrays: [
        np.expand_dims(arrays[0], tuple(_ints(node, "axes", 1) or ()))
    ],
}
