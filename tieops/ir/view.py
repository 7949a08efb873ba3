"""Views: the chain of element moves through which a slot reads its parameter.

A view composes (``then``), applies to an array, tells whether it shares elements with another one
(``overlaps``) and, if it only permutes axes, inverts. Casts and dequantization end what can be
undone; joins (one part of a Concat) and computations are shown, not applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.notation import brief_dtype

__all__ = [
    "Cast",
    "Computed",
    "Dequantize",
    "Join",
    "Reshape",
    "Slice",
    "Step",
    "Transpose",
    "View",
]

Shape = tuple[int, ...]
MAX_OVERLAP_WORK = 10_000
"""How hard numpy may try to decide whether two views overlap."""


@dataclass(frozen=True)
class Transpose:
    """Axis ``i`` of the result is axis ``perm[i]`` of what is read."""

    perm: Shape

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        return tuple(shape[axis] for axis in self.perm)

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        return array.transpose(self.perm)

    def __str__(self) -> str:
        return "transpose" if self.perm == (1, 0) else f"transpose{list(self.perm)}"


@dataclass(frozen=True)
class Reshape:
    """The same elements in row-major order under another shape; Squeeze and Flatten too."""

    sizes: Shape

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        del shape
        return self.sizes

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        return array.reshape(self.sizes)

    def __str__(self) -> str:
        return f"reshape{list(self.sizes)}"


@dataclass(frozen=True)
class Slice:
    """A regular block of what is read: one ``(start, stop, step)`` an axis."""

    ranges: tuple[tuple[int, int, int], ...]

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        return tuple(len(range(*each)) for each, _ in zip(self.ranges, shape, strict=True))

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        return array[tuple(_as_slice(*each) for each in self.ranges)]

    def __str__(self) -> str:
        parts = [f"{a}:{b}" + (f":{s}" if s != 1 else "") for a, b, s in self.ranges]
        return f"slice[{','.join(parts)}]"


def _as_slice(start: int, stop: int, step: int) -> slice:
    if not len(range(start, stop, step)):
        return slice(0, 0)
    # Going backwards, a stop of -1 means down to and including 0, which Python spells None.
    return slice(start, None if stop < 0 else stop, step)


@dataclass(frozen=True)
class Cast:
    """The values in another dtype; the parameter is stored in the first one."""

    dtype: onnx_ir.DataType

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        return shape

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        return array.astype(self.dtype.numpy())

    def __str__(self) -> str:
        return f"cast {brief_dtype(self.dtype)}"


@dataclass(frozen=True)
class Dequantize:
    """DequantizeLinear with stored scale and zero point."""

    node: onnx_ir.Node = field(compare=False, repr=False)
    scale: str
    zero_point: str | None
    axis: int
    block_size: int

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        return shape

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        scale = self._operand(1)
        zero_point = self._operand(2)
        if scale is None:
            raise ValueError("the scale is not stored in the model")
        along = self._spread(scale, array)
        zeros = 0 if zero_point is None else self._spread(zero_point, array).astype(np.int32)
        return ((array.astype(np.int32) - zeros).astype(np.float32) * along).astype(scale.dtype)

    def _operand(self, index: int) -> np.ndarray[Any, Any] | None:
        inputs = self.node.inputs
        value = inputs[index] if index < len(inputs) else None
        if value is None or value.const_value is None:
            return None
        return value.const_value.numpy()

    def _spread(self, operand: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> Any:
        if operand.size == 1:
            return operand.reshape(())
        if self.block_size:
            # One scale serves a block of elements along the axis. The last block may be incomplete,
            # so the repeated scales are cut to the size of the tensor.
            return np.repeat(operand, self.block_size, axis=self.axis)[
                tuple(slice(0, size) for size in array.shape)
            ]
        sizes = [1] * array.ndim
        sizes[self.axis] = -1
        return operand.reshape(sizes)

    def __str__(self) -> str:
        return "dequantize"


@dataclass(frozen=True)
class Join:
    """One part of a static Concat: the reader sees this part beside others."""

    axis: int
    start: int
    """Where the part begins along the axis."""
    sizes: Shape
    """The shape of the whole."""

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        del shape
        return self.sizes

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        raise ValueError("a part of a Concat has no value without the other parts")

    def __str__(self) -> str:
        return f"from {self.start} on in a concat"


@dataclass(frozen=True)
class Computed:
    """What a layer computes from the weight, and from nothing that an input decides, to use it.

    The last step of a view: a norm of the weight, a gain times a direction, a straight-through
    form.
    """

    nodes: tuple[onnx_ir.Node, ...] = field(compare=False, repr=False)
    """What computes it, in an order in which it can be computed."""
    sizes: Shape
    """The shape of the result."""

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        del shape
        return self.sizes

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        raise ValueError("what a layer computes from its weight is not followed")

    def __str__(self) -> str:
        return "computed"


Step = Transpose | Reshape | Slice | Cast | Dequantize | Join | Computed


@dataclass(frozen=True)
class View:
    """The chain of steps between a parameter and the slot that reads it.

    Args:
        source: The shape of the stored parameter.
        steps: What is done to it, in the order of reading; empty means that it is read as it is.

    Example:
        >>> view = View((50257, 768)).then(Transpose((1, 0)))
        >>> str(view), view.shape
        ('transpose', (768, 50257))
        >>> view.then(Transpose((1, 0))).is_identity
        True
    """

    source: Shape
    steps: tuple[Step, ...] = ()

    @property
    def shape(self) -> Shape:
        """The shape that the reader sees."""
        shape = self.source
        for each in self.steps:
            shape = each.shape(shape)
        return shape

    @property
    def is_identity(self) -> bool:
        """Whether the reader sees the parameter exactly as it is stored."""
        return not self.steps

    @property
    def moved(self) -> View:
        """The view of the parameter alone: without what joins it to others or computes from it."""
        ends = (i for i, step in enumerate(self.steps) if isinstance(step, Join | Computed))
        return View(self.source, self.steps[: next(ends, len(self.steps))])

    @property
    def computed(self) -> tuple[onnx_ir.Node, ...]:
        """The nodes that compute what the reader sees, where it is more than a view."""
        last = self.steps[-1] if self.steps else None
        return last.nodes if isinstance(last, Computed) else ()

    @property
    def permutation(self) -> Shape | None:
        """The axes' order if the view permutes axes and does nothing else, else None."""
        if not self.steps:
            return tuple(range(len(self.source)))
        match self.steps:
            case (Transpose(perm),):
                return perm
            case _:
                return None

    def then(self, step: Step) -> View:
        """Return this view followed by one more step, simplified where two steps are one."""
        # Equal reads must have equal chains, whatever an exporter wrote in between: readers, ties
        # and retying compare views step by step. So neighbours are merged as they are added:
        # transposes are composed, of two reshapes only the last counts, and a step without effect
        # is dropped. A transpose and a reshape are not exchanged, because that is not exact for
        # every shape.
        last = self.steps[-1] if self.steps else None
        if isinstance(step, Transpose):
            if isinstance(last, Transpose):
                # Axis i of the result is axis step.perm[i] of the transposed tensor, which is axis
                # last.perm[step.perm[i]] of the stored one. Adding it to the head again lets it
                # vanish if the two cancel, and meet the step before it.
                perm = tuple(last.perm[axis] for axis in step.perm)
                head = View(self.source, self.steps[:-1])
                return head.then(Transpose(perm))
            if step.perm == tuple(range(len(step.perm))):
                return self
        if isinstance(step, Reshape):
            head = View(self.source, self.steps[:-1]) if isinstance(last, Reshape) else self
            return head if head.shape == step.sizes else head._with(step)
        if isinstance(step, Slice) and step.ranges == tuple((0, size, 1) for size in self.shape):
            return self
        return self._with(step)

    def _with(self, step: Step) -> View:
        return View(self.source, (*self.steps, step))

    def invert(self) -> View:
        """Return the view that undoes this one.

        Raises:
            ValueError: If the view drops elements or changes their dtype.
        """
        result = View(self.shape)
        shapes = [self.source]
        for step in self.steps:
            shapes.append(step.shape(shapes[-1]))
        # A reshape is undone by the shape that it was given, which no step records: the shapes are
        # computed forwards first, and then walked backwards together with the steps.
        for step, before in zip(reversed(self.steps), reversed(shapes[:-1]), strict=True):
            match step:
                case Transpose(perm):
                    result = result.then(Transpose(tuple(int(axis) for axis in np.argsort(perm))))
                case Reshape():
                    result = result.then(Reshape(before))
                case _:
                    raise ValueError(f"{step} cannot be undone")
        return result

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return what the reader sees of ``array`` (shape ``source``), without a copy if it can be.

        Raises:
            ValueError: If the view holds a part of a Concat or a computation, or the array has
                another shape.
        """
        if array.shape != self.source:
            raise ValueError(f"expected an array of shape {self.source}, got {array.shape}")
        for step in self.steps:
            array = step.apply(array)
        return array

    def footprint(self, ground: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """Return the part of an array of the parameter's shape that this view reads.

        Args:
            ground: Any array of shape ``source``; its pages are not touched.

        Returns:
            A view of ``ground``; None if the elements that are read are not a view of memory.
        """
        array = ground
        for step in self.steps:
            if isinstance(step, Join | Computed):
                break
            if isinstance(step, Cast | Dequantize):
                continue
            array = step.apply(array)
            if array.size and not np.may_share_memory(array, ground):
                return None  # a reshape that copied
        return array

    def overlaps(self, other: View) -> bool:
        """Return whether two views of one parameter share an element; True where it is unclear.

        Example:
            >>> rows = View((4, 2))
            >>> upper = rows.then(Slice(((0, 2, 1), (0, 2, 1))))
            >>> lower = rows.then(Slice(((2, 4, 1), (0, 2, 1))))
            >>> upper.overlaps(lower), upper.overlaps(rows)
            (False, True)
        """
        ground = np.empty(self.source, np.uint8)
        return share(self.footprint(ground), other.footprint(ground))

    @property
    def elements(self) -> int:
        """How many elements the reader sees."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return " → ".join(str(step) for step in self.steps)


def share(one: np.ndarray[Any, Any] | None, other: np.ndarray[Any, Any] | None) -> bool:
    """Return whether two footprints share memory; True where it is hard to tell.

    numpy decides it from addresses and strides; no element is looked at.
    """
    if one is None or other is None:
        return True
    if not one.size or not other.size:
        return False
    try:
        return np.shares_memory(one, other, max_work=MAX_OVERLAP_WORK)  # pyright: ignore[reportArgumentType] - its stub knows 0 and -1
    except np.exceptions.TooHardError:
        return True


def relative(base: Sequence[int], perm: Sequence[int]) -> Shape:
    """Return the order of axes that leads from one reordering of a tensor to another.

    Args:
        base: The order in which the first one has the tensor's axes.
        perm: The order in which the second one has them.

    Example:
        >>> relative((1, 0), (0, 1)), relative((1, 0), (1, 0))
        ((1, 0), (0, 1))
    """
    places = {axis: place for place, axis in enumerate(base)}
    return tuple(places[axis] for axis in perm)


def permuted(shape: Sequence[int], perm: Sequence[int]) -> Shape:
    """Return the shape that ``shape`` has after its axes were put in the order ``perm``."""
    return tuple(shape[axis] for axis in perm)
