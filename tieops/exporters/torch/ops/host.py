"""Operators on Python numbers: sizes, axes and values computed from them.

Torch traces a program with symbolic sizes as long as they stay Python integers. A value of rank 0
is a number here, one of rank 1 a tuple.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from tieops.exporters.torch.ops.shape import device_of

Numbers: TypeAlias = int | bool | tuple[int, ...]


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


def _rest(a: int, b: int) -> int:
    return a - b * _truncated(a, b)


def mod(a: Numbers, b: Numbers, *, fmod: int = 0) -> Any:
    """Return the rest of a division, of the sign of the divisor, or of the dividend (``fmod``)."""
    return _each(_rest if fmod else operator.mod, a, b)


def _chosen(condition: bool, a: int, b: int) -> int:
    return a if condition else b


add = _elementwise("add", operator.add)
sub = _elementwise("sub", operator.sub)
mul = _elementwise("mul", operator.mul)
div = _elementwise("div", _truncated)
neg = _elementwise("neg", operator.neg)
absolute = _elementwise("absolute", abs)
maximum = _elementwise("maximum", torch.sym_max)
minimum = _elementwise("minimum", torch.sym_min)
equal = _elementwise("equal", operator.eq)
less = _elementwise("less", operator.lt)
less_or_equal = _elementwise("less_or_equal", operator.le)
greater = _elementwise("greater", operator.gt)
greater_or_equal = _elementwise("greater_or_equal", operator.ge)
not_ = _elementwise("not_", operator.not_)
and_ = _elementwise("and_", operator.and_)
or_ = _elementwise("or_", operator.or_)
where = _elementwise("where", _chosen)


def identity(x: Numbers) -> Numbers:
    """Return what is given."""
    return x


def length(x: tuple[int, ...], *, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    """Return the shape of a tuple."""
    return (len(x),)[start:end]


def cast(x: Numbers, *, to: torch.dtype, saturate: int = 1) -> Numbers:
    """Convert to another integer type, or to bool."""
    return _each(bool, x) if to == torch.bool else _each(_integer, x)


def _integer(x: int) -> int:
    return int(x) if isinstance(x, bool) else x


def gather(x: tuple[int, ...], indices: Numbers, *, axis: int = 0) -> Numbers:
    """Take numbers out of a tuple."""
    return _each(x.__getitem__, indices)


def slice_(
    x: tuple[int, ...], starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Numbers:
    """Cut a range out of a tuple."""
    return x[starts[0] : ends[0] : steps[0] if steps is not None else 1]


def concat(*inputs: tuple[int, ...], axis: int = 0) -> tuple[int, ...]:
    """Join tuples."""
    return tuple(number for each in inputs for number in each)


def unsqueeze(x: int, axes: Any = None) -> tuple[int, ...]:
    """Make a tuple of a number."""
    return (x,)


def squeeze(x: tuple[int, ...], axes: Any = None) -> int:
    """Take the only number out of a tuple."""
    (only,) = x
    return only


def reshape(x: Numbers, shape: Any, *, allowzero: int = 0) -> Numbers:
    """Make a tuple of a number, or a number of a tuple."""
    numbers = x if isinstance(x, tuple) else (x,)
    return numbers if len(shape) else numbers[0]


def constant_of_shape(shape: tuple[int, ...], *, value: int, dtype: torch.dtype) -> Numbers:
    """Return a tuple of one number, or the number."""
    return (value,) * shape[0] if shape else value


def _reduced(function: Callable[[Sequence[int]], int], x: Numbers, keepdims: int) -> Numbers:
    total = function(x if isinstance(x, tuple) else (x,))
    return (total,) if keepdims and isinstance(x, tuple) else total


def product(x: Numbers, axes: Any = None, *, keepdims: int = 1) -> Numbers:
    """Multiply the numbers of a tuple."""
    return _reduced(math.prod, x, keepdims)


def total(x: Numbers, axes: Any = None, *, keepdims: int = 1) -> Numbers:
    """Add the numbers of a tuple."""
    return _reduced(sum, x, keepdims)


def to_tensor(numbers: Numbers, dtype: torch.dtype, like: Any = None) -> torch.Tensor:
    """Make a tensor of numbers, on the device that the program runs on."""
    return torch.tensor(numbers, dtype=dtype, device=device_of(like))


def to_numbers(x: torch.Tensor) -> Any:
    """Read a small tensor: a number or a tuple. What depends on data cannot be traced past this."""
    found: Any = x.tolist()
    return tuple(found) if isinstance(found, list) else found
