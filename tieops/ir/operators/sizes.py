"""Sizes and shapes as shape rules use them, and helpers that most rules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir

from tieops.ir.operators.operands import Missing, int_attribute, operand

__all__ = [
    "NotKnownError",
    "Resized",
    "Rule",
    "Shapes",
    "Size",
    "Sizes",
    "bound_int",
    "broadcast",
    "common_size",
    "drop_axes",
    "existing_axes",
    "existing_axis",
    "given_ints",
    "input_name",
    "only_resized",
    "product",
    "size_before",
    "sizes_of_input",
]


@dataclass(frozen=True)
class Resized:
    """A size that a pass is about to change."""

    old: int
    new: int

    def __str__(self) -> str:
        return str(self.old)


Size: TypeAlias = "int | Resized | onnx_ir.SymbolicDim | None"
Sizes: TypeAlias = Sequence[Size]
Shapes: TypeAlias = Sequence[Sizes | None]
"""One for each input, None where the rank is not known or the input is not given."""

Rule: TypeAlias = Callable[[onnx_ir.Node, Shapes], list[Sizes]]


class NotKnownError(Exception):
    """Why the shape of an output is not known; the pass that asks names the node."""


def sizes_of_input(shapes: Shapes, index: int = 0) -> Sizes:
    """Return the shape of an input.

    Raises:
        NotKnownError: If its rank is not known.
    """
    found = shapes[index] if index < len(shapes) else None
    if found is None:
        raise NotKnownError("the rank of what it reads is not known")
    return found


def only_resized(shapes: Shapes, *allowed: int) -> None:
    """Refuse a size that changes in any other input.

    Raises:
        NotKnownError: If there is one.
    """
    for index, sizes in enumerate(shapes):
        if index not in allowed and any(isinstance(size, Resized) for size in sizes or ()):
            raise NotKnownError("shape propagation does not support this operator")


def given_ints(node: onnx_ir.Node, index: int, name: str, why: str) -> tuple[int, ...]:
    """Return an operand that has to be given.

    Raises:
        NotKnownError: If it is absent or not known, for the reason ``why``.
    """
    found = operand(node, index, name)
    if isinstance(found, Missing):
        raise NotKnownError(why)
    return found


def bound_int(node: onnx_ir.Node, name: str, default: int) -> int:
    """Return an integer attribute of a node whose attributes are all bound."""
    found = int_attribute(node, name, default)
    assert not isinstance(found, Missing)
    return found


def existing_axis(axis: int, rank: int) -> int:
    """Return an axis, not negative.

    Raises:
        NotKnownError: If there is no such axis.
    """
    if not -rank <= axis < rank:
        raise NotKnownError(f"its axis {axis} is out of range for rank {rank}")
    return axis % rank


def existing_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Return axes, none of them negative.

    Raises:
        NotKnownError: If there is no such axis.
    """
    return [existing_axis(axis, rank) for axis in axes]


def product(sizes: Sizes) -> int | None:
    """Return how many elements there are; None if a size is not known."""
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def is_same_size(one: Size, other: Size) -> bool:
    if isinstance(one, onnx_ir.SymbolicDim) and one.value is None:
        return False
    return one is not None and one == other


def broadcast(node: onnx_ir.Node, shapes: Shapes) -> list[Size]:
    """Return the shape that the inputs have together.

    Raises:
        NotKnownError: If a shape is not known, or a size that changes does not fit the others.
    """
    for index, sizes in enumerate(shapes):
        if sizes is None:
            raise NotKnownError(f"the shape of {input_name(node, index)} is not known")
    rank = max((len(sizes or ()) for sizes in shapes), default=0)
    result: list[Size] = []
    for place in range(-rank, 0):
        found: Size = 1
        behind = [
            (index, sizes[place])
            for index, sizes in enumerate(shapes)
            if sizes is not None and len(sizes) >= -place
        ]
        # A size that changes comes first: all others are compared with it.
        for index, size in sorted(behind, key=lambda each: not isinstance(each[1], Resized)):
            found = _met(node, index, found, size)
        result.append(found)
    return result


def _met(node: onnx_ir.Node, index: int, found: Size, size: Size) -> Size:
    """Return the size that two broadcast sizes have together."""
    if isinstance(found, Resized):
        return _met_resized(node, index, found, size)
    if size == 1 or is_same_size(found, size):
        return found
    if found == 1:
        return size
    if isinstance(found, int) and isinstance(size, int):
        raise NotKnownError(f"sizes {found} and {size} do not fit")
    return found if isinstance(found, int) else size if isinstance(size, int) else None


def _met_resized(node: onnx_ir.Node, index: int, found: Resized, size: Size) -> Size:
    if size in (found, 1):
        return found
    name = input_name(node, index)
    if not isinstance(size, int):
        raise NotKnownError(f"{name} has an unknown size along this axis")
    if found.old == 1:
        raise NotKnownError(f"it is broadcast against {name}, which has {size}")
    value = node.inputs[index]
    stored = value is not None and value.const_value is not None
    what = "a stored constant" if stored else "another value"
    raise NotKnownError(f"{name} is {what} of the old size")


def input_name(node: onnx_ir.Node, index: int) -> str:
    """Return what to call an input in a message."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return (value.name if value is not None else None) or f"input {index}"


def common_size(sizes: Sizes) -> Size:
    """Return the size of an axis that is the same in several tensors.

    Raises:
        NotKnownError: If they cannot be the same.
    """
    if any(isinstance(size, Resized) for size in sizes) and len(set(sizes)) > 1:
        raise NotKnownError("it joins the axis with others of the old size")
    numbers = {size for size in sizes if isinstance(size, int)}
    if len(numbers) > 1:
        raise NotKnownError(f"sizes {sorted(numbers)} do not fit")
    return next(iter(numbers)) if numbers else sizes[0]


def drop_axes(sizes: Sizes, axes: Sequence[int], *, keep: bool) -> list[Size]:
    """Return the sizes without some axes; with 1 in their place if they are kept."""
    return [
        1 if axis in axes else size for axis, size in enumerate(sizes) if keep or axis not in axes
    ]


def size_before(size: Size) -> Size:
    """Return a size as it is now."""
    return size.old if isinstance(size, Resized) else size
