"""Following each stored tensor through the nodes that only move its elements, to who reads it.

The walk goes forward from the tensor. Captures into If/Loop/Scan bodies need nothing of their own:
in onnx_ir the inner node's input is the outer value. A function is entered at each of its calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.parameter import Entry, Parameter
from tieops.ir.scopes import call_paths, nested_graphs, stored_values
from tieops.ir.view import Cast, Dequantize, Join, Reshape, Slice, Step, Transpose, View

__all__ = ["Arrival", "Exposure", "Trace", "static_value", "trace"]

Path = tuple[onnx_ir.Node, ...]
MAX_STATIC_ELEMENTS = 4096
"""Operands such as shapes, axes and starts are small; larger constants are not read for them."""
MAX_MOVES = 16
"""How many movements in a row are followed to see that a part of a Concat is static."""


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
    functions = {
        graph: key
        for key, function in model.functions.items()
        for graph in nested_graphs(function.graph)
    }
    outputs = set(model.graph.outputs)
    arrivals: dict[onnx_ir.Value, list[Arrival]] = {}
    exposures: list[Exposure] = []
    for value in stored_values(model):
        parameter = Parameter(value)
        found = arrivals.setdefault(value, [])
        if value.type is not None and value.dtype == onnx_ir.DataType.STRING:
            continue
        start = View(parameter.shape)
        function = functions.get(value.graph) if value.graph is not None else None
        contexts: Iterable[Path] = [()] if function is None else paths.get(function, [])
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
                onward = _onward(node, index, at.view)
                if not onward:
                    found.append(
                        Arrival(parameter, at.view, at.nodes, node, index, at.path, at.entry)
                    )
                    continue
                stack += [
                    _At(output, view, (*at.nodes, node), at.path, at.entry)
                    for output, view in onward
                ]
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


def static_ints(value: onnx_ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers that a value is known to hold; None if they are not known or not few."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant":
        for key in ("value_int", "value_ints"):
            attr = producer.attributes.get(key)
            if attr is not None and not attr.is_ref():
                return (attr.as_int(),) if key == "value_int" else tuple(attr.as_ints())
        attr = producer.attributes.get("value")
        tensor = attr.as_tensor() if attr is not None and not attr.is_ref() else None
    if tensor is None or tensor.size > MAX_STATIC_ELEMENTS:
        return None
    if tensor.dtype not in (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32):
        return None
    return tuple(int(each) for each in np.asarray(tensor.numpy()).reshape(-1))


def _onward(node: onnx_ir.Node, index: int, view: View) -> list[tuple[onnx_ir.Value, View]]:
    """Return where a view goes on through ``node``; empty if the node reads the elements."""
    if node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type == "Concat":
        return _join(node, index, view)
    if index != 0:
        return []
    if node.op_type == "Split":
        return _split(node, view)
    if node.op_type == "Identity":
        return [(node.outputs[0], view)]
    step = _step(node, view)
    return [] if step is None else [(node.outputs[0], view.then(step))]


def _step(node: onnx_ir.Node, view: View) -> Step | None:
    shape = view.shape
    match node.op_type:
        case "Transpose":
            perm = node.attributes.get("perm")
            axes = tuple(perm.as_ints()) if perm is not None else tuple(reversed(range(len(shape))))
            return Transpose(axes) if sorted(axes) == list(range(len(shape))) else None
        case "Cast":
            to = node.attributes.get("to")
            return None if to is None else Cast(onnx_ir.DataType(to.as_int()))
        case "DequantizeLinear":
            return _dequantize(node)
        case "Slice":
            ranges = _slice_ranges(node, shape)
            return None if ranges is None else Slice(ranges)
        case "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten":
            sizes = _reshaped(node, shape)
            return None if sizes is None else Reshape(sizes)
        case _:
            return None


def _dequantize(node: onnx_ir.Node) -> Dequantize | None:
    scale = node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or scale.const_value is None:
        return None
    axis, block = node.attributes.get("axis"), node.attributes.get("block_size")
    return Dequantize(
        node,
        scale.name or "",
        zero.name if zero is not None else None,
        1 if axis is None else axis.as_int(),
        0 if block is None else block.as_int(),
    )


def _operand(node: onnx_ir.Node, index: int, name: str) -> tuple[int, ...] | None:
    """Return an operand that newer opsets take as an input and older ones as an attribute."""
    if len(node.inputs) > index and node.inputs[index] is not None:
        return static_ints(node.inputs[index])
    attr = node.attributes.get(name)
    return None if attr is None or attr.is_ref() else tuple(attr.as_ints())


def _slice_ranges(
    node: onnx_ir.Node, shape: tuple[int, ...]
) -> tuple[tuple[int, int, int], ...] | None:
    starts, ends = _operand(node, 1, "starts"), _operand(node, 2, "ends")
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes, steps = _operand(node, 3, "axes"), _operand(node, 4, "steps")
    if (axes is None and _has(node, 3)) or (steps is None and _has(node, 4)):
        return None
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    ranges = [(0, size, 1) for size in shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=False):
        if not -len(shape) <= axis < len(shape) or step == 0:
            return None
        axis %= len(shape)
        ranges[axis] = slice(start, end, step).indices(shape[axis])
    return tuple(ranges)


def _has(node: onnx_ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _reshaped(node: onnx_ir.Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    match node.op_type:
        case "Reshape":
            target = static_ints(node.inputs[1]) if _has(node, 1) else None
            if target is None:
                return None
            allow = node.attributes.get("allowzero")
            if allow is None or allow.as_int() == 0:
                target = tuple(
                    shape[i] if size == 0 and i < len(shape) else size
                    for i, size in enumerate(target)
                )
        case "Flatten":
            attr = node.attributes.get("axis")
            axis = 1 if attr is None else attr.as_int()
            axis = axis + len(shape) if axis < 0 else axis
            target = (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
        case "Squeeze":
            axes = _operand(node, 1, "axes")
            if axes is None:
                target = tuple(size for size in shape if size != 1)
            else:
                gone = {axis % len(shape) for axis in axes}
                target = tuple(size for i, size in enumerate(shape) if i not in gone)
        case _:
            axes = _operand(node, 1, "axes")
            if axes is None:
                return None
            rank = len(shape) + len(axes)
            new = {axis % rank for axis in axes}
            rest = iter(shape)
            target = tuple(1 if i in new else next(rest, 1) for i in range(rank))
    return _settled(target, shape)


def _settled(target: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    total = int(np.prod(shape, dtype=np.int64))
    known = int(np.prod([size for size in target if size != -1], dtype=np.int64))
    if -1 in target:
        if known == 0 or total % known or target.count(-1) > 1:
            return None
        target = tuple(total // known if size == -1 else size for size in target)
    elif known != total:
        return None
    return target


def _split(node: onnx_ir.Node, view: View) -> list[tuple[onnx_ir.Value, View]]:
    shape = view.shape
    attr = node.attributes.get("axis")
    axis = (0 if attr is None else attr.as_int()) % max(len(shape), 1)
    sizes = _operand(node, 1, "split")
    if sizes is None:
        if _has(node, 1) or not shape:
            return []
        each = -(-shape[axis] // len(node.outputs))
        sizes = tuple(min(each, shape[axis] - each * i) for i in range(len(node.outputs)))
    if sum(sizes) != shape[axis] or len(sizes) != len(node.outputs):
        return []
    onward: list[tuple[onnx_ir.Value, View]] = []
    start = 0
    for output, size in zip(node.outputs, sizes, strict=True):
        ranges = [(0, each, 1) for each in shape]
        ranges[axis] = (start, start + size, 1)
        onward.append((output, view.then(Slice(tuple(ranges)))))
        start += size
    return onward


def _join(node: onnx_ir.Node, index: int, view: View) -> list[tuple[onnx_ir.Value, View]]:
    # Only a Concat of stored tensors moves elements; beside a computed part it is a reader.
    shapes: list[tuple[int, ...]] = []
    for value in node.inputs:
        shape = _static_shape(value)
        if shape is None:
            return []
        shapes.append(shape)
    attr = node.attributes.get("axis")
    if attr is None or not view.shape or shapes[index] != view.shape:
        return []
    axis = attr.as_int() % len(view.shape)
    sizes = list(view.shape)
    sizes[axis] = sum(shape[axis] for shape in shapes)
    return [(node.outputs[0], view.then(Join(axis, index, tuple(sizes))))]


def static_value(value: onnx_ir.Value, depth: int = 0) -> np.ndarray[Any, Any]:
    """Return what a value holds that is computed from stored tensors by movement alone.

    Raises:
        ValueError: If it is not.
    """
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or depth > MAX_MOVES:
        raise ValueError(f"{value.name} is not static")
    inputs = [each for each in node.inputs if each is not None]
    if node.op_type == "Concat":
        parts = [static_value(each, depth + 1) for each in inputs]
        return np.concatenate(parts, axis=node.attributes["axis"].as_int())
    array = static_value(inputs[0], depth + 1)
    view = dict(_onward(node, 0, View(tuple(array.shape)))).get(value)
    if view is None:
        raise ValueError(f"{value.name} is not static")
    return view.apply(array)


def _static_shape(value: onnx_ir.Value | None, depth: int = 0) -> tuple[int, ...] | None:
    """Return the shape of a value computed from stored tensors by movement alone, else None."""
    if value is None or value.is_graph_input() or depth > MAX_MOVES:
        return None
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    node = value.producer()
    if node is None or not node.inputs:
        return None
    source = _static_shape(node.inputs[0], depth + 1)
    if source is None:
        return None
    if node.op_type == "Concat" and any(
        _static_shape(other, depth + 1) is None for other in node.inputs[1:]
    ):
        return None
    view = dict(_onward(node, 0, View(source))).get(value)
    return None if view is None else view.shape
