"""``param_groups``: optimizer parameter groups, one per learning-rate factor."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from tieops.errors import PreconditionError
from tieops.importers.torch.lr_factors import lr_factors
from tieops.torch.places import check_module

__all__ = ["param_groups"]


def param_groups(
    module: nn.Module, *, lr: float, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer of ``torch.optim``, one per learning-rate factor.

    Factors are what ``replace_head`` recorded, and what you set yourself:
    ``net.body.lr_factors = {"weight": 0.1}`` on the layer that owns the parameter. A parameter has
    factor 1 where nothing is set. A tied parameter is in one group, once. Factor 0 freezes: the
    group's learning rate is 0. Parameters that need no gradient are left out.

    Args:
        module: The module.
        lr: The learning rate of factor 1.
        weight_decay: The weight decay of every group; the optimizer's own by default.

    Returns:
        Groups with ``params``, ``lr`` (``lr`` times the factor), ``lr_factor`` and, if it is given,
        ``weight_decay``; in the order in which the module has their first parameters.

    Raises:
        PreconditionError: If a tied parameter has two factors, a factor or ``lr`` is no number of 0
            or more, or nothing can be trained.
        SelectionError: If ``lr_factors`` of a layer names a parameter that it does not have.
        UnsupportedModelError: If ``module`` is no live module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> net[1].lr_factors = {"weight": 10.0}
        >>> for group in param_groups(net, lr=0.5):
        ...     print(group["lr"], [tuple(each.shape) for each in group["params"]])
        0.5 [(3, 4), (3,), (2,)]
        5.0 [(2, 3)]
    """
    check_module(module)
    for what, rate in (("lr", lr), ("weight_decay", weight_decay)):
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise PreconditionError(
                f"{what} must be a rate of at least 0, got {rate!r}", None, "give 0 or more"
            )
    factors = lr_factors(module)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(factors.get(name, 1.0), []).append(parameter)
    if not groups:
        raise PreconditionError(
            "the module has no parameter to train",
            {"parameters": len(list(module.parameters()))},
            "call requires_grad_(True) on those that should be",
        )
    rest = {} if weight_decay is None else {"weight_decay": weight_decay}
    return [
        {"params": parameters, "lr": lr * factor, "lr_factor": factor, **rest}
        for factor, parameters in groups.items()
    ]
