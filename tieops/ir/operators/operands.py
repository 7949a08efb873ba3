"""Read an operand that may be an attribute or an input: absent, known, or unknown before the run.

An operand (the axes of a Squeeze, the sizes of a Reshape) has three states: absent, known, or not
known before the run. From opset to opset, many operands changed from attributes to inputs. An input
is known if it is stored and cannot be overridden by a caller, or if it is computed from such
tensors by exact operators on integers. A reference attribute in a function's body is not known,
because each call may bind another value.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir

from tieops.ir.operators.identity import is_standard, operator_name
from tieops.ir.operators.predicates import is_constant_operator, is_shape

__all__ = [
    "ABSENT",
    "UNKNOWN",
    "Missing",
    "bool_attribute",
    "has_bound_attributes",
    "int_attribute",
    "is_given",
    "known_array",
    "known_floats",
    "known_ints",
    "operand",
]

Array: TypeAlias = np.ndarray[Any, Any]
MAX_OPERAND_ELEMENTS = 4096
"""Operands such as shapes, axes and starts are small; larger constants are not read for them."""
MAX_STEPS = 256
"""An operand that takes more steps than this to compute is not known."""
_INTEGERS = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32)
_NUMBERS = (
    *_INTEGERS,
    onnx_ir.DataType.BOOL,
    onnx_ir.DataType.FLOAT,
    onnx_ir.DataType.DOUBLE,
    onnx_ir.DataType.FLOAT16,
)


class Missing(enum.Enum):
    """Why an operand has no value that could be used before the run."""

    ABSENT = "absent"
    """It is not given: the operator's default holds."""
    UNKNOWN = "not known before the run"
    """It is given, and any value may come: nothing that depends on it can be told."""


ABSENT: Final = Missing.ABSENT
UNKNOWN: Final = Missing.UNKNOWN


def is_given(node: onnx_ir.Node, index: int) -> bool:
    """Return whether a node has this input; an optional one may be left out or empty."""
    return index < len(node.inputs) and node.inputs[index] is not None


def has_bound_attributes(node: onnx_ir.Node) -> bool:
    """Return whether all attributes of a node have values; references depend on the call."""
    return not any(attr.is_ref() for attr in node.attributes.data.values())


def int_attribute(node: onnx_ir.Node, name: str, default: int) -> int | Missing:
    """Return an integer attribute; ``UNKNOWN`` if it is a reference."""
    attr = node.attributes.get(name)
    if attr is None:
        return default
    return UNKNOWN if attr.is_ref() else attr.as_int()


def bool_attribute(node: onnx_ir.Node, name: str, *, default: bool) -> bool | Missing:
    """Return an attribute that is a flag; ``UNKNOWN`` if it is a reference."""
    found = int_attribute(node, name, int(default))
    return found if isinstance(found, Missing) else bool(found)


def operand(node: onnx_ir.Node, index: int, name: str) -> tuple[int, ...] | Missing:
    """Return the integers of an operand that is an input in some opsets, an attribute in others.

    Args:
        node: The node.
        index: Which input it is, in opsets where it is one.
        name: What the attribute is called, in opsets where it is one.

    Returns:
        Its integers, one for a scalar; ``ABSENT`` or ``UNKNOWN``.

    Example:
        >>> x, axes = onnx_ir.Value(name="x"), onnx_ir.Value(name="axes")
        >>> operand(onnx_ir.node("Squeeze", [x], {"axes": [0]}), 1, "axes")
        (0,)
        >>> operand(onnx_ir.node("Squeeze", [x]), 1, "axes")
        <Missing.ABSENT: 'absent'>
        >>> operand(onnx_ir.node("Squeeze", [x, axes]), 1, "axes")
        <Missing.UNKNOWN: 'not known before the run'>
    """
    if is_given(node, index):
        found = known_ints(node.inputs[index])
        return UNKNOWN if found is None else found
    attr = node.attributes.get(name)
    if attr is None:
        return ABSENT
    if attr.is_ref():
        return UNKNOWN
    if attr.type == onnx_ir.AttributeType.INT:
        return (attr.as_int(),)
    return tuple(attr.as_ints()) if attr.type == onnx_ir.AttributeType.INTS else UNKNOWN


def known_ints(value: onnx_ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers that a value holds on every run; None if they are not known or not few.

    Example:
        >>> known_ints(onnx_ir.Value(const_value=onnx_ir.tensor([2, 3])))
        (2, 3)
    """
    array = known_array(value)
    if array is None or array.dtype not in (np.int64, np.int32):
        return None
    return tuple(int(each) for each in array.reshape(-1))


def known_floats(value: onnx_ir.Value | None) -> tuple[float, ...] | None:
    """Return the floats that a value holds on every run; None if they are not known or not few."""
    array = known_array(value)
    if array is None or array.dtype.kind != "f":
        return None
    return tuple(float(each) for each in array.reshape(-1))


def known_array(value: onnx_ir.Value | None) -> Array | None:
    """Return what a small value of numbers is on every run, or None.

    It is known if it is stored, or computed from stored tensors by Identity, Cast between integers
    and to booleans, Concat, Gather, Slice, Squeeze, Unsqueeze, Reshape, Shape, logic or comparison.
    """
    # Iterative: a file decides how long the chains are.
    found: dict[onnx_ir.Value | None, Array] = {}
    stack, steps = [value], 0
    while stack:
        current = stack[-1]
        steps += 1
        if current is None or steps > MAX_STEPS:
            return None
        if current in found:
            stack.pop()
            continue
        node = current.producer()
        if node is None or is_constant_operator(node):
            array = _stored_array(current)
        elif not is_standard(node) or not has_bound_attributes(node) or len(node.outputs) != 1:
            return None
        elif is_shape(node):
            array = _shape_of(node)
        else:
            missing = [each for each in node.inputs if each not in found]
            if missing:
                stack += missing
                continue
            array = _folded(node, [found[each] for each in node.inputs])
        if array is None or array.size > MAX_OPERAND_ELEMENTS:
            return None
        found[current] = array
    return found[value]


def _folded(node: onnx_ir.Node, arrays: Sequence[Array]) -> Array | None:
    """Return what a node computes, where that is exact; None if it is not, or would fail."""
    try:
        logic = _LOGIC.get(operator_name(node))
        if logic is not None:
            return None if node.attributes else np.asarray(logic(*arrays))
        return _moved(node, arrays)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None  # a node that would fail at run time too


_LOGIC: Mapping[str, Callable[..., Array]] = {
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}


def _moved(node: onnx_ir.Node, arrays: Sequence[Array]) -> Array | None:
    data, count = arrays[0], len(arrays)
    axis = int_attribute(node, "axis", 0)
    assert not isinstance(axis, Missing)
    match operator_name(node):
        case "Identity" if count == 1:
            return data
        case "Cast" if count == 1:
            return _cast(node, data)
        case "Concat" if "axis" in node.attributes:
            return np.concatenate(arrays, axis=axis)
        case "Gather" if count == 2:
            return np.take(data, arrays[1], axis=axis)
        case "Squeeze":
            return np.squeeze(data, _ints(node, arrays, 1, "axes") or None)
        case "Unsqueeze":
            axes = _ints(node, arrays, 1, "axes")
            return None if axes is None else np.expand_dims(data, axes)
        case "Reshape" if not node.attributes and count == 2 and (arrays[1] > 0).all():
            return data.reshape(tuple(int(each) for each in arrays[1]))
        case "Slice" if data.ndim == 1:
            return _sliced(node, arrays)
        case _:
            return None


def _ints(
    node: onnx_ir.Node, arrays: Sequence[Array], index: int, name: str
) -> tuple[int, ...] | None:
    """Return an operand of a node whose inputs are all known; None if it is absent."""
    if index < len(arrays):
        return tuple(int(each) for each in arrays[index].reshape(-1))
    attr = node.attributes.get(name)
    return None if attr is None else tuple(attr.as_ints())


def _cast(node: onnx_ir.Node, data: Array) -> Array | None:
    # Of other targets rounding and overflow would have to be told.
    to = int_attribute(node, "to", 0)
    if to == onnx_ir.DataType.BOOL:
        return data.astype(np.bool_)
    if to not in _INTEGERS or data.dtype.kind != "i":
        return None
    cast = data.astype(np.int64 if to == onnx_ir.DataType.INT64 else np.int32)
    return cast if np.array_equal(cast, data) else None


def _sliced(node: onnx_ir.Node, arrays: Sequence[Array]) -> Array | None:
    starts, ends = _ints(node, arrays, 1, "starts"), _ints(node, arrays, 2, "ends")
    axes, steps = _ints(node, arrays, 3, "axes"), _ints(node, arrays, 4, "steps")
    if axes not in (None, (0,), (-1,)) or steps not in (None, (1,)):
        return None
    if starts is None or ends is None or len(starts) != 1 or len(ends) != 1:
        return None
    return arrays[0][starts[0] : ends[0]]


def _shape_of(node: onnx_ir.Node) -> Array | None:
    # The shape of a stored tensor holds on every run, also if a caller overrides its values.
    value = node.inputs[0] if node.inputs else None
    if value is None or value.const_value is None:
        return None
    sizes = np.array([int(size) for size in value.const_value.shape.numpy()], np.int64)
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", len(sizes))
    assert not isinstance(start, Missing)
    assert not isinstance(end, Missing)
    return sizes[start:end]


def _stored_array(value: onnx_ir.Value) -> Array | None:
    """Return the array of an initializer that nobody can override, or of a Constant node."""
    tensor = None if value.is_graph_input() else _stored(value)
    if tensor is None or tensor.dtype not in _NUMBERS or tensor.size > MAX_OPERAND_ELEMENTS:
        return None
    return np.asarray(tensor.numpy())


def _stored(value: onnx_ir.Value) -> onnx_ir.TensorProtocol | None:
    producer = value.producer()
    if producer is None or value.const_value is not None:
        return value.const_value
    for name, attr in producer.attributes.items():
        if attr.is_ref():
            return None
        if name == "value":
            return attr.as_tensor()
        if name in ("value_int", "value_ints"):
            return onnx_ir.tensor(np.array(attr.value, np.int64))
        if name in ("value_float", "value_floats"):
            return onnx_ir.tensor(np.array(attr.value, np.float32))
    return None
