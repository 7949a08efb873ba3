"""Shape rules of operators that keep elements in order, such as Reshape and Squeeze."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from tieops.ir.operators.operands import (
    ABSENT,
    Missing,
    is_given,
    operand,
)
from tieops.ir.operators.predicates import is_reshape
from tieops.ir.operators.sizes import (
    NotKnownError,
    Resized,
    Rule,
    Shapes,
    Size,
    Sizes,
    bound_int,
    drop_axes,
    existing_axes,
    given_ints,
    only_resized,
    product,
    size_before,
    sizes_of_input,
)

__all__ = ["RESHAPING_RULES", "resized_target"]


def _squeeze(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    axes = operand(node, 1, "axes")
    if axes is not ABSENT and axes != ():
        if isinstance(axes, Missing):
            raise NotKnownError("the axes it drops are not known")
        gone = existing_axes(axes, len(sizes))
        for axis in gone:
            if isinstance(sizes[axis], Resized):
                raise NotKnownError("it drops the axis, which has to be of size 1")
            if isinstance(size := sizes[axis], int) and size != 1:
                raise NotKnownError(f"it drops an axis of size {size}")
        return [drop_axes(sizes, gone, keep=False)]
    for size in sizes:
        if isinstance(size, Resized) and 1 in (size.old, size.new):
            raise NotKnownError("it drops the axis, which has to be of size 1")
        if not isinstance(size, int | Resized):
            raise NotKnownError("the axes it drops are not known")
    return [[size for size in sizes if size != 1]]


def _unsqueeze(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    only_resized(shapes, 0)
    sizes = sizes_of_input(shapes)
    axes = given_ints(node, 1, "axes", "which axes it adds is not known")
    rank = len(sizes) + len(axes)
    new = existing_axes(axes, rank)
    if len(set(new)) < len(new):
        raise NotKnownError("it adds an axis twice")
    rest = iter(sizes)
    return [[1 if axis in new else next(rest) for axis in range(rank)]]


def _flatten(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    axis = bound_int(node, "axis", 1)
    if not -len(sizes) <= axis <= len(sizes):
        raise NotKnownError(f"its axis {axis} is out of range for rank {len(sizes)}")
    axis = axis + len(sizes) if axis < 0 else axis
    return [[_merged(sizes[:axis]), _merged(sizes[axis:])]]


def _merged(sizes: Sizes) -> Size:
    """Return the size of several axes made one."""
    others = [size for size in sizes if size != 1]
    if len(others) == 1:
        return others[0]
    if any(isinstance(size, Resized) for size in sizes):
        raise NotKnownError("it merges the axis with others")
    return product(sizes)


def _reshape(node: onnx_ir.Node, shapes: Shapes) -> list[Sizes]:
    sizes = sizes_of_input(shapes)
    if any(isinstance(size, Resized) for size in sizes):
        result, _ = _resized_reshape(node, shapes)
        return [result]
    target = _target(node, sizes)
    result: list[Size] = [
        sizes[axis] if size == 0 and not bound_int(node, "allowzero", 0) else size
        for axis, size in enumerate(target)
    ]
    total = product(sizes)
    if -1 in target:
        rest = product([size for size in result if size != -1])
        fits = total is not None and rest and total % rest == 0
        if total is not None and rest is not None and not fits:
            raise NotKnownError(f"it reshapes {total} elements to {list(target)}")
        inferred = total // rest if total is not None and rest else None
        return [[inferred if size == -1 else size for size in result]]
    if total is not None and product(result) not in (None, total):
        raise NotKnownError(f"it reshapes {total} elements to {list(target)}")
    return [result]


def _target(node: onnx_ir.Node, sizes: Sizes) -> tuple[int, ...]:
    target = given_ints(node, 1, "shape", "the sizes it reshapes to are not known")
    short = not bound_int(node, "allowzero", 0) and 0 in target[len(sizes) :]
    if min(target, default=0) < -1 or target.count(-1) > 1 or short:
        raise NotKnownError(f"it reshapes to {list(target)}")
    return target


def resized_target(node: onnx_ir.Node, shapes: Shapes) -> tuple[int, ...] | None:
    """Return the operand that a Reshape needs after the change; None if it can stay.

    Raises:
        NotKnownError: If no operand would do, or it is an attribute.
    """
    return _resized_reshape(node, shapes)[1] if is_reshape(node) else None


def _resized_reshape(
    node: onnx_ir.Node, shapes: Shapes
) -> tuple[list[Size], tuple[int, ...] | None]:
    only_resized(shapes, 0)
    shape = sizes_of_input(shapes)
    axis = next(axis for axis, size in enumerate(shape) if isinstance(size, Resized))
    resized = shape[axis]
    assert isinstance(resized, Resized)
    target = _target(node, shape)
    if bound_int(node, "allowzero", 0) and 0 in target:
        raise NotKnownError(f"it reshapes to {list(target)}")
    sizes: list[Size] = [size if size != 0 else shape[at] for at, size in enumerate(target)]
    spots = [spot for spot in range(len(sizes)) if _is_axis(shape, axis, sizes, spot)]
    # A size that is 1 now cannot be distinguished from the other ones.
    if not spots or (resized.old == 1 and len(spots) > 1):
        raise NotKnownError(f"it reshapes to {list(target)}")
    spot = spots[0]
    if any(isinstance(size, Resized) for at, size in enumerate(sizes) if at != spot):
        raise NotKnownError(f"it reshapes to {list(target)}")
    # A number: also where a 0 takes it from another axis, which happens to be of the old size.
    named = isinstance(sizes[spot], int) and target[spot] != -1
    sizes[spot] = resized
    if named and not is_given(node, 1):
        raise NotKnownError(f"it reshapes to {list(target)}, by an attribute")
    # As many elements lie before the axis as did, and as many behind it.
    is_behind = -1 in sizes[spot:]
    before = shape[axis + 1 :] if is_behind else shape[:axis]
    left_open = _open_size(before, sizes[spot + 1 :] if is_behind else sizes[:spot])
    return (
        [left_open if size == -1 else size for size in sizes],
        tuple(resized.new if at == spot else size for at, size in enumerate(target))
        if named
        else None,
    )


def _is_axis(shape: Sizes, axis: int, sizes: Sizes, spot: int) -> bool:
    """Return whether one size of a Reshape is the axis whose size changes.

    The axis comes out as one if as many elements lie behind it, and as many before it, as did. What
    is left open (-1) behind it takes what lies behind, whatever that is.

    Args:
        shape: What goes in; the size at ``axis`` is ``Resized``.
        axis: Which one.
        sizes: What comes out, -1 where it is left open.
        spot: Which of these is asked about.
    """
    resized, size, rest = shape[axis], sizes[spot], sizes[spot + 1 :]
    assert isinstance(resized, Resized)
    same_before = _without_ones(sizes[:spot]) == _without_ones(shape[:axis])
    if size not in (resized, resized.old) and not (size == -1 and same_before):
        return False
    if -1 in rest:
        return same_before
    behind = product(shape[axis + 1 :])
    return behind is not None and product([size_before(each) for each in rest]) == behind


def _open_size(shape: Sizes, target: Sizes) -> Size:
    """Return the size that a target leaves open, where all others are known."""
    total = product([size_before(size) for size in shape])
    rest = product([size_before(size) for size in target if size != -1])
    return total // rest if total is not None and rest else None


def _without_ones(sizes: Sizes) -> list[str]:
    return [str(size) for size in sizes if size != 1]


RESHAPING_RULES: Mapping[str, Rule] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
