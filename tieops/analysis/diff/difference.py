"""One difference between two models, and the list of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tieops.ir.notation import brief_bytes, printable

__all__ = ["SUBJECTS", "Diff", "Difference", "Subject"]

Subject = Literal["signature", "tie", "parameter", "layer", "operator", "bytes"]
SUBJECTS: tuple[Subject, ...] = ("signature", "tie", "parameter", "layer", "operator", "bytes")
MAX_SHOWN = 12
"""How many differences of one subject are shown before it is said how many more there are."""
_SIGNS = {"added": "+", "removed": "-"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same.

    Args:
        subject: What it is about: ``signature``, ``tie``, ``parameter``, ``layer`` (one with
            learnables), ``operator`` (one without) or ``bytes``.
        name: The name of the thing; in the second model if it is in both.
        change: ``added``, ``removed``, ``renamed``, ``retyped``, ``other values`` and so on.
        before: What it was; empty if it was not there.
        after: What it is; empty if it is not there any more.
    """

    subject: Subject
    name: str
    change: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        sign = _SIGNS.get(self.change, "~")
        told = " -> ".join(filter(None, (self.before, self.after)))
        change = "" if self.change in _SIGNS else f" {self.change}"
        return printable(f"{sign} {self.name}{change}" + (f": {told}" if told else ""))


@dataclass(frozen=True)
class Diff:
    """What ``tieops.diff`` found; true if anything changed.

    Args:
        changes: Each difference, by subject.
        stored_bytes: What is stored, before and after.
        counts: Of ties, parameters, layers and operators: how many before, how many after.
    """

    changes: tuple[Difference, ...]
    stored_bytes: tuple[int, int]
    counts: tuple[tuple[Subject, int, int], ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def of(self, subject: Subject) -> tuple[Difference, ...]:
        """Return the differences of one subject."""
        return tuple(each for each in self.changes if each.subject == subject)

    def to_dict(self) -> dict[str, Any]:
        """Return the differences as JSON-ready data."""
        return {
            "changed": bool(self),
            "changes": [asdict(change) for change in self.changes],
            "stored_bytes_before": self.stored_bytes[0],
            "stored_bytes_after": self.stored_bytes[1],
        }

    def text(self, *, everything: bool = False) -> str:
        """Return the differences as text; of many, the first ones unless ``everything`` is."""
        if not self:
            return "nothing changed"
        return "\n".join(self._lines(None if everything else MAX_SHOWN))

    def __str__(self) -> str:
        return self.text()

    def _lines(self, most: int | None) -> Iterator[str]:
        heads = {subject: f"{old} -> {new}" for subject, old, new in self.counts}
        old, new = map(brief_bytes, self.stored_bytes)
        heads["bytes"] = f"{old} -> {new} stored"
        for subject in SUBJECTS:
            found = self.of(subject)
            plural = subject if subject in ("signature", "bytes") else f"{subject}s"
            yield f"{plural:11} {heads.get(subject, '' if found else 'the same')}".rstrip()
            lines = [str(each) for each in found if subject != "bytes"]
            if subject == "operator" and most is not None:
                lines = list(_by_kind(found))
            yield from (f"  {line}" for line in lines[:most])
            if most is not None and len(lines) > most:
                yield f"  … and {len(lines) - most} more"


def _by_kind(found: Iterable[Difference]) -> Iterator[str]:
    """Yield added and removed operators by kind, and the others one by one."""
    counts = Counter(
        (each.change, each.after or each.before) for each in found if each.change in _SIGNS
    )
    for (change, kind), count in counts.most_common():
        yield printable(f"{_SIGNS[change]} {count} {kind}")
    yield from (str(each) for each in found if each.change not in _SIGNS)
