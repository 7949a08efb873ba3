"""Find where a forward stops gradients, which a graph cannot express, and report it.

``no_grad`` and ``detach`` do not change what a forward computes. An exported graph has no trace of
``no_grad``, and the module that ``to_torch`` makes of it trains regardless of it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["GradientGaps", "gaps_in_graph", "watching_gradients"]

_SWITCH = "_set_grad_enabled"
_DETACHING = ("detach", "detach_")


@dataclass
class GradientGaps:
    """What a forward keeps gradients from, by the names of the torch functions."""

    under_no_grad: set[str] = field(default_factory=set)
    detached: bool = False

    def notes(self) -> Iterator[str]:
        """Yield a line for each kind of gap."""
        if self.under_no_grad:
            names = sorted(self.under_no_grad)
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            yield f"the forward computes without gradients (no_grad: {shown})"
        if self.detached:
            yield "the forward detaches tensors from their gradients"


class _Watch(TorchFunctionMode):
    def __init__(self, gaps: GradientGaps) -> None:
        super().__init__()
        self._gaps = gaps
        self.calls = 0
        """How many calls of the module are running: the exporter's own work is not watched."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        name = str(getattr(func, "__name__", ""))
        is_detaching = name in _DETACHING
        is_cut = is_detaching or not torch.is_grad_enabled()
        if self.calls and is_cut and name not in (_SWITCH, "__get__"):
            leaves = pytree.tree_leaves((args, kwargs))
            if any(isinstance(each, torch.Tensor) and each.requires_grad for each in leaves):
                if is_detaching:
                    self._gaps.detached = True
                else:
                    self._gaps.under_no_grad.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watching_gradients(module: nn.Module) -> Generator[GradientGaps]:
    """While this is active, calls of the module are watched for what they keep gradients from."""
    gaps = GradientGaps()
    if not torch.is_grad_enabled():
        yield gaps  # the caller's own no_grad says nothing about the module
        return
    watch = _Watch(gaps)

    def enter(*_: object) -> None:
        watch.calls += 1

    def leave(*_: object) -> None:
        watch.calls -= 1

    # The hooks only count. Were they to push and pop the mode, a forward that raises would leave
    # the modes that torch pushes around it in another order than it pops them.
    hooks = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]
    try:
        with watch:
            yield gaps
    finally:
        for hook in hooks:
            hook.remove()


def gaps_in_graph(program: torch.export.ExportedProgram) -> GradientGaps:
    """Return what an exported program keeps gradients from, as far as its graph still says."""
    gaps = GradientGaps()
    trained = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if isinstance(spec.target, str)
        and getattr(program.state_dict.get(spec.target), "requires_grad", False)
    }
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in trained:
                reached.add(node)
            continue
        if not reached.intersection(node.all_input_nodes):
            continue
        reached.add(node)
        name = str(getattr(node.target, "__name__", node.target))
        if name.partition(".")[0] in _DETACHING:
            gaps.detached = True
        elif name == "wrap_with_set_grad_enabled" and node.args[0] is False:
            gaps.under_no_grad.add(str(node.args[1]))
    return gaps
