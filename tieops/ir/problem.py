"""Problems: what is wasted or wrong in a model, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Problem", "Severity"]

Severity = Literal["waste", "wrong", "caution", "note"]
"""Bytes that nobody needs; something that is not as it should be; what another tool, or training,
would do; what cannot be known from the file, which the first screen leaves out."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wasted or wrong, with the command and the Python call that fix it.

    Args:
        kind: What sort of problem: ``duplicate``, ``unneeded``, ``dead branch``, ``unread data``,
            ``disconnected output``, ``unused input``, ``folded copy``, ``packed copy``,
            ``quantizer``, ``accidental tie``, ``doubtful name``, ``forward`` (what
            the graph leaves out of it) or ``unknown``.
        severity: ``waste``, ``wrong``, ``caution`` or ``note``.
        what: One line that says it.
        command: The command that fixes it; MODEL is the file, OUT the one to write. Empty where
            there is none.
        call: The same in Python; ``model`` is the model.
        nbytes: How many bytes it costs, on disk or in memory.
    """

    kind: str
    severity: Severity
    what: str
    command: str
    call: str
    nbytes: int = 0

    def __str__(self) -> str:
        return f"{self.what}; fix it with {self.call}" if self.call else self.what
