"""Shape rules of operators that rearrange elements: concatenate, split, expand, pad and slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir

from tieops.ir.operators.identity import operator_name
from tieops.ir.operators.operands import (
    ABSENT,
    Missing,
    known_ints,
    operand,
)
from tieops.ir.operators.reshaping_shapes import RESHAPING_RULES
from tieops.ir.operators.sizes import (
    NotKnownError,
    Resized,
    Rule,
    Shapes,
    Size,
    Sizes,
    bound_int,
    broadcast,
    common_size,
    existing_axes,
    existing_axis,
    given_ints,
    only_resized,
    size_before,
    sizes_of_input,
)

__all__ = ["MOVING_RULES", "clamped", "slice_bounds"]

_TO_THE_END = (2**31 - 1, 2**63 - 1)


def _transpose(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    perm = node.attributes.get("perm")
    order = list(perm.as_ints()) if perm is not None else list(reversed(range(len(sizes))))
    if sorted(order) != list(range(len(sizes))):
        raise NotKnownError(f"its perm has {len(order)} axes, its input {len(sizes)}")
    return [[sizes[axis] for axis in order]]


def _concat(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    if "axis" not in node.attributes:
        raise NotKnownError("it has no axis")
    every = [sizes_of_input(shapes, index) for index in range(len(node.inputs))]
    rank = len(every[0])
    axis = existing_axis(bound_int(node, "axis", 0), rank)
    if any(len(sizes) != rank for sizes in every):
        raise NotKnownError("its inputs have different ranks")
    result: list[Size] = []
    for at in range(rank):
        found = [sizes[at] for sizes in every]
        result.append(_sum(found) if at == axis else common_size(found))
    return [result]


def _sum(sizes: Sizes) -> Size:
    old = _total([size_before(size) for size in sizes])
    if not any(isinstance(size, Resized) for size in sizes):
        return old
    new = _total([size.new if isinstance(size, Resized) else size for size in sizes])
    if old is None or new is None:
        raise NotKnownError("it joins the axis with one of unknown size")
    return Resized(old, new)


def _total(sizes: Sizes) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return sum(known) if len(known) == len(sizes) else None


def _split(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    axis = existing_axis(bound_int(node, "axis", 0), len(sizes))
    return [
        [part if at == axis else size for at, size in enumerate(sizes)]
        for part in _parts(node, sizes[axis])
    ]


def _parts(node: onnx_ir.Node, size: Size) -> Sequence[Size]:
    parts = operand(node, 1, "split")
    count = len(node.outputs)
    if isinstance(parts, tuple):
        if len(parts) != count or min(parts) < 0:
            raise NotKnownError(f"it splits into {list(parts)}")
        if isinstance(size, Resized) or (isinstance(size, int) and size != sum(parts)):
            raise NotKnownError(f"it splits the axis into {list(parts)}")
        return parts
    if parts is not ABSENT:
        raise NotKnownError("the sizes it splits into are not known")
    if bound_int(node, "num_outputs", count) != count:
        raise NotKnownError(f"it has {count} outputs, not as many as it says")
    if isinstance(size, Resized):
        raise NotKnownError(f"it splits the axis into {count} equal parts")
    if not isinstance(size, int):
        return [None] * count
    each = -(-size // count)
    last = size - each * (count - 1)
    if last < 0 or (last != each and "num_outputs" not in node.attributes):
        raise NotKnownError(f"{size} elements do not split into {count} equal parts")
    return [each] * (count - 1) + [last]


def _expand(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    target = given_ints(node, 1, "shape", "it expands to sizes that are not known")
    if min(target, default=0) < 0:
        raise NotKnownError(f"it expands to {list(target)}")
    for size, wanted in zip(reversed(sizes_of_input(shapes)), reversed(target), strict=False):
        if isinstance(size, Resized) and wanted != 1:
            raise NotKnownError(f"it expands to {list(target)}")
    return [broadcast(node, [sizes_of_input(shapes), target])]


def _tile(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    if len(node.inputs) != 2:
        raise NotKnownError("it repeats along an axis that is an input")
    repeats = given_ints(node, 1, "repeats", "how often it repeats is not known")
    if len(repeats) != len(sizes) or min(repeats, default=0) < 0:
        raise NotKnownError(f"it repeats {list(repeats)} times")
    return [[_scaled(size, count) for size, count in zip(sizes, repeats, strict=True)]]


def _scaled(size: Size, factor: int) -> Size:
    if isinstance(size, Resized):
        return Resized(size.old * factor, size.new * factor)
    if factor == 1:
        return size
    return size * factor if isinstance(size, int) else None


def _pad(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    name = "paddings" if "paddings" in node.attributes else "pads"
    pads = given_ints(node, 1, name, "how much it pads is not known")
    axes = operand(node, 3, "axes")
    if axes is ABSENT:
        axes = tuple(range(len(sizes)))
    if isinstance(axes, Missing) or len(pads) != 2 * len(axes):
        raise NotKnownError("the axes it pads are not known")
    places = existing_axes(axes, len(sizes))
    if len(set(places)) < len(places):
        raise NotKnownError("it pads an axis twice")
    result = list(sizes)
    for at, axis in enumerate(places):
        more, size = pads[at] + pads[at + len(places)], sizes[axis]
        if pads[at] == pads[at + len(places)] == 0:
            continue
        if isinstance(size, Resized):
            raise NotKnownError("it pads the axis")
        result[axis] = size + more if isinstance(size, int) else None
    return [result]


def _gather(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes, ids = sizes_of_input(shapes), sizes_of_input(shapes, 1)
    axis = existing_axis(bound_int(node, "axis", 0), len(sizes))
    along = sizes[axis]
    if isinstance(along, Resized):
        indices = known_ints(node.inputs[1])
        if indices is None or any(not -along.new <= each < along.new for each in indices):
            raise NotKnownError(f"it takes elements {list(indices or ())[:8]} of the axis")
    return [[*sizes[:axis], *ids, *sizes[axis + 1 :]]]


def _slice(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    result = list(sizes_of_input(shapes))
    for axis, start, end, step in slice_bounds(node, len(result)):
        result[axis] = _cut(result[axis], start, end, step)
    return [result]


def slice_bounds(node: onnx_ir.Node, rank: int) -> list[tuple[int, int, int, int]]:
    """Return the axis, start, end and step of each axis that a Slice cuts, as they are given.

    Raises:
        NotKnownError: If one of its operands is not known, or they do not fit together.
    """
    starts, ends = operand(node, 1, "starts"), operand(node, 2, "ends")
    axes, steps = operand(node, 3, "axes"), operand(node, 4, "steps")
    if isinstance(starts, Missing) or isinstance(ends, Missing):
        raise NotKnownError("it slices by computed bounds")
    if axes is ABSENT:
        axes = tuple(range(len(starts)))
    if steps is ABSENT:
        steps = (1,) * len(starts)
    if isinstance(axes, Missing) or isinstance(steps, Missing):
        raise NotKnownError("it slices by computed bounds")
    places = existing_axes(axes, rank)
    if not len(starts) == len(ends) == len(places) == len(steps) or 0 in steps:
        raise NotKnownError("its operands differ in length, or a step is 0")
    if len(set(places)) < len(places):
        raise NotKnownError("it slices an axis twice")
    return list(zip(places, starts, ends, steps, strict=True))


def _cut(size: Size, start: int, end: int, step: int) -> Size:
    if isinstance(size, int):
        return len(range(*clamped(start, end, step, size)))
    if isinstance(size, Resized):
        full = [(0, each, 1) for each in (size.old, size.new)]
        named = end == size.old  # the old size, even where the new one is smaller
        if not named and [clamped(start, end, step, each) for each in (size.old, size.new)] == full:
            return size
        raise NotKnownError(f"it slices {start}:{end} of the axis")
    return size if (start, step) == (0, 1) and end >= 2**31 - 1 else None


def clamped(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    """Return a slice's bounds as ONNX Runtime clamps them, which is not how Python does.

    Going backwards, an end of -1 is behind the last element that is read, which Python spells None.
    The largest integer of 32 or 64 bits stands for the end in both directions.
    """
    start += size if start < 0 else 0
    if step > 0:
        end += size if end < 0 else 0
        return min(max(start, 0), size), min(max(end, 0), size), step
    if end in _TO_THE_END:
        end = -1
    elif end < 0:
        end += size
    return min(max(start, 0), size - 1), min(max(end, -1), size - 1), step


def _depth_to_space(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    block = bound_int(node, "blocksize", 0)
    if len(sizes) != 4 or block < 1 or any(isinstance(size, Resized) for size in sizes[1:]):
        raise NotKnownError("shape propagation does not support this operator")
    batch, depth, height, width = sizes
    if operator_name(node) == "DepthToSpace":
        return [[batch, _divided(depth, block**2), _scaled(height, block), _scaled(width, block)]]
    return [[batch, _scaled(depth, block**2), _divided(height, block), _divided(width, block)]]


def _divided(size: Size, factor: int) -> Size:
    return size // factor if isinstance(size, int) and size % factor == 0 else None


MOVING_RULES: Mapping[str, Rule] = {
    **RESHAPING_RULES,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "SpaceToDepth": _depth_to_space,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}
