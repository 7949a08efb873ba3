"""Summarise a scan: totals, and the models that waste most."""

from __future__ import annotations

import heapq
from typing import Any

from tieops.ir.notation import brief_bytes, counted, printable
from tieops.scanning.model_record import ScanRecord

__all__ = ["Summary"]

WORST = 10


class Summary:
    """Sums over records, kept while they come; only the worst few records are kept themselves.

    Attributes:
        models: How many models were looked at.
        failed: How many could not be.
        ties: How many parameters are shared, in all models together.
        stored_bytes: What the models store.
        saved_bytes: What ties save.
        wasted_bytes: What is known to be stored twice within a model.
        likely_wasted_bytes: What was equal wherever it was looked, and was not read whole.

    Example:
        >>> summary = Summary()
        >>> summary.add(ScanRecord("a.onnx", stored_bytes=2_000_000))
        >>> print(summary)
        1 model, 0 ties, 2.00 MB stored, 0 B saved by ties, 0 B wasted
    """

    def __init__(self) -> None:
        self.models = self.failed = self.ties = 0
        self.stored_bytes = self.saved_bytes = self.wasted_bytes = self.likely_wasted_bytes = 0
        self._worst: list[tuple[int, str]] = []
        self._failures: list[str] = []

    def add(self, record: ScanRecord) -> None:
        """Count a record.

        Args:
            record: The record.
        """
        self.models += 1
        if record.error is not None:
            self.failed += 1
            if len(self._failures) < WORST:
                self._failures.append(str(record))
            return
        self.ties += len(record.ties)
        self.stored_bytes += record.stored_bytes
        self.saved_bytes += record.saved_bytes
        self.wasted_bytes += record.wasted_bytes
        self.likely_wasted_bytes += record.likely_wasted_bytes
        wasted = record.wasted_bytes + record.likely_wasted_bytes
        if wasted:
            heapq.heappush(self._worst, (wasted, record.path))
            if len(self._worst) > WORST:
                heapq.heappop(self._worst)

    @property
    def worst(self) -> tuple[tuple[str, int], ...]:
        """The models that waste most, each with its bytes, likely ones included."""
        return tuple((path, wasted) for wasted, path in sorted(self._worst, reverse=True))

    def to_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        sums = ("models", "failed", "ties", "stored_bytes", "saved_bytes", "wasted_bytes",
                "likely_wasted_bytes")  # fmt: skip
        worst = [{"path": path, "wasted_bytes": wasted} for path, wasted in self.worst]
        return {name: getattr(self, name) for name in sums} | {"worst": worst}

    def __str__(self) -> str:
        facts = [counted(self.models, "model")]
        facts += [f"{self.failed} of them could not be read"] if self.failed else []
        facts += [
            counted(self.ties, "tie"),
            f"{brief_bytes(self.stored_bytes)} stored",
            f"{brief_bytes(self.saved_bytes)} saved by ties",
            f"{brief_bytes(self.wasted_bytes)} wasted",
        ]
        likely = self.likely_wasted_bytes
        facts += [f"{brief_bytes(likely)} more likely wasted"] if likely else []
        lines = [", ".join(facts)]
        lines += [f"  {brief_bytes(wasted)} in {printable(path)}" for path, wasted in self.worst]
        lines += [f"  {failure}" for failure in self._failures]
        more = self.failed - len(self._failures)
        lines += [f"  … and {more} more that could not be read"] if more else []
        return "\n".join(lines)
