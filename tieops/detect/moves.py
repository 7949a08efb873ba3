"""What a node does to a view: moves that go on, and everything else, which reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.view import Cast, Dequantize, Join, Reshape, Shape, Slice, Step, Transpose, View

__all__ = ["Moves", "sliced_join", "static_ints", "static_operand"]

MAX_STATIC_ELEMENTS = 4096
"""Operands such as shapes, axes and starts are small; larger constants are not read for them."""
MAX_MOVES = 64
"""How many movements in a row are followed to see that a part of a Concat is static."""
_DTYPES = {int(each) for each in onnx_ir.DataType}
MAX_JOINS = 3
"""How many Concats in a row are followed: each may multiply the parts."""


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


def static_operand(node: onnx_ir.Node, index: int, name: str) -> tuple[int, ...] | None:
    """Return an operand that newer opsets take as an input and older ones as an attribute.

    None if it is not given, or not known.
    """
    if _has(node, index):
        return static_ints(node.inputs[index])
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref():
        return None
    return (attr.as_int(),) if attr.type == onnx_ir.AttributeType.INT else tuple(attr.as_ints())


class Moves:
    """What each node does to a view; remembers which values are static."""

    def __init__(self) -> None:
        self._shapes: dict[onnx_ir.Value, Shape | None] = {}

    def onward(
        self, node: onnx_ir.Node, index: int, view: View
    ) -> list[tuple[onnx_ir.Value, View]] | None:
        """Return where a view goes on through input ``index`` of a node.

        None if the node reads the elements; an empty list if it drops them all.
        """
        if node.domain not in ("", "ai.onnx"):
            return None
        if any(attr.is_ref() for attr in node.attributes.values()):
            return None  # what it does depends on who calls the function
        if node.op_type == "Concat":
            return self._join(node, index, view)
        if index != 0:
            return None
        if node.op_type == "Split":
            return _split(node, view)
        if node.op_type == "Identity":
            return [(node.outputs[0], view)]
        step = _step(node, view)
        if step is None:
            return None
        if isinstance(step, Slice) and view.steps and isinstance(view.steps[-1], Join):
            part = sliced_join(view, step)
            return [] if part is None else [(node.outputs[0], part)]
        return [(node.outputs[0], view.then(step))]

    def _join(
        self, node: onnx_ir.Node, index: int, view: View
    ) -> list[tuple[onnx_ir.Value, View]] | None:
        # Only a Concat of stored tensors moves elements; beside a computed part it is a reader.
        if index != node.inputs.index(node.inputs[index]):
            return []  # a tensor beside itself: its first place stands for all
        shapes: list[Shape] = []
        for value in node.inputs:
            shape = self.static_shape(value)
            if shape is None:
                return None
            shapes.append(shape)
        attr = node.attributes.get("axis")
        if attr is None or not view.shape or shapes[index] != view.shape:
            return None
        joins = sum(isinstance(step, Join) for step in view.steps)
        if joins >= MAX_JOINS and len(set(node.inputs)) > 1:
            return None
        axis = attr.as_int() % len(view.shape)
        before = sum(shape[axis] for shape in shapes[:index])
        sizes = list(view.shape)
        sizes[axis] = sum(shape[axis] for shape in shapes)
        return [(node.outputs[0], view.then(Join(axis, before, tuple(sizes))))]

    def static_shape(self, value: onnx_ir.Value | None, depth: int = 0) -> Shape | None:
        """Return the shape of a value computed from stored tensors by movement alone, else None."""
        if value is None or value.is_graph_input() or depth > MAX_MOVES:
            return None
        if value.const_value is not None:
            return tuple(int(size) for size in value.const_value.shape.numpy())
        if value not in self._shapes:
            self._shapes[value] = self._moved_shape(value, depth)
        return self._shapes[value]

    def _moved_shape(self, value: onnx_ir.Value, depth: int) -> Shape | None:
        node = value.producer()
        if node is None or not node.inputs:
            return None
        shapes = [self.static_shape(each, depth + 1) for each in node.inputs]
        if shapes[0] is None or (node.op_type == "Concat" and None in shapes):
            return None
        found = self.onward(node, 0, View(shapes[0]))
        view = dict(found or ()).get(value)
        return None if view is None else view.shape

    def static_value(self, value: onnx_ir.Value, depth: int = 0) -> np.ndarray[Any, Any]:
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
            parts = [self.static_value(each, depth + 1) for each in inputs]
            return np.concatenate(parts, axis=node.attributes["axis"].as_int())
        array = self.static_value(inputs[0], depth + 1)
        view = dict(self.onward(node, 0, View(tuple(array.shape))) or ()).get(value)
        if view is None:
            raise ValueError(f"{value.name} is not static")
        return view.apply(array)


def sliced_join(view: View, cut: Slice) -> View | None:
    """Return the view of one part of a Concat that a slice of the Concat leaves; None for nothing.

    Args:
        view: A view that ends in a join.
        cut: The slice of the joined tensor.
    """
    join = view.steps[-1]
    assert isinstance(join, Join)
    part = View(view.source, view.steps[:-1])
    start, stop, step = cut.ranges[join.axis]
    size = part.shape[join.axis]
    if step != 1:
        return view.then(cut)
    low, high = max(start, join.start), min(stop, join.start + size)
    if low >= high:
        return None
    ranges = list(cut.ranges)
    ranges[join.axis] = (low - join.start, high - join.start, 1)
    part = part.then(Slice(tuple(ranges)))
    sizes = cut.shape(join.sizes)
    if part.shape == sizes:
        return part
    return part.then(Join(join.axis, low - start, sizes))


def _step(node: onnx_ir.Node, view: View) -> Step | None:
    shape = view.shape
    match node.op_type:
        case "Transpose":
            perm = node.attributes.get("perm")
            axes = tuple(perm.as_ints()) if perm is not None else tuple(reversed(range(len(shape))))
            return Transpose(axes) if sorted(axes) == list(range(len(shape))) else None
        case "Cast":
            to = node.attributes.get("to")
            known = to is not None and not to.is_ref() and to.as_int() in _DTYPES
            return Cast(onnx_ir.DataType(to.as_int())) if to is not None and known else None
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


def _slice_ranges(
    node: onnx_ir.Node, shape: tuple[int, ...]
) -> tuple[tuple[int, int, int], ...] | None:
    starts, ends = static_operand(node, 1, "starts"), static_operand(node, 2, "ends")
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes, steps = static_operand(node, 3, "axes"), static_operand(node, 4, "steps")
    if (axes is None and _has(node, 3)) or (steps is None and _has(node, 4)):
        return None
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    ranges = [(0, size, 1) for size in shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=False):
        if not -len(shape) <= axis < len(shape) or step == 0:
            return None
        axis %= len(shape)
        ranges[axis] = _clamped(start, end, step, shape[axis])
    return tuple(ranges)


def _clamped(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    """Return a slice's bounds as ONNX clamps them, which is not how Python does going backwards."""
    start, end = (each + size if each < 0 else each for each in (start, end))
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size), step
    return min(max(start, 0), size - 1), min(max(end, -1), size - 1), step


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
            axes = static_operand(node, 1, "axes")
            if axes is None:
                target = tuple(size for size in shape if size != 1)
            else:
                gone = {axis % len(shape) for axis in axes}
                target = tuple(size for i, size in enumerate(shape) if i not in gone)
        case _:
            axes = static_operand(node, 1, "axes")
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


def _split(node: onnx_ir.Node, view: View) -> list[tuple[onnx_ir.Value, View]] | None:
    shape = view.shape
    attr = node.attributes.get("axis")
    axis = (0 if attr is None else attr.as_int()) % max(len(shape), 1)
    sizes = static_operand(node, 1, "split")
    if sizes is None:
        if _has(node, 1) or not shape:
            return None
        each = -(-shape[axis] // len(node.outputs))
        sizes = tuple(min(each, shape[axis] - each * i) for i in range(len(node.outputs)))
    if sum(sizes) != shape[axis] or len(sizes) != len(node.outputs):
        return None
    onward: list[tuple[onnx_ir.Value, View]] = []
    start = 0
    for output, size in zip(node.outputs, sizes, strict=True):
        ranges = [(0, each, 1) for each in shape]
        ranges[axis] = (start, start + size, 1)
        cut = Slice(tuple(ranges))
        joined = view.steps and isinstance(view.steps[-1], Join)
        part = sliced_join(view, cut) if joined else view.then(cut)
        if part is not None:
            onward.append((output, part))
        start += size
    return onward
