"""The data of an analysis, from which text, HTML and JSON are rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tieops.analysis.repeats import Repeat
from tieops.analysis.report.layer_ports import Port
from tieops.analysis.report.plain_data import record
from tieops.analysis.report.rows import Row
from tieops.ir.layer import Layer
from tieops.ir.parameter import Parameter
from tieops.ir.problem import Problem
from tieops.ir.tie import Duplicate, Ledger, Tie

__all__ = ["Findings", "Totals"]


@dataclass(frozen=True)
class Totals:
    """Sums over a model.

    Args:
        layers: How many layers have learnables.
        parameters: How many stored tensors layers read.
        learnables_read: The learnable numbers that all slots read, each for itself.
        learnables_stored: The learnable numbers that are stored.
        read_bytes: What all slots read.
        stored_bytes: What is stored, tables, buffers and operands included.
        saved_bytes: What the ties save.
        wasted_bytes: What could be saved: duplicates that ``tie`` joins, and what no output needs.
    """

    layers: int
    parameters: int
    learnables_read: int
    learnables_stored: int
    read_bytes: int
    stored_bytes: int
    saved_bytes: int
    wasted_bytes: int


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found in a model.

    Args:
        inputs: What a caller feeds.
        outputs: What comes back.
        rows: The layers in order, with shapes and learnables.
        repeats: Which of them are a block that comes again and again.
        parameters: What is stored, with every name.
        ties: What is shared, the largest saving first.
        accidental_ties: What an exporter stored once because it began equal.
        duplicates: What is stored more than once, the largest waste first.
        problems: What is wasted, wrong, or broken by other tools, each with what fixes it.
        totals: Sums.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    rows: tuple[Row, ...]
    repeats: tuple[Repeat, ...]
    parameters: tuple[Parameter, ...]
    ties: tuple[Tie, ...]
    accidental_ties: tuple[Tie, ...]
    duplicates: tuple[Duplicate, ...]
    problems: tuple[Problem, ...]
    totals: Totals
    _layers: tuple[Layer, ...]
    _ledger: Ledger

    def of_severity(self, severity: str) -> tuple[Problem, ...]:
        """Return the problems that are ``waste``, ``wrong`` or a ``caution``."""
        return tuple(each for each in self.problems if each.severity == severity)

    def records(self) -> list[dict[str, Any]]:
        """Return a flat record for each learnable of each layer, and one for each other layer.

        The columns are the same in all: ``pandas.DataFrame(analysis.records())`` is a table.
        """
        found: list[dict[str, Any]] = []
        for row in self.rows:
            common = {
                "layer": row.name,
                "kind": row.kind,
                "input": ", ".join(port.type for port in row.inputs),
                "output": ", ".join(port.type for port in row.outputs),
            }
            learnables: Sequence[Mapping[str, Any]] = [asdict(each) for each in row.learnables]
            found += [common | dict(each) for each in learnables or (_NO_LEARNABLE,)]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        data = record(self._layers, self.parameters, self.ties, self.duplicates, self._ledger)
        for layer, row in zip(data["layers"], self.rows, strict=True):
            layer["inputs"] = [asdict(port) for port in row.inputs]
            layer["outputs"] = [asdict(port) for port in row.outputs]
            for slot, learnable in zip(layer["slots"], row.learnables, strict=True):
                told = asdict(learnable)
                slot.update({key: told[key] for key in _TOLD})
        quantizer = [str(each) for each in self.problems if each.kind == "quantizer"]
        return data | {
            "warnings": quantizer,
            "inputs": [asdict(port) for port in self.inputs],
            "outputs": [asdict(port) for port in self.outputs],
            "problems": [asdict(problem) for problem in self.problems],
            "totals": asdict(self.totals),
            "repeats": [asdict(each) for each in self.repeats],
        }


_TOLD = ("type", "tied_to", "parts", "readers", "count", "read_bytes", "owned_bytes")
_NO_LEARNABLE: Mapping[str, Any] = {
    "role": "", "slot": "", "parameter": "", "type": "", "view": "", "tied_to": "",
    "parts": 0, "readers": 0, "count": 0, "read_bytes": 0, "owned_bytes": 0,
}  # fmt: skip
