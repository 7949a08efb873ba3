"""A weight that is the transpose of another layer's: computed at each read, stored once.

``torch.nn.utils.parametrize`` does this too, but a module that it touched cannot be pickled. Here
the module becomes an instance of a subclass of its own class, in which ``weight`` is a property:
``weight_transposed`` with its first two axes swapped. ``weight_transposed`` is the shared Parameter
itself, registered like any other, so whatever torch does with a parameter that two modules hold
(copying, moving, saving, exporting) it does here.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

__all__ = ["SUFFIX", "plain_class", "register_transposed", "release_transposed", "transposed_names"]

SUFFIX = "_transposed"
"""What the name of the Parameter has behind the name that is read: honest about its layout."""


def transposed_names(module: nn.Module) -> tuple[str, ...]:
    """Return the attributes of a module that are read transposed."""
    return getattr(type(module), "_tieops_transposed", ())


def register_transposed(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Make ``module.name`` the transpose of a Parameter, in place of the one it has now."""
    _rename(module, name, name + SUFFIX, parameter)
    names = (*transposed_names(module), name)
    module.__class__ = _class_of(plain_class(module), names)


def release_transposed(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Make ``module.name``, which is read transposed, an ordinary Parameter again."""
    names = tuple(each for each in transposed_names(module) if each != name)
    plain = plain_class(module)
    module.__class__ = _class_of(plain, names) if names else plain
    _rename(module, name + SUFFIX, name, parameter)


def _rename(module: nn.Module, old: str, new: str, parameter: nn.Parameter) -> None:
    # In its old place among the others: optimizers number parameters by their order.
    held = module._parameters  # pyright: ignore[reportPrivateUsage]
    found = dict(held)
    held.clear()
    for key, value in found.items():
        held[new if key == old else key] = parameter if key == old else value


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before any of its weights was read transposed."""
    return type(module).__bases__[0] if transposed_names(module) else type(module)


@functools.cache
def _class_of(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    def reduce(self: nn.Module, protocol: object) -> tuple[Any, ...]:
        # A pickle cannot find the class by name, so it records how to make it.
        del protocol
        return _make, (plain, names), self.__getstate__()

    def assign(self: nn.Module, name: str, value: object) -> None:
        if name in names and isinstance(value, nn.Parameter):
            release_transposed(self, name, value)  # as in torch: a new Parameter is not tied
        else:
            plain.__setattr__(self, name, value)  # pyright: ignore[reportArgumentType]

    members: dict[str, Any] = {
        "__doc__": f"A {plain.__name__} that reads {', '.join(names)} transposed.",
        "__module__": __name__,
        "__reduce_ex__": reduce,
        "__setattr__": assign,
        "_tieops_transposed": names,
        **{name: property(functools.partial(_read, name + SUFFIX)) for name in names},
    }
    return type(f"Tied{plain.__name__}", (plain,), members)


def _read(key: str, module: nn.Module) -> torch.Tensor:
    return getattr(module, key).transpose(0, 1)


def _make(plain: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Return an empty instance; pickle and copy fill it."""
    made = _class_of(plain, names)
    return made.__new__(made)
