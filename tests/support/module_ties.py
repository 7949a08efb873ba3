"""Which names of a torch module stand for one Parameter."""

from __future__ import annotations

import torch
from torch import nn


def names_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters(remove_duplicate=False))


def groups_of(module: nn.Module) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name, parameter in names_of(module).items():
        groups.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in groups.values()}
