"""Integers that are not data: sizes, axes and what is computed of them, carried as Python numbers.

Torch traces a program with symbolic sizes as long as they stay Python integers. A value is on the
host if it is a Shape or a Size, or computed from such and from small constants by operators that
have a version for Python numbers here. A value of rank 0 is a number, one of rank 1 a tuple.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir
import torch

from tieops.exporters.torch_ops.shape import device_of, shape_of, size_of
from tieops.ir.scopes import nested_graphs

__all__ = ["HOST", "Host", "find_host_values", "host_length", "literal_of", "to_numbers", "to_tensor"]

Numbers: TypeAlias = int | bool | tuple[int, ...]

INTEGERS = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32, onnx_ir.DataType.BOOL)
MAX_LITERAL_ELEMENTS = 64
"""Constants above this size are data."""


@dataclass(frozen=True)
class Host:
    """What is known of a value on the host before the program runs."""

    rank: int
    dtype: onnx_ir.DataType


def literal_of(value: onnx_ir.Value) -> Any:
    """Return a stored constant as a Python number or a tuple of them; None if it is none."""
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or tensor.dtype == onnx_ir.DataType.STRING:
        return None
    if len(tensor.shape) > 1 or tensor.size > MAX_LITERAL_ELEMENTS:
        return None
    found = tensor.numpy().tolist()
    return tuple(found) if isinstance(found, list) else found


# --- operators on Python numbers ---------------------------------------------------------------


def _each(function: Callable[..., Any], *operands: Numbers) -> Any:
    """Apply a function of numbers to numbers and tuples, with ONNX's broadcasting."""
    lengths = [len(each) for each in operands if isinstance(each, tuple)]
    if not lengths:
        return function(*operands)
    length = max(lengths)
    wide = [each if isinstance(each, tuple) else (each,) for each in operands]
    columns = [each * length if len(each) == 1 else each for each in wide]
    return tuple(function(*row) for row in zip(*columns, strict=True))


def _elementwise(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*operands: Numbers) -> Any:
        return _each(function, *operands)

    apply.__name__ = apply.__qualname__ = name
    return apply


def _truncated(a: int, b: int) -> int:
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


host_add = _elementwise("host_add", operator.add)
host_sub = _elementwise("host_sub", operator.sub)
host_mul = _elementwise("host_mul", operator.mul)
host_div = _elementwise("host_div", _truncated)
host_mod = _elementwise("host_mod", operator.mod)
host_neg = _elementwise("host_neg", operator.neg)
host_abs = _elementwise("host_abs", abs)
host_max = _elementwise("host_max", torch.sym_max)
host_min = _elementwise("host_min", torch.sym_min)
host_equal = _elementwise("host_equal", operator.eq)
host_less = _elementwise("host_less", operator.lt)
host_less_or_equal = _elementwise("host_less_or_equal", operator.le)
host_greater = _elementwise("host_greater", operator.gt)
host_greater_or_equal = _elementwise("host_greater_or_equal", operator.ge)
host_not = _elementwise("host_not", operator.not_)
host_and = _elementwise("host_and", lambda a, b: a and b)
host_or = _elementwise("host_or", lambda a, b: a or b)
host_where = _elementwise("host_where", lambda condition, a, b: a if condition else b)


def host_identity(x: Numbers) -> Numbers:
    """Return what is given."""
    return x


def host_length(x: tuple[int, ...], *, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    """Return the shape of a tuple."""
    return (len(x),)[start:end]


def host_cast(x: Numbers, *, to: torch.dtype, saturate: int = 1) -> Numbers:
    """Convert to another integer type, or to bool."""
    return _each(bool, x) if to == torch.bool else _each(_integer, x)


def _integer(x: int) -> int:
    return int(x) if isinstance(x, bool) else x


def host_gather(x: tuple[int, ...], indices: Numbers, *, axis: int = 0) -> Numbers:
    """Take numbers out of a tuple."""
    return _each(x.__getitem__, indices)


def host_slice(
    x: tuple[int, ...], starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Numbers:
    """Cut a range out of a tuple."""
    return x[starts[0] : ends[0] : steps[0] if steps is not None else 1]


def host_concat(*inputs: tuple[int, ...], axis: int = 0) -> tuple[int, ...]:
    """Join tuples."""
    return sum(inputs, ())


def host_unsqueeze(x: int, axes: Any = None) -> tuple[int, ...]:
    """Make a tuple of a number."""
    return (x,)


def host_squeeze(x: tuple[int, ...], axes: Any = None) -> int:
    """Take the only number out of a tuple."""
    (only,) = x
    return only


def host_reshape(x: Numbers, shape: Any, *, allowzero: int = 0) -> Numbers:
    """Make a tuple of a number, or a number of a tuple."""
    numbers = x if isinstance(x, tuple) else (x,)
    return numbers if len(shape) else numbers[0]


def host_constant_of_shape(shape: tuple[int, ...], *, value: int, dtype: torch.dtype) -> Numbers:
    """Return a tuple of one number, or the number."""
    return (value,) * shape[0] if shape else value


def _reduced(function: Callable[[Sequence[int]], int], x: Numbers, keepdims: int) -> Numbers:
    total = function(x if isinstance(x, tuple) else (x,))
    return (total,) if keepdims and isinstance(x, tuple) else total


def host_prod(x: Numbers, axes: Any = None, *, keepdims: int = 1) -> Numbers:
    """Multiply the numbers of a tuple."""
    return _reduced(math.prod, x, keepdims)


def host_sum(x: Numbers, axes: Any = None, *, keepdims: int = 1) -> Numbers:
    """Add the numbers of a tuple."""
    return _reduced(sum, x, keepdims)


# --- between the host and tensors --------------------------------------------------------------


def to_tensor(numbers: Numbers, dtype: torch.dtype, like: Any = None) -> torch.Tensor:
    """Make a tensor of numbers, on the device that the program runs on."""
    return torch.tensor(numbers, dtype=dtype, device=device_of(like))


def to_numbers(x: torch.Tensor) -> Any:
    """Read a small tensor: a number or a tuple. What depends on data cannot be traced past this."""
    found = x.tolist()
    return tuple(found) if isinstance(found, list) else found


# --- which values ------------------------------------------------------------------------------

Rule: TypeAlias = Callable[[onnx_ir.Node, Sequence[Host]], int | None]
"""From a node and its inputs to the rank of its output; None if it is not for the host."""


def _widest(_: onnx_ir.Node, inputs: Sequence[Host]) -> int:
    return max(each.rank for each in inputs)


def _same(_: onnx_ir.Node, inputs: Sequence[Host]) -> int:
    return inputs[0].rank


def _vector(node: onnx_ir.Node, inputs: Sequence[Host]) -> int | None:
    axis = node.attributes.get_int("axis", 0)
    return 1 if all(each.rank == 1 for each in inputs) and axis in (0, -1) else None


def _cast(node: onnx_ir.Node, inputs: Sequence[Host]) -> int | None:
    return inputs[0].rank if node.attributes["to"].as_int() in INTEGERS else None


def _gather(node: onnx_ir.Node, inputs: Sequence[Host]) -> int | None:
    return inputs[1].rank if inputs[0].rank == 1 else None


def _unsqueeze(node: onnx_ir.Node, inputs: Sequence[Host]) -> int | None:
    return 1 if inputs[0].rank == 0 and len(_operand(node, "axes") or ()) == 1 else None


def _squeeze(node: onnx_ir.Node, inputs: Sequence[Host]) -> int | None:
    return 0 if inputs[0].rank == 1 else None


def _reshape(node: onnx_ir.Node, inputs: Sequence[Host]) -> int | None:
    shape = _operand(node, "shape")
    return len(shape) if shape in ((), (1,), (-1,)) else None


def _filled(node: onnx_ir.Node, inputs: Sequence[Host]) -> int | None:
    value = node.attributes.get("value")
    if value is None or value.as_tensor().dtype not in INTEGERS:
        return None
    shape = node.inputs[0]
    known = literal_of(shape) if shape is not None else None
    return 1 if known is None else len(known) if len(known) <= 1 else None


def _reduce(node: onnx_ir.Node, inputs: Sequence[Host]) -> int:
    return inputs[0].rank if node.attributes.get_int("keepdims", 1) else 0


def _operand(node: onnx_ir.Node, name: str) -> tuple[int, ...] | None:
    """Return a list that is an attribute up to some opset and a constant input after it."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    value = node.inputs[1] if len(node.inputs) > 1 else None
    found = literal_of(value) if value is not None else None
    return found if found is None or isinstance(found, tuple) else (found,)


HOST: Mapping[str, tuple[Callable[..., Any], Rule]] = {
    "Shape": (shape_of, lambda node, inputs: 1),
    "Size": (size_of, lambda node, inputs: 0),
    "Identity": (host_identity, _same),
    "Cast": (host_cast, _cast),
    "Gather": (host_gather, _gather),
    "Slice": (host_slice, _vector),
    "Concat": (host_concat, _vector),
    "Unsqueeze": (host_unsqueeze, _unsqueeze),
    "Squeeze": (host_squeeze, _squeeze),
    "Reshape": (host_reshape, _reshape),
    "ConstantOfShape": (host_constant_of_shape, _filled),
    "ReduceProd": (host_prod, _reduce),
    "ReduceSum": (host_sum, _reduce),
    "Add": (host_add, _widest),
    "Sub": (host_sub, _widest),
    "Mul": (host_mul, _widest),
    "Div": (host_div, _widest),
    "Mod": (host_mod, _widest),
    "Neg": (host_neg, _same),
    "Abs": (host_abs, _same),
    "Max": (host_max, _widest),
    "Min": (host_min, _widest),
    "Equal": (host_equal, _widest),
    "Less": (host_less, _widest),
    "LessOrEqual": (host_less_or_equal, _widest),
    "Greater": (host_greater, _widest),
    "GreaterOrEqual": (host_greater_or_equal, _widest),
    "Not": (host_not, _same),
    "And": (host_and, _widest),
    "Or": (host_or, _widest),
    "Where": (host_where, _widest),
}
"""Operator to its version for Python numbers and the rank of what that returns."""

_COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or")


def find_host_values(graph: onnx_ir.Graph) -> dict[onnx_ir.Value, Host]:
    """Return the values of a graph and of all nested in it that are carried as Python numbers.

    Constants are not among them: each reader takes them as it likes.
    """
    found: dict[onnx_ir.Value, Host] = {}
    for each in nested_graphs(graph):
        for node in each:
            host = _host(node, found)
            if host is not None:
                found[node.outputs[0]] = host
    return found


def _host(node: onnx_ir.Node, found: Mapping[onnx_ir.Value, Host]) -> Host | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in HOST:
        return None
    _, rule = HOST[node.op_type]
    if node.op_type in ("Shape", "Size"):
        return Host(rule(node, ()) or 0, onnx_ir.DataType.INT64)
    operands = [value for value in node.inputs if value is not None]
    known = [found.get(value) or _constant(value) for value in operands]
    inputs = [each for each in known if each is not None]
    computed = any(value in found for value in operands)
    if node.op_type == "ConstantOfShape":
        # As many numbers as a shape has sizes; as many as a size says would be data.
        maker = operands[0].producer()
        computed = maker is None or (maker.op_type == "Shape" and maker.inputs[0] in found)
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
    return Host(rank, dtype)


def _constant(value: onnx_ir.Value) -> Host | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in INTEGERS or literal_of(value) is None:
        return None
    return Host(len(tensor.shape), tensor.dtype)
