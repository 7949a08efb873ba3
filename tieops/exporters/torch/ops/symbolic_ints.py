"""Symbolic integers: values that are sizes or axes, or computed from them alone.

They are Python numbers, because torch traces a program with symbolic sizes only while these stay
Python integers. A value is one of them if it is a Shape or a Size, or is computed from those and
small constants by operators that have a version for Python numbers. A value of rank 0 is a number,
and one of rank 1 is a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir

from tieops.exporters.torch.ops import host
from tieops.exporters.torch.ops.shape import shape_of, size_of
from tieops.ir.operators.identity import is_standard
from tieops.ir.operators.predicates import is_shape
from tieops.ir.walk import nested_graphs

__all__ = ["ON_INTEGERS", "SymbolicInts", "find_symbolic_ints", "literal_of"]

INTEGERS = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32, onnx_ir.DataType.BOOL)
MAX_LITERAL_ELEMENTS = 64
"""Constants above this size are data."""


@dataclass(frozen=True)
class SymbolicInts:
    """What is known of such a value before the program runs."""

    rank: int
    dtype: onnx_ir.DataType


def literal_of(value: onnx_ir.Value) -> Any:
    """Return a stored constant as a Python number or a tuple of them; None if it is none.

    A stored value that a caller of the graph may override is a constant too: the module's forward
    does not take it.
    """
    tensor = value.const_value
    if tensor is None or tensor.dtype == onnx_ir.DataType.STRING:
        return None
    if len(tensor.shape) > 1 or tensor.size > MAX_LITERAL_ELEMENTS:
        return None
    found = tensor.numpy().tolist()
    return tuple(found) if isinstance(found, list) else found


Rule: TypeAlias = Callable[[onnx_ir.Node, Sequence[SymbolicInts]], int | None]
"""From a node and its inputs to the rank of its output; None if it is data."""


def _widest(_: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int:
    return max(each.rank for each in inputs)


def _same(_: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int:
    return inputs[0].rank


def _vector(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int | None:
    axis = node.attributes.get_int("axis", 0)
    return 1 if all(each.rank == 1 for each in inputs) and axis in (0, -1) else None


def _cast(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int | None:
    return inputs[0].rank if node.attributes["to"].as_int() in INTEGERS else None


def _gather(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int | None:
    return inputs[1].rank if inputs[0].rank == 1 else None


def _unsqueeze(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int | None:
    return 1 if inputs[0].rank == 0 and len(_operand(node, "axes") or ()) == 1 else None


def _squeeze(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int | None:
    return 0 if inputs[0].rank == 1 else None


def _reshape(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int | None:
    shape = _operand(node, "shape")
    return len(shape) if shape in ((), (1,), (-1,)) else None


def _filled(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int | None:
    value = node.attributes.get("value")
    if value is None or value.as_tensor().dtype not in INTEGERS:
        return None
    shape = node.inputs[0]
    known = literal_of(shape) if shape is not None else None
    return 1 if known is None else len(known) if len(known) <= 1 else None


def _reduce(node: onnx_ir.Node, inputs: Sequence[SymbolicInts]) -> int:
    return inputs[0].rank if node.attributes.get_int("keepdims", 1) else 0


def _operand(node: onnx_ir.Node, name: str) -> tuple[int, ...] | None:
    """Return a list that is an attribute up to some opset and a constant input after it."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    value = node.inputs[1] if len(node.inputs) > 1 else None
    found = literal_of(value) if value is not None else None
    return found if found is None or isinstance(found, tuple) else (found,)


ON_INTEGERS: Mapping[str, tuple[Callable[..., Any], Rule]] = {
    "Shape": (shape_of, lambda node, inputs: 1),
    "Size": (size_of, lambda node, inputs: 0),
    "Identity": (host.identity, _same),
    "Cast": (host.cast, _cast),
    "Gather": (host.gather, _gather),
    "Slice": (host.slice_, _vector),
    "Concat": (host.concat, _vector),
    "Unsqueeze": (host.unsqueeze, _unsqueeze),
    "Squeeze": (host.squeeze, _squeeze),
    "Reshape": (host.reshape, _reshape),
    "ConstantOfShape": (host.constant_of_shape, _filled),
    "ReduceProd": (host.product, _reduce),
    "ReduceSum": (host.total, _reduce),
    "Add": (host.add, _widest),
    "Sub": (host.sub, _widest),
    "Mul": (host.mul, _widest),
    "Div": (host.div, _widest),
    "Mod": (host.mod, _widest),
    "Neg": (host.neg, _same),
    "Abs": (host.absolute, _same),
    "Max": (host.maximum, _widest),
    "Min": (host.minimum, _widest),
    "Equal": (host.equal, _widest),
    "Less": (host.less, _widest),
    "LessOrEqual": (host.less_or_equal, _widest),
    "Greater": (host.greater, _widest),
    "GreaterOrEqual": (host.greater_or_equal, _widest),
    "Not": (host.not_, _same),
    "And": (host.and_, _widest),
    "Or": (host.or_, _widest),
    "Where": (host.where, _widest),
}
"""Operator to its version for Python numbers and the rank of what that returns."""

_COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or")


def find_symbolic_ints(graph: onnx_ir.Graph) -> dict[onnx_ir.Value, SymbolicInts]:
    """Return the values of a graph and of all nested in it that are carried as Python numbers.

    Constants are not among them: each reader takes them as it likes.
    """
    found: dict[onnx_ir.Value, SymbolicInts] = {}
    for each in nested_graphs(graph):
        for node in each:
            host = _host(node, found)
            if host is not None:
                found[node.outputs[0]] = host
    return found


def _host(node: onnx_ir.Node, found: Mapping[onnx_ir.Value, SymbolicInts]) -> SymbolicInts | None:
    if not is_standard(node) or node.op_type not in ON_INTEGERS:
        return None
    _, rule = ON_INTEGERS[node.op_type]
    if node.op_type in ("Shape", "Size"):
        return SymbolicInts(rule(node, ()) or 0, onnx_ir.DataType.INT64)
    operands = [value for value in node.inputs if value is not None]
    known = [found.get(value) or _constant(value) for value in operands]
    inputs = [each for each in known if each is not None]
    computed = any(value in found for value in operands)
    if node.op_type == "ConstantOfShape":
        # As many numbers as a shape has sizes; as many as a size says would be data.
        maker = operands[0].producer()
        computed = maker is None or (is_shape(maker) and maker.inputs[0] in found)
    if len(inputs) < len(known) or not inputs or not computed:
        return None
    rank = rule(node, inputs)
    if rank is None:
        return None
    dtype = inputs[1 if node.op_type == "Where" else 0].dtype
    if node.op_type in _COMPARISONS:
        dtype = onnx_ir.DataType.BOOL
    elif node.op_type == "Cast":
        dtype = onnx_ir.DataType(node.attributes["to"].as_int())
    elif node.op_type == "ConstantOfShape":
        dtype = node.attributes["value"].as_tensor().dtype
    return SymbolicInts(rank, dtype)


def _constant(value: onnx_ir.Value) -> SymbolicInts | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in INTEGERS or literal_of(value) is None:
        return None
    return SymbolicInts(len(tensor.shape), tensor.dtype)
