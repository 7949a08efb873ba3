"""Layers: the nodes that form one Linear, Embedding, LSTM, Conv, norm or plain operator."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir

from tieops.ir.notation import printable
from tieops.ir.parameter import Slot

__all__ = ["Layer"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the model.

    A torch layer is called by its FQN ("encoder.0"); further calls of one module are
    "encoder.0@1", "encoder.0@2", as torch.export counts them. Without module names it is called
    after its parameters or its node.
    """

    name: str
    kind: str
    """Linear, Embedding, Conv, LSTM, LayerNorm…; an operator's or a module's own name elsewhere."""
    # onnx_ir's own repr of a node does not escape names.
    nodes: tuple[onnx_ir.Node, ...] = field(repr=False)
    slots: tuple[Slot, ...]

    @property
    def path(self) -> tuple[onnx_ir.Node, ...]:
        """The function calls that lead to what it reads, outermost first."""
        return self.slots[0].path if self.slots else ()

    @property
    def is_learnable(self) -> bool:
        """Whether it reads any parameter."""
        return bool(self.slots)

    def __str__(self) -> str:
        slots = ", ".join(
            f"{printable(s.role)} ← {printable(s.parameter.name)}" for s in self.slots
        )
        head = f"{printable(self.name)}: {printable(self.kind)}"
        return f"{head} ({slots})" if slots else head
