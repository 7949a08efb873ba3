"""``Analysis``: everything that can be derived from the graph of a model, in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.analysis.problems.all_problems import find_problems
from tieops.analysis.repeats import find_repeats
from tieops.analysis.report.as_html import as_html
from tieops.analysis.report.as_text import as_text
from tieops.analysis.report.findings import Findings, Totals
from tieops.analysis.report.layer_ports import Ports
from tieops.analysis.report.rows import count_of, rows_of
from tieops.ir.layer import Layer
from tieops.ir.learnables.rules import Learnables
from tieops.ir.parameter import Parameter
from tieops.ir.readers.readers import Readers
from tieops.ir.tie import Duplicate, Ledger, Tie

__all__ = ["Analysis", "Totals", "analysis_of"]


@dataclass(frozen=True, eq=False)
class Analysis(Findings):
    """What ``tieops.analyze`` found.

    ``print`` it, show it in a notebook, or take its data: ``records()`` for a table, ``to_dict()``
    for JSON. The fields are those of ``Findings``.
    """

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def analysis_of(
    model: onnx_ir.Model,
    layers: Sequence[Layer],
    parameters: Sequence[Parameter],
    ties: Sequence[Tie],
    accidental: Sequence[Tie],
    duplicates: Sequence[Duplicate],
    ledger: Ledger,
    learnables: Learnables,
    readers: Sequence[tuple[Parameter, Readers]],
) -> Analysis:
    """Analyse a graph of which the rest is known already."""
    ports = Ports(model)
    rows = tuple(rows_of(ports, layers, ties, learnables))
    problems = find_problems(model, ties, accidental, duplicates, learnables, readers)
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    totals = Totals(
        sum(layer.is_learnable for layer in layers),
        len(parameters),
        sum(each.count for row in rows for each in row.learnables),
        sum(count_of(parameter, learnables) for parameter in parameters),
        ledger.logical_bytes,
        ledger.stored_bytes,
        sum(tie.saved_bytes for tie in ties),
        sum(each.nbytes for each in problems if each.severity == "waste"),
    )
    return Analysis(
        tuple(ports.port(value) for value in inputs),
        tuple(ports.port(value) for value in model.graph.outputs),
        rows,
        find_repeats(layers),
        tuple(parameters),
        tuple(ties),
        tuple(accidental),
        tuple(duplicates),
        problems,
        totals,
        tuple(layers),
        ledger,
    )
