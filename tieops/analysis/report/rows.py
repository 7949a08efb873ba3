"""Rows of an analysis: each layer with its inputs and outputs, each learnable with its bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tieops.analysis.report.layer_ports import Port, Ports
from tieops.ir.layer import Layer
from tieops.ir.learnables.rules import Learnables
from tieops.ir.notation import brief, printable
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.tie import Tie

__all__ = ["Learnable", "Row", "count_of", "reading", "rows_of"]


@dataclass(frozen=True)
class Learnable:
    """What a layer reads in one slot.

    Args:
        role: ``weight``, ``bias`` and so on.
        slot: The slot's name.
        parameter: The name of the stored tensor.
        type: Dtype and shape as the layer reads it.
        view: How it is read; empty if as it is stored.
        tied_to: The parameter's name if another slot, which comes before, has it as its own;
            empty elsewhere.
        parts: How many stored tensors, or parts of them, are joined to what it reads; 1 is usual.
        readers: How many slots are tied to the parameter, this one included; 1 if it is not tied.
        count: How many learnable numbers it reads; 0 for a buffer or a table of integers.
        read_bytes: What it reads.
        owned_bytes: What of that no slot before it owns; summed up over a model it is what all
            parameters that are read store.
    """

    role: str
    slot: str
    parameter: str
    type: str
    view: str
    tied_to: str
    parts: int
    readers: int
    count: int
    read_bytes: int
    owned_bytes: int

    @property
    def note(self) -> str:
        """How it is read and whose it is: ``tied to emb.weight, transposed``."""
        tied = f"tied to {self.tied_to}" if self.tied_to else ""
        if self.tied_to == re.sub(r"@\d+", "", self.slot):
            tied = "tied to its module's first call"
        if not tied and self.readers > 1:
            tied = f"tied, {self.readers} readers"
        return ", ".join(filter(None, (tied, reading(self.view, self.parts))))

    def __str__(self) -> str:
        return printable(f"{self.role} {self.type}" + (f" ({self.note})" if self.note else ""))


@dataclass(frozen=True)
class Row:
    """One layer.

    Args:
        name: The layer's name.
        kind: Linear, Embedding and so on, or an operator's name.
        inputs: What it reads that is not stored.
        outputs: What others read of it.
        learnables: What it reads that is stored.
    """

    name: str
    kind: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    learnables: tuple[Learnable, ...]

    @property
    def owned_bytes(self) -> int:
        """The bytes of its learnables that no layer before it owns."""
        return sum(each.owned_bytes for each in self.learnables)

    @property
    def read_bytes(self) -> int:
        """The bytes that it reads."""
        return sum(each.read_bytes for each in self.learnables)


def count_of(parameter: Parameter, learnables: Learnables) -> int:
    """Return how many learnable numbers a parameter holds: none if it is a buffer or a table."""
    return parameter.elements if learnables.counts(parameter.value) else 0


def rows_of(
    ports: Ports, layers: Iterable[Layer], ties: Sequence[Tie], learnables: Learnables
) -> Iterator[Row]:
    """Yield a row for each layer, in order."""
    share = _Share(ties, learnables)
    for layer in layers:
        read = tuple(share.learnable(slot) for slot in layer.slots)
        yield Row(layer.name, layer.kind, ports.inputs(layer), ports.outputs(layer), read)


class _Share:
    """Gives each slot its part of what is stored: what nobody before it has."""

    def __init__(self, ties: Sequence[Tie], learnables: Learnables) -> None:
        self._learnables = learnables
        self._tie = {slot: tie for tie in ties for slot in tie.slots}
        self._left: dict[Parameter, int] = {}
        self._owned: set[Tie] = set()

    def learnable(self, slot: Slot) -> Learnable:
        tie = self._tie.get(slot)
        is_later = tie in self._owned
        owned = 0
        for read in slot.reads:
            left = self._left.setdefault(read.parameter, read.parameter.nbytes)
            if tie is not None and not is_later:
                taken = left  # the first of a tie has all that is not taken yet
            else:
                taken = 0 if is_later else min(left, slot.logical_bytes)
            self._left[read.parameter] = left - taken
            owned += taken
        if tie is not None:
            self._owned.add(tie)
        views = dict.fromkeys(str(read.view) for read in slot.reads)
        parameter = slot.parameter
        learnable = self._learnables.counts(parameter.value)
        return Learnable(
            slot.role,
            slot.name,
            parameter.name,
            brief(parameter.dtype, slot.view.shape),
            ", ".join(view for view in views if view),
            parameter.name if is_later else "",
            len(slot.reads),
            len(tie.slots) if tie is not None else 1,
            slot.logical_bytes * 8 // parameter.dtype.bitwidth if learnable else 0,
            slot.logical_bytes,
            owned,
        )


def reading(view: str, parts: int) -> str:
    """Return in short how something is read: ``transposed``, or of how many parts it is joined.

    Example:
        >>> reading("transpose", 1), reading("slice[0:1] → from 0 on in a concat", 4)
        ('transposed', 'joined of 4 parts')
    """
    if parts > 1:
        return f"joined of {parts} parts"
    return "transposed" if view == "transpose" else view
