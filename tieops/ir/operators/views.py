"""View transfer: operators that only move elements, and their effect on a view.

Every other operator is a reader. So is one that moves elements by an operand that is not known
before the run, and one whose operands ONNX Runtime refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.operators.identity import is_standard, operator_name
from tieops.ir.operators.moving_shapes import clamped, slice_bounds
from tieops.ir.operators.operands import (
    Missing,
    has_bound_attributes,
    int_attribute,
)
from tieops.ir.operators.predicates import is_concat, is_identity, is_split, is_transpose
from tieops.ir.operators.shape_rules import output_shapes
from tieops.ir.operators.sizes import NotKnownError
from tieops.ir.view import Cast, Dequantize, Join, Reshape, Shape, Slice, Step, Transpose, View

__all__ = [
    "ViewTransfer",
    "moved_arrays",
    "sliced_join",
    "transpose_order",
]

MAX_MOVES = 64
"""How many movements in a row are followed to see that a part of a Concat is static."""
_DTYPES = {int(each) for each in onnx_ir.DataType}
MAX_JOINS = 3
"""How many Concats in a row are followed: each may multiply the parts."""


def transpose_order(node: onnx_ir.Node, rank: int) -> Shape | None:
    """Return the order of axes if the node is a Transpose of known order, else None."""
    if not is_transpose(node):
        return None
    attr = node.attributes.get("perm")
    if attr is None:
        return tuple(reversed(range(rank)))
    return None if attr.is_ref() else tuple(attr.as_ints())


class ViewTransfer:
    """What each node does to a view; remembers which values are static."""

    def __init__(self) -> None:
        self._shapes: dict[onnx_ir.Value, Shape | None] = {}

    def through(
        self, node: onnx_ir.Node, index: int, view: View
    ) -> list[tuple[onnx_ir.Value, View]] | None:
        """Return where a view goes on through input ``index`` of a node.

        None if the node reads the elements; an empty list if it drops them all.
        """
        if not is_standard(node) or not has_bound_attributes(node):
            return None
        if is_concat(node):
            return self._join(node, index, view)
        if index != 0:
            return None
        if is_split(node):
            return _split(node, view)
        if is_identity(node):
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
        axis = _axis(node, "axis", len(view.shape))
        if axis is None or shapes[index] != view.shape:
            return None
        joins = sum(isinstance(step, Join) for step in view.steps)
        if joins >= MAX_JOINS and len(set(node.inputs)) > 1:
            return None
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
        if shapes[0] is None or (is_concat(node) and None in shapes):
            return None
        found = self.through(node, 0, View(shapes[0]))
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
        parts = node.inputs if is_concat(node) else node.inputs[:1]
        arrays = [self.static_value(each, depth + 1) for each in parts if each is not None]
        found = moved_arrays(node, arrays)
        if value not in found:
            raise ValueError(f"{value.name} is not static")
        return found[value]


def moved_arrays(
    node: onnx_ir.Node, arrays: Sequence[np.ndarray[Any, Any]]
) -> dict[onnx_ir.Value, np.ndarray[Any, Any]]:
    """Return what a node that moves elements makes of its data; nothing if that is not known.

    Args:
        node: The node.
        arrays: All inputs of a Concat; of any other node the first.
    """
    if is_concat(node) and has_bound_attributes(node) and "axis" in node.attributes:
        return {node.outputs[0]: np.concatenate(arrays, axis=node.attributes["axis"].as_int())}
    onward = [] if is_concat(node) else ViewTransfer().through(node, 0, View(arrays[0].shape)) or []
    return {output: view.apply(arrays[0]) for output, view in onward}


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


def _axis(node: onnx_ir.Node, name: str, rank: int, default: int | None = None) -> int | None:
    """Return an axis that an attribute names, not negative; None if there is no such axis."""
    if default is None and name not in node.attributes:
        return None
    axis = int_attribute(node, name, default or 0)
    return axis % rank if not isinstance(axis, Missing) and -rank <= axis < rank else None


def _step(node: onnx_ir.Node, view: View) -> Step | None:
    shape = view.shape
    match operator_name(node):
        case "Transpose":
            axes = transpose_order(node, len(shape))
            known = axes is not None and sorted(axes) == list(range(len(shape)))
            return Transpose(axes) if axes is not None and known else None
        case "Cast":
            to = int_attribute(node, "to", -1)
            return Cast(onnx_ir.DataType(to)) if to in _DTYPES else None
        case "DequantizeLinear":
            return _dequantize(node)
        case "Slice":
            ranges = _slice_ranges(node, shape)
            return None if ranges is None else Slice(ranges)
        case "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten":
            shapes = _shapes_after(node, shape)
            return None if shapes is None else Reshape(shapes[0])
        case _:
            return None


def _dequantize(node: onnx_ir.Node) -> Dequantize | None:
    scale = node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or scale.const_value is None:
        return None
    if zero is not None and zero.const_value is None:
        return None
    axis, block = int_attribute(node, "axis", 1), int_attribute(node, "block_size", 0)
    if isinstance(axis, Missing) or isinstance(block, Missing):
        return None
    return Dequantize(
        node,
        scale.name or "",
        zero.name if zero is not None else None,
        axis,
        block,
    )


def _slice_ranges(node: onnx_ir.Node, shape: Shape) -> tuple[tuple[int, int, int], ...] | None:
    ranges = [(0, size, 1) for size in shape]
    try:
        for axis, start, end, step in slice_bounds(node, len(shape)):
            ranges[axis] = clamped(start, end, step, shape[axis])
    except NotKnownError:
        return None
    return tuple(ranges)


def _shapes_after(node: onnx_ir.Node, shape: Shape) -> list[Shape] | None:
    """Return the shapes of a node's outputs; None if they are not known."""
    try:
        found = output_shapes(node, [shape])
    except NotKnownError:
        return None
    return [tuple(size for size in sizes if isinstance(size, int)) for sizes in found]


def _split(node: onnx_ir.Node, view: View) -> list[tuple[onnx_ir.Value, View]] | None:
    shape = view.shape
    axis = _axis(node, "axis", len(shape), 0)
    if axis is None:
        return None
    shapes = _shapes_after(node, shape)
    if shapes is None:
        return None
    sizes = [each[axis] for each in shapes]
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
