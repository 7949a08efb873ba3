"""Attributes of a module under any name: ``code.weight``, ``inner.class``, ``0``, ``a"b``.

``register_parameter`` refuses a name that is already an attribute, and fx writes names into Python
source unescaped. A user's module can have any of these names. So a tensor is put directly into the
module's tables, and read from there where attribute access would fail.
"""

from __future__ import annotations

import keyword
import operator
import unicodedata
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from tieops.exporters.torch.names import identifier

__all__ = ["attach", "read"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""What torch itself assigns to: a module with a tensor of that name cannot be put into eval()."""


def attach(module: nn.Module, name: str, held: Tensor, *, persistent: bool) -> bool:
    """Put a tensor into a module under its FQN, with modules on the way.

    Args:
        module: The outermost module; changed in place.
        name: The FQN.
        held: A Parameter, or a buffer.
        persistent: Whether a state_dict has the buffer.

    Returns:
        Whether a module can have that name beside those that it has. If not, nothing is changed.

    Example:
        >>> import torch
        >>> module = nn.Module()
        >>> attach(module, "class.train", nn.Parameter(torch.zeros(2)), persistent=True)
        True
        >>> attach(module, "class", torch.zeros(2), persistent=True), [*module.state_dict()]
        (False, ['class.train'])
    """
    *path, leaf = name.split(".")
    if not all((*path, leaf)) or _OF_EVERY_MODULE.intersection((*path, leaf)):
        return False
    at: nn.Module | None = module
    for part in path:
        if at is not None:
            if part in at._parameters or part in at._buffers:  # pyright: ignore[reportPrivateUsage]
                return False
            at = at._modules.get(part)  # pyright: ignore[reportPrivateUsage]
    if at is not None and any(
        leaf in table
        for table in (at._parameters, at._buffers, at._modules)  # pyright: ignore[reportPrivateUsage]
    ):
        return False
    owner = _made(module, path)
    if isinstance(held, nn.Parameter):
        owner._parameters[leaf] = held  # pyright: ignore[reportPrivateUsage]
    else:
        owner._buffers[leaf] = held  # pyright: ignore[reportPrivateUsage]
        if not persistent:
            owner._non_persistent_buffers_set.add(leaf)  # pyright: ignore[reportPrivateUsage]
    return True


def _made(module: nn.Module, path: list[str]) -> nn.Module:
    for part in path:
        child = module._modules.get(part)  # pyright: ignore[reportPrivateUsage]
        if child is None:
            child = module._modules[part] = nn.Module()  # pyright: ignore[reportPrivateUsage]
        module = child
    return module


def read(graph: fx.Graph, module: nn.Module, name: str) -> fx.Node:
    """Add the node that reads a tensor of a module to a graph of that module.

    It is a ``get_attr``, unless no Python attribute gives the tensor.
    """
    *path, leaf = name.split(".")
    if _is_attribute(module, [*path, leaf]):
        return graph.create_node("get_attr", name, name=identifier(name))
    owner: Any = module
    for part in path:
        owner = owner._modules[part]
    table = "_parameters" if leaf in owner._parameters else "_buffers"
    if path:
        function, source, place = entry, "_modules", (*path, table, leaf)
    else:
        function, source, place = operator.getitem, table, leaf
    args = (graph.get_attr(source), place)
    return graph.create_node("call_function", function, args, name=identifier(name))


def entry(modules: Mapping[str, nn.Module], path: tuple[str, ...]) -> Tensor:
    """Return a tensor from the tables of a module within ``modules``: that of its class, its name.

    Example:
        >>> outer = nn.ModuleDict({"code": nn.Linear(2, 3)})
        >>> entry(outer._modules, ("code", "_parameters", "bias")).shape
        torch.Size([3])
    """
    first, *inner, table, leaf = path
    module = modules[first]
    for part in inner:
        module: Any = module._modules[part]  # pyright: ignore[reportPrivateUsage]
    return getattr(module, table)[leaf]


def _is_plain(part: str) -> bool:
    """Return whether a name means itself in source text, as an identifier or between quotes."""
    if part.isidentifier():
        # Python reads identifiers in the normal form: a ligature of f and i is two letters.
        return not keyword.iskeyword(part) and unicodedata.is_normalized("NFKC", part)
    return part.isprintable() and not set('"\\') & set(part)


def _is_attribute(module: Any, path: list[str]) -> bool:
    """Return whether source text finds the tensor: ``self.inner.weight``."""
    *outer, leaf = path
    if not all(map(_is_plain, path)):
        return False
    for part in outer:
        child = module._modules[part]
        if getattr(module, part, None) is not child:
            return False
        module = child
    held = module._parameters.get(leaf)
    return getattr(module, leaf, None) is (module._buffers[leaf] if held is None else held)
