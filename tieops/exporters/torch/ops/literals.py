"""Operands that arrive as Python numbers: convert between scalars and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Ints", "Numbers", "one", "several"]

Ints = list[int] | tuple[int, ...]
Numbers = int | float | Sequence[int] | Sequence[float]


def one(operand: Numbers) -> Any:
    """Return a number, or the only one of a vector.

    Example:
        >>> one(3), one((3,))
        (3, 3)
    """
    if not isinstance(operand, Sequence):
        return operand
    (number,) = operand
    return number


def several(operand: Numbers) -> tuple[Any, ...]:
    """Return a vector of numbers.

    Example:
        >>> several(3), several((3, 4))
        ((3,), (3, 4))
    """
    return tuple(operand) if isinstance(operand, Sequence) else (operand,)
