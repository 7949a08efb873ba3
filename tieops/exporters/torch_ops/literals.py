"""Operands that arrive as Python numbers: files have scalars where vectors are due, and back."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Number", "Numbers", "one", "several"]

Number = int | float
Numbers = Number | Sequence[Number]


def one(operand: Numbers) -> Number:
    """Return a number, or the only one of a vector.

    Example:
        >>> one(3), one((3,))
        (3, 3)
    """
    if not isinstance(operand, Sequence):
        return operand
    (number,) = operand
    return number


def several(operand: Numbers) -> Sequence[Number]:
    """Return a vector of numbers.

    Example:
        >>> several(3), several((3, 4))
        ((3,), (3, 4))
    """
    return operand if isinstance(operand, Sequence) else (operand,)
