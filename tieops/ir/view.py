"""How a slot reads its parameter: a chain of steps that move elements and change none of them.

A view composes (``then``), applies to an array, tells which elements it reads (``region``) and, if
it only permutes axes, inverts. Casts and dequantization end what can be undone; joins (one part of
a Concat) are shown, not applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.brief import brief_dtype

__all__ = ["Cast", "Dequantize", "Join", "Reshape", "Slice", "Step", "Transpose", "View"]

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]


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
        # A negative stop means "down to and including 0" in ONNX's normalised ranges.
        return array[tuple(slice(a, None if b < 0 else b, s) for a, b, s in self.ranges)]

    def __str__(self) -> str:
        parts = [f"{a}:{b}" + (f":{s}" if s != 1 else "") for a, b, s in self.ranges]
        return f"slice[{','.join(parts)}]"


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
    index: int
    sizes: Shape

    def shape(self, shape: Shape) -> Shape:
        """Return the shape after this step."""
        del shape
        return self.sizes

    def apply(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the values after this step."""
        raise ValueError("a part of a Concat has no value without the other parts")

    def __str__(self) -> str:
        return f"part {self.index} of concat"


Step = Transpose | Reshape | Slice | Cast | Dequantize | Join


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
        last = self.steps[-1] if self.steps else None
        if isinstance(step, Transpose):
            if isinstance(last, Transpose):
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
            ValueError: If the view holds a part of a Concat, or the array has another shape.
        """
        if array.shape != self.source:
            raise ValueError(f"expected an array of shape {self.source}, got {array.shape}")
        for step in self.steps:
            array = step.apply(array)
        return array

    @property
    def region(self) -> Box:
        """The half-open box of the parameter that holds all elements read, one range an axis.

        Exact through Transpose and Slice; after a Reshape that follows nothing but the whole
        parameter it stays the box known before it.
        """
        box = [(0, size) for size in self.source]
        axes: list[int] | None = list(range(len(self.source)))
        for step in self.steps:
            if axes is None:
                break
            match step:
                case Transpose(perm):
                    axes = [axes[axis] for axis in perm]
                case Slice(ranges):
                    for axis, each in zip(axes, ranges, strict=True):
                        inside = range(*each)
                        start = box[axis][0]
                        low, high = (min(inside), max(inside) + 1) if len(inside) else (0, 0)
                        box[axis] = (start + low, start + high)
                    if any(step != 1 for _, _, step in ranges):
                        axes = None  # what follows reads within the box that is known now
                case Reshape() | Join():
                    axes = None
                case _:
                    pass
        return tuple(box)

    @property
    def elements(self) -> int:
        """How many elements the reader sees."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return " → ".join(str(step) for step in self.steps)


def overlaps(one: Box, other: Box) -> bool:
    """Tell whether two boxes share an element.

    Example:
        >>> overlaps(((0, 4), (0, 2)), ((4, 8), (0, 2)))
        False
    """
    return all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


def permuted(shape: Sequence[int], perm: Sequence[int]) -> Shape:
    """Return the shape that ``shape`` has after its axes were put in the order ``perm``."""
    return tuple(shape[axis] for axis in perm)
