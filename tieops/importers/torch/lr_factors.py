"""Learning-rate factors of a live module's parameters: where they are stored and how they are read.

A factor is stored on the module that owns the parameter, by name: ``fc.lr_factors = {"weight":
10.0}``. There it survives ``copy.deepcopy``, ``.to()``, pickling and every way to load a
checkpoint. An attribute of the Parameter itself, ``fc.weight.lr_factor = 10.0``, is read as well,
but ``copy.deepcopy`` and ``load_state_dict(assign=True)`` drop it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir
from torch import nn

from tieops.errors import PreconditionError, SelectionError, UnsupportedModelError
from tieops.ir.metadata.keys import names_of, packed_parts
from tieops.ir.metadata.keys import set_lr_factor as set_value_lr_factor

__all__ = ["drop_lr_factor", "lr_factors", "note_lr_factors", "set_lr_factor"]

TABLE, ATTRIBUTE = "lr_factors", "lr_factor"


def set_lr_factor(owner: nn.Module, key: str, factor: float) -> None:
    """Set the learning-rate factor of a parameter that a module owns."""
    setattr(owner, TABLE, {**_table(owner), key: float(factor)})


def drop_lr_factor(owner: nn.Module, key: str) -> None:
    """Forget the learning-rate factor of a name that gives its parameter up."""
    if key in _table(owner):
        setattr(owner, TABLE, {name: each for name, each in _table(owner).items() if name != key})


def lr_factors(module: nn.Module) -> dict[str, float]:
    """Return the learning-rate factor of each parameter that has one, under every name it has.

    Args:
        module: The module.

    Returns:
        Names of ``named_parameters(remove_duplicate=False)``, with their factors. A parameter that
        has no factor is left out; its factor is 1.

    Raises:
        PreconditionError: If a factor is no number of 0 or more, or one parameter has two.
        SelectionError: If ``lr_factors`` of a layer names a parameter that it does not have.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].lr_factors = {"weight": 10.0}
        >>> lr_factors(net)
        {'1.weight': 10.0}
    """
    given: dict[int, dict[str, float]] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        held = dict(owner.named_parameters(recurse=False, remove_duplicate=False))
        for key, factor in _table(owner).items():
            if key not in held:
                raise SelectionError(
                    f"{prefix}{TABLE} names {key}, which is not a parameter of that layer",
                    {"parameters": ", ".join(held) or "none"},
                    "correct the name",
                )
            name = prefix + key
            given.setdefault(id(held[key]), {})[name] = _checked(name, factor)
        for key, parameter in held.items():
            own = getattr(parameter, ATTRIBUTE, None)
            if own is not None:
                name = f"{prefix}{key}.{ATTRIBUTE}"
                given.setdefault(id(parameter), {})[name] = _checked(name, own)
    for factors in given.values():
        if len(set(factors.values())) > 1:
            raise PreconditionError(
                f"one parameter has {len(set(factors.values()))} learning-rate factors",
                factors,
                "keep one of them: a tied parameter takes one step",
            )
    return {
        name: next(iter(given[id(parameter)].values()))
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if id(parameter) in given
    }


def note_lr_factors(model: onnx_ir.Model, factors: Mapping[str, float]) -> None:
    """Store the factors of a module with the tensors that its export stored.

    Raises:
        UnsupportedModelError: If parameters that are stored as one tensor have different factors.
    """
    if not factors:
        return
    for value in model.graph.initializers.values():
        parts = packed_parts(value)
        names = parts or [name for name in names_of(value) if name in factors]
        found = {name: factors.get(name, 1.0) for name in names}
        if len(set(found.values())) > 1:
            raise UnsupportedModelError(
                f"{value.name} is stored as one tensor and has several learning-rate factors",
                found,
                "give its parts one factor",
            )
        for factor in set(found.values()) - {1.0}:
            set_value_lr_factor(value, factor)


def _table(owner: nn.Module) -> Mapping[str, Any]:
    found = owner.__dict__.get(TABLE)
    return found if isinstance(found, Mapping) else {}


def _checked(name: str, factor: object) -> float:
    if isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0:
        return float(factor)
    raise PreconditionError(
        f"expected a learning-rate factor of at least 0, got {factor!r}",
        {"of": name},
        "give 0 or more",
    )
