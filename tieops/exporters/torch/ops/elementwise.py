"""Elementwise arithmetic, comparison and logic."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tieops.exporters.torch.ops.registry import op

Operand: TypeAlias = Any
"""A tensor or a Python number; torch's stubs know one of the two in many a place."""

BOTH = (0, 1)

op("Add", scalars=BOTH)(torch.add)
op("Sub", scalars=BOTH)(torch.sub)
op("Mul", scalars=BOTH)(torch.mul)
op("Equal", scalars=(1,))(torch.eq)
op("Less", scalars=(1,))(torch.lt)
op("LessOrEqual", scalars=(1,))(torch.le)
op("Greater", scalars=(1,))(torch.gt)
op("GreaterOrEqual", scalars=(1,))(torch.ge)
op("And")(torch.logical_and)
op("Or")(torch.logical_or)
op("Xor")(torch.logical_xor)
op("Not")(torch.logical_not)
op("BitwiseAnd")(torch.bitwise_and)
op("BitwiseOr")(torch.bitwise_or)
op("BitwiseXor")(torch.bitwise_xor)
op("BitwiseNot")(torch.bitwise_not)

op("Abs")(torch.abs)
op("Neg")(torch.neg)
op("Sign")(torch.sign)
op("Ceil")(torch.ceil)
op("Floor")(torch.floor)
op("Round")(torch.round)
op("Sqrt")(torch.sqrt)
op("Reciprocal")(torch.reciprocal)
op("Exp")(torch.exp)
op("Log")(torch.log)
op("Erf")(torch.erf)
op("IsNaN")(torch.isnan)
op("Sin")(torch.sin)
op("Cos")(torch.cos)
op("Tan")(torch.tan)
op("Asin")(torch.asin)
op("Acos")(torch.acos)
op("Atan")(torch.atan)
op("Sinh")(torch.sinh)
op("Cosh")(torch.cosh)
op("Asinh")(torch.asinh)
op("Acosh")(torch.acosh)
op("Atanh")(torch.atanh)
op("Det")(torch.det)


def _is_real(x: Operand) -> bool:
    return isinstance(x, float) or (isinstance(x, Tensor) and x.is_floating_point())


@op("Div", scalars=BOTH)
def div(a: Operand, b: Operand) -> Tensor:
    """Divide; integers are truncated towards zero."""
    if _is_real(a) or _is_real(b):
        return torch.true_divide(a, b)
    return torch.div(a, b, rounding_mode="trunc")


@op("Mod", scalars=(1,))
def mod(a: Tensor, b: Operand, *, fmod: int = 0) -> Tensor:
    """Return the rest of a division, of the sign of the divisor, or of the dividend (``fmod``)."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@op("Pow", scalars=(1,))
def power(a: Tensor, b: Operand) -> Tensor:
    """Raise to a power; the result has the base's dtype."""
    found = torch.pow(a, b)
    return found if found.dtype == a.dtype else found.to(a.dtype)


@op("BitShift")
def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    """Shift unsigned integers; torch shifts the wider signed ones only."""
    wide, count = a.to(torch.int64), b.to(torch.int64)
    if direction == "LEFT":
        return (wide << count).to(a.dtype)
    # The sign bit of a 64-bit number is a bit like the others.
    shifted = (wide >> count) & ((torch.ones_like(count) << (64 - count)) - 1)
    return torch.where(count == 0, wide, shifted).to(a.dtype)


@op("Sum")
def add_all(*inputs: Tensor) -> Tensor:
    """Add any number of tensors."""
    return reduce(torch.add, inputs)


@op("Mean")
def mean_all(*inputs: Tensor) -> Tensor:
    """Average any number of tensors."""
    return reduce(torch.add, inputs) / len(inputs)


@op("Max")
def max_all(*inputs: Tensor) -> Tensor:
    """Return the largest of any number of tensors."""
    return reduce(torch.maximum, inputs)


@op("Min")
def min_all(*inputs: Tensor) -> Tensor:
    """Return the smallest of any number of tensors."""
    return reduce(torch.minimum, inputs)


@op("Clip", scalars=(1, 2))
def clip(x: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """Limit to a range; an upper limit below the lower one wins."""
    # One after the other, for torch takes two numbers or two tensors, but not one of each.
    x = x if min is None else torch.clamp(x, min=min)
    return x if max is None else torch.clamp(x, max=max)


@op("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Choose element by element."""
    return torch.where(condition, a, b)


@op("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Find infinities of the signs asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_positive:
        found = found | (x == math.inf)
    if detect_negative:
        found = found | (x == -math.inf)
    return found


@op("Einsum")
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """Sum products as an equation says."""
    return torch.einsum(equation, *inputs)


@op("Identity")
def identity(x: Any) -> Any:
    """Return what is given."""
    return x
