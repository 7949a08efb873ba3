"""Ties and duplicates: what is shared, and what could be."""

from __future__ import annotations

from dataclasses import dataclass

from tieops.ir.evidence import Evidence
from tieops.ir.notation import brief_bytes, printable
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.storage.byte_ranges import storage_key
from tieops.ir.view import Shape

__all__ = ["Duplicate", "Ledger", "Tie"]


@dataclass(frozen=True, eq=False)
class Tie:
    """A parameter that two or more slots share elements of, or that has two names in its module."""

    parameter: Parameter
    slots: tuple[Slot, ...]
    modules: tuple[tuple[Slot, ...], ...] = ()
    """Of an accidental tie, the slots by module: each module is to have a parameter of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the parameter."""
        return self.parameter.names

    @property
    def evidence(self) -> Evidence:
        """Why the slots are believed to share it, or that they do so by accident."""
        return Evidence.ACCIDENTAL if self.modules else self.parameter.evidence

    @property
    def saved_bytes(self) -> int:
        """What the tie saves in the file: what the slots read, less what is stored."""
        return max(0, sum(slot.logical_bytes for slot in self.slots) - self.parameter.nbytes)

    def __str__(self) -> str:
        names = " = ".join(printable(name) for name in self.names)
        _, _, what = str(self.parameter).rpartition(": ")
        lines = [f"{names}: {what} ({self.evidence})"]
        lines += [f"  {slot}" for slot in self.slots]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Duplicate:
    """Stored parameters of equal content that are not tied; ``tie`` can join them.

    Args:
        parameters: The equal ones; the first is the one that a tie would keep.
        perms: For each of them the order of the first one's axes that gives its content.
        evidence: How the equality is known.
        held_back: Why ``tie`` does not join it unless it is asked to; empty where it does.
    """

    parameters: tuple[Parameter, ...]
    perms: tuple[Shape, ...]
    evidence: Evidence
    held_back: str = ""

    @property
    def is_joinable(self) -> bool:
        """Whether two of them are not graph inputs, which a caller may override one by one."""
        return sum(not each.is_overridable for each in self.parameters) > 1

    @property
    def wasted_bytes(self) -> int:
        """The bytes that joining them would save: each range of bytes once, but for the first's."""
        sizes = {storage_key(each.tensor): each.nbytes for each in self.parameters}
        return sum(sizes.values()) - self.parameters[0].nbytes

    def __str__(self) -> str:
        keep = self.parameters[0]
        others: list[str] = []
        for other, perm in zip(self.parameters[1:], self.perms[1:], strict=True):
            how = "" if perm == tuple(range(len(perm))) else " transposed"
            others.append(f"{printable(other.name)}{how}")
        note = f"; not joined by default: {self.held_back}" if self.held_back else ""
        return f"{keep} == {', '.join(others)} (wastes {brief_bytes(self.wasted_bytes)}{note})"


@dataclass(frozen=True)
class Ledger:
    """Where the bytes are.

    Args:
        logical_bytes: What the slots read, each reader counted as if it owned what it reads.
        stored_bytes: What the file holds: every stored tensor once; tensors that share one range of
            bytes count once.
    """

    logical_bytes: int
    stored_bytes: int

    def __str__(self) -> str:
        return f"{brief_bytes(self.logical_bytes)} read, {brief_bytes(self.stored_bytes)} stored"
