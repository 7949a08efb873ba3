"""Parameters and slots: what is stored, and where a layer reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.evidence import Evidence
from tieops.ir.metadata.keys import evidence_of, lr_factor_of, names_of
from tieops.ir.notation import brief, printable
from tieops.ir.view import Join, Shape, View

__all__ = ["Entry", "Parameter", "Read", "Slot"]


@dataclass(frozen=True, eq=False)
class Parameter:
    """One stored tensor that layers read: an initializer, or the value of a Constant node.

    Example:
        >>> ones = onnx_ir.tensor(np.ones((2, 3), np.float32))
        >>> value = onnx_ir.Value(name="fc.weight", const_value=ones)
        >>> print(Parameter(value))
        fc.weight: f32[2,3]
    """

    value: onnx_ir.Value = field(repr=False)
    """The value in the graph; its ``const_value`` holds the bytes."""

    @property
    def name(self) -> str:
        """The name it is stored under."""
        return self.value.name or ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name it is known by, its own first."""
        return names_of(self.value)

    @property
    def tensor(self) -> onnx_ir.TensorProtocol:
        """The stored tensor; shape and dtype cost nothing, values are mapped where they can be."""
        tensor = self.value.const_value
        if tensor is None:
            raise ValueError(f"{self.name} has no stored value")
        return tensor

    @cached_property
    def dtype(self) -> onnx_ir.DataType:
        """The ONNX data type that is stored."""
        return self.tensor.dtype

    @cached_property
    def shape(self) -> Shape:
        """The stored shape."""
        return tuple(int(size) for size in self.tensor.shape.numpy())

    @cached_property
    def elements(self) -> int:
        """How many elements are stored."""
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """How many bytes are stored."""
        return int(self.tensor.nbytes)

    @property
    def lr_factor(self) -> float:
        """The factor of the learning rate when it is trained; stored in the file."""
        return lr_factor_of(self.value)

    @property
    def evidence(self) -> Evidence:
        """Why its readers share it; one stored tensor is evidence of storage by itself."""
        return evidence_of(self.value) or Evidence.STORAGE

    @property
    def is_overridable(self) -> bool:
        """Whether it is also a graph input, so that a caller may pass another value."""
        return self.value.is_graph_input()

    @property
    def is_constant_node(self) -> bool:
        """Whether it is the value of a Constant node and not an initializer."""
        return self.value.producer() is not None

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the values, of shape ``self.shape``; mapped, not read, where that is possible."""
        return self.tensor.numpy()

    def __repr__(self) -> str:
        return f"<Parameter {self}>"

    def __str__(self) -> str:
        return f"{printable(self.name)}: {brief(self.dtype, self.shape)}"


@dataclass(frozen=True, eq=False)
class Entry:
    """Where a parameter is handed to the outermost function call on its way to a slot."""

    index: int
    """Which input of the call; the call is the first of the slot's ``path``."""
    view: View
    """What the call is handed."""
    nodes: tuple[onnx_ir.Node, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Read:
    """One way from a parameter to a slot."""

    parameter: Parameter
    view: View
    nodes: tuple[onnx_ir.Node, ...] = field(default=(), repr=False)
    """The nodes of the view, in the order of reading; Identity nodes included."""
    entry: Entry | None = None
    """Where it enters a function, if it does."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a layer reads a learnable.

    A slot has one read, or several where a static Concat joins parts of parameters on the way (the
    gates of a recurrent layer), or where what it computes from a weight begins with several views.
    """

    layer: str
    role: str
    node: onnx_ir.Node = field(repr=False)
    index: int
    """Which input of ``node``."""
    reads: tuple[Read, ...]
    path: tuple[onnx_ir.Node, ...] = field(default=(), repr=False)
    """The function calls that lead to ``node``, outermost first."""
    first_role: str = ""
    """The role under which the same layer reads the same tensor first; empty if that is this."""

    @property
    def name(self) -> str:
        """``layer.role``, unique in the model."""
        return f"{self.layer}.{self.role}" if self.layer else self.role

    @property
    def reader(self) -> tuple[str, str]:
        """Who reads: the layer at this call, and the role under which it reads first."""
        return self.layer, self.first_role or self.role

    @property
    def parameter(self) -> Parameter:
        """The parameter that it reads; the first part's, where several are joined."""
        return self.reads[0].parameter

    @property
    def view(self) -> View:
        """How it reads its parameter; the first part's view, where several are joined."""
        return self.reads[0].view

    @property
    def is_joined(self) -> bool:
        """Whether it reads parts joined by a Concat, or what is computed from several."""
        joins = any(isinstance(step, Join) for read in self.reads for step in read.view.steps)
        return joins or self.is_computed

    @property
    def is_computed(self) -> bool:
        """Whether it reads what is computed from the parameter."""
        return any(read.view.computed for read in self.reads)

    @cached_property
    def logical_bytes(self) -> int:
        """The bytes that this reader would own if nothing were shared."""
        bits = sum(r.view.elements * r.parameter.dtype.bitwidth for r in self._parts())
        return (bits + 7) // 8

    def _parts(self) -> list[Read]:
        # A Join's shape is the whole Concat's: what counts is the part that goes into it.
        parts = [Read(read.parameter, read.view.moved) for read in self.reads]
        return [max(parts, key=lambda part: part.view.elements)] if self.is_computed else parts

    def __str__(self) -> str:
        views = {str(read.view) for read in self.reads if not read.view.is_identity}
        text = printable(self.name)
        return f"{text} ({', '.join(sorted(views))})" if views else text
