"""The table of operators: which function computes which ONNX operator, from which opset on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

__all__ = ["Operator", "find", "op", "operators", "snake"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Operator:
    """One entry: an operator of ONNX, and what computes it in torch.

    The target takes the operator's inputs by position, ``None`` where an optional one is left out,
    and its attributes by name in snake case (``transA`` is ``trans_a``). What has been an attribute
    and became an input at a later opset is one argument, so that one function serves both. A target
    that is an ``nn.Module`` class takes the attributes when it is made and becomes a submodule.
    """

    op_type: str
    domain: str
    since: int
    """The first opset of this meaning; the entry with the largest one that applies is taken."""
    target: Callable[..., Any]
    literals: tuple[int, ...]
    """Inputs that arrive as Python numbers or lists of them: shapes, axes, sizes."""
    scalars: tuple[int, ...]
    """Inputs that may arrive as a Python number, where a constant of one element is given."""
    many: bool
    """Whether the target returns a tuple, one item an output."""

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """What the target takes, with its defaults; nothing where torch does not tell."""
        try:
            signature = inspect.signature(self.target)
        except ValueError:  # a function of torch that is written in C++
            return {}
        return {name: each.default for name, each in signature.parameters.items()}


_TABLE: dict[tuple[str, str], list[Operator]] = {}


def op(
    *names: str,
    since: int = 1,
    domain: str = "",
    literals: tuple[int, ...] = (),
    scalars: tuple[int, ...] = (),
    many: bool = False,
) -> Callable[[F], F]:
    """Register what it decorates as the operators of these names; the arguments are the entry's.

    Example:
        >>> find("", "Relu", 14).target.__name__
        'relu'
    """

    def register(target: F) -> F:
        for name in names:
            entry = Operator(name, domain, since, target, literals, scalars, many)
            _TABLE.setdefault((domain, name), []).append(entry)
        return target

    return register


def find(domain: str, op_type: str, version: int) -> Operator | None:
    """Return the entry for an operator at a version of its domain's opset, or None."""
    known = [entry for entry in _TABLE.get((domain, op_type), ()) if entry.since <= version]
    return max(known, key=lambda entry: entry.since, default=None)


def operators() -> Iterator[Operator]:
    """Yield every entry of the table, sorted by domain, name and opset."""
    for key in sorted(_TABLE):
        yield from sorted(_TABLE[key], key=lambda entry: entry.since)


def snake(name: str) -> str:
    """Return an attribute's name as a Python argument.

    Example:
        >>> snake("transA"), snake("keepdims"), snake("kernel_shape")
        ('trans_a', 'keepdims', 'kernel_shape')
    """
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower()
