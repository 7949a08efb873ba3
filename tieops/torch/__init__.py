"""Verbs on live PyTorch modules, for those who never leave PyTorch.

    import tieops.torch
    tieops.torch.tie(net, "decoder.weight", "encoder.weight", transpose=True)
    print(tieops.torch.find_ties(net))
    optimizer = torch.optim.SGD(tieops.torch.param_groups(net, lr=1e-3))

Modules are edited in place and returned, as by ``torch.nn.utils``; everything is checked before
anything is touched. Importing this package does not load torch: the first verb does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tieops.errors import MissingDependencyError

if TYPE_CHECKING:
    from tieops.torch.module_heads import replace_head
    from tieops.torch.module_ties import ModuleTie, find_ties
    from tieops.torch.optimizer_groups import param_groups
    from tieops.torch.tying import tie, untie

__all__ = ["ModuleTie", "find_ties", "param_groups", "replace_head", "tie", "untie"]

# No file is called like a verb: importing it would put the module in the function's place.
_HOMES = {
    "ModuleTie": "module_ties",
    "find_ties": "module_ties",
    "param_groups": "optimizer_groups",
    "replace_head": "module_heads",
    "tie": "tying",
    "untie": "tying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tieops.torch' has no attribute {name!r}")
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"tieops.torch.{name} needs {error.name}, which is not installed",
            None,
            'pip install "tieops[torch]"',
        ) from error
    return getattr(importlib.import_module(f"tieops.torch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
