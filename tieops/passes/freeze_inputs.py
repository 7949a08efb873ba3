"""Freeze inputs: a value for good in the place of one that a caller feeds, or may override."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir

from tieops.arguments import names_of
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.edit import insert_initializer, remove_initializer, remove_input
from tieops.ir.notation import brief, printable
from tieops.ir.walk import nested_graphs
from tieops.model import Model, TiedModel
from tieops.passes.base import Change, Plan, Preserves, Rewrite, SurgeryPass, run

__all__ = ["FreezeInputsPass", "FreezeInputsPlan", "freeze_inputs"]

Array = np.ndarray[Any, Any]


def freeze_inputs(model: Model, inputs: str | Iterable[str] | Mapping[str, Any]) -> TiedModel:
    """Make inputs constants.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.
        inputs: Names of inputs that have a stored value, which a caller may override (IR version 3
            lists all weights among the inputs): they keep the value. Or values by names, for any
            input: arrays, or numbers and lists of them, which take the input's dtype if it holds
            them exactly.

    Returns:
        A new model without these inputs. Where a size of the value has a name in the input's shape
        ("batch"), every shape with that name has the size now.

    Raises:
        SelectionError: If the model has no such input.
        PreconditionError: If an input has no stored value and none is given, or a value does not
            fit the input's dtype or shape.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[n, 2] x, float s) => (float[n, 2] y) { y = Mul(x, s) }''')
        >>> [v.name for v in freeze_inputs(TiedModel(graph), {"s": 0.5}).inputs]
        ['x']
    """
    if isinstance(inputs, Mapping):
        values = {name: np.asarray(value) for name, value in inputs.items()}
        names_of(values, "names of inputs")
    else:
        values = dict.fromkeys(names_of(inputs, "names of inputs"))
    frozen, _ = run(FreezeInputsPass(inputs=tuple(values.items())), model)
    return frozen


@dataclass(frozen=True, kw_only=True, eq=False)
class FreezeInputsPlan(Plan):
    """Which inputs become constants.

    Args:
        values: The inputs, each with its value; None for the one that is stored.
    """

    values: Mapping[onnx_ir.Value, Array | None]


@dataclass(frozen=True, kw_only=True)
class FreezeInputsPass(SurgeryPass[FreezeInputsPlan]):
    """Make inputs constants; see ``freeze_inputs``.

    Args:
        inputs: An input, as name to keep its stored value, or as name=value.
    """

    preserves: ClassVar[Preserves] = Preserves.BITS
    inputs: tuple[tuple[str, Array | None], ...] = ()

    def plan(self, model: TiedModel) -> FreezeInputsPlan:
        """Check that there are such inputs, and that the values fit."""
        inputs = {value.name: value for value in model.ir.graph.inputs}
        values: dict[onnx_ir.Value, Array | None] = {}
        for name, array in self.inputs:
            value = inputs.get(name)
            if value is None:
                raise SelectionError(
                    f"the model has no input called {printable(name)}",
                    {"inputs": ", ".join(printable(each or "") for each in inputs)},
                    "name one of these",
                )
            if array is None and value.const_value is None:
                raise PreconditionError(
                    f"the input {printable(name)} has no stored value",
                    None,
                    f'give one: freeze_inputs(model, {{"{printable(name)}": value}})',
                )
            values[value] = None if array is None else _fitting(value, array)
        return FreezeInputsPlan(model=model, values=values)

    def apply(self, model: onnx_ir.Model, plan: FreezeInputsPlan) -> Rewrite:
        """Store the values, and take the inputs away."""
        changes: list[Change] = []
        for value, array in plan.values.items():
            if array is not None:
                _store(model, value, array)
            remove_input(model, value)
            stored = value.const_value
            assert stored is not None
            what = brief(stored.dtype, tuple(stored.shape.numpy()))
            changes.append(Change(f"input {value.name}", f"a constant, {what}"))
        return Rewrite(tuple(changes))


def _store(model: onnx_ir.Model, value: onnx_ir.Value, array: Array) -> None:
    """Store an array as the value of an input, and bind the names of sizes that it has."""
    bound = {
        size.value: length
        for size, length in zip(value.shape or (), array.shape, strict=False)
        if isinstance(size, onnx_ir.SymbolicDim) and size.value is not None
    }
    remove_initializer(value)
    value.const_value = onnx_ir.Tensor(array, value.dtype, name=value.name)
    value.shape = onnx_ir.Shape(array.shape)
    insert_initializer(model.graph, value)
    if bound:
        _bind(model, bound)


def _bind(model: onnx_ir.Model, bound: Mapping[str, int]) -> None:
    """Give sizes their values in all shapes of the main graph and of those nested in it."""
    for graph in nested_graphs(model.graph):
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.shape is not None:
                sizes = [
                    bound.get(each.value or "", each)
                    if isinstance(each, onnx_ir.SymbolicDim)
                    else each
                    for each in value.shape.dims
                ]
                value.shape = onnx_ir.Shape(sizes)


def _fitting(value: onnx_ir.Value, array: Array) -> Array:
    """Return an array in an input's dtype.

    Raises:
        PreconditionError: If the dtype does not hold it, or the shape is another one.
    """
    wanted = brief(value.dtype, None if value.shape is None else value.shape.dims)
    if value.dtype is None or not isinstance(value.type, onnx_ir.TensorType):
        raise PreconditionError(
            f"the input {printable(value.name or '')} is not a tensor of a known dtype",
            {"type": str(value.type)},
            "freeze inputs that are tensors",
        )
    sizes = () if value.shape is None else value.shape.dims
    fits = value.shape is None or (
        len(sizes) == array.ndim
        and all(a == b for a, b in zip(sizes, array.shape, strict=True) if isinstance(a, int))
    )
    cast = _cast(array, value.dtype.numpy()) if fits else None
    if cast is None:
        raise PreconditionError(
            f"the value for the input {printable(value.name or '')} does not fit it",
            {"expected": wanted, "got": f"{array.dtype}{list(array.shape)}"},
            "give an array of the input's dtype and shape",
        )
    return cast


def _cast(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return a copy of an array in a dtype; None if it does not hold the values exactly.

    Floats take Python's numbers, which numpy has as float64, rounded: nobody writes 0.1 otherwise.
    """
    if array.dtype == dtype:
        return array.copy()
    if array.dtype.kind not in "biuf" or dtype.kind not in "biufV":
        return None
    if array.dtype.kind == "b" or dtype.kind == "b":
        return None  # a flag is not a number
    cast = array.astype(dtype)
    if array.dtype == np.float64 and dtype.kind in "fV":
        return cast
    return cast if np.array_equal(cast.astype(array.dtype), array) else None
