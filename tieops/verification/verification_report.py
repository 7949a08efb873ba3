"""The result of a verification, as data, as a table, and as the error that it raises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from tieops.errors import VerificationError
from tieops.ir.notation import counted, printable
from tieops.verification.array_comparison import OutputComparison

__all__ = ["Report", "RunComparison", "Verdict"]

Verdict: TypeAlias = Literal[
    "equal bitwise", "equal within tolerance", "different", "not comparable"
]
"""How two models came out."""


@dataclass(frozen=True)
class RunComparison:
    """One input set, and how each output came out on it."""

    sizes: Mapping[str, int]
    outputs: tuple[OutputComparison, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of `verify`: true if and only if the models are equal.

    Attributes:
        verdict: "not comparable" if random operators, or answers that change from run to run,
            are on the way to an output.
        candidate: What was verified.
        reference: What it was verified against.
        candidate_provider: What ran it.
        reference_provider: What ran the reference.
        rtol: Tolerance relative to each element of the reference.
        atol: Absolute tolerance; with both 0, equal means every byte.
        seed: What the inputs were made from; None if they were given.
        runs: A comparison for each input set.
        missing_outputs: Outputs of the reference that the candidate does not have.
        extra_outputs: Outputs of the candidate that the reference does not have.
        random_nodes: Why the models are not comparable; empty if they are.
        coverage: For each made input that indexes a table, how many rows of how many it indexed.

    Example:
        >>> import numpy as np
        >>> from tieops.verification import compare
        >>> found = compare(np.float32([1.0]), np.float32([2.0]), name="y")
        >>> report = Report(
        ...     verdict="different",
        ...     candidate="small.onnx",
        ...     reference="Net",
        ...     candidate_provider="cpu",
        ...     reference_provider="torch",
        ...     rtol=0.0,
        ...     atol=0.0,
        ...     seed=0,
        ...     runs=(RunComparison({"n": 1}, (found,)),),
        ... )
        >>> print(report)
        different (every byte)
          candidate  small.onnx on cpu
          reference  Net on torch
          inputs     1 set, made with seed 0
        <BLANKLINE>
          output                   dtype     worst at               max diff    of peak  result
          y                        float32   n 1                           1        0.5  DIFFERENT
            at [0]: 1.0 instead of 2.0
    """

    verdict: Verdict
    candidate: str
    reference: str
    candidate_provider: str
    reference_provider: str
    rtol: float
    atol: float
    seed: int | None
    runs: tuple[RunComparison, ...]
    missing_outputs: tuple[str, ...] = ()
    extra_outputs: tuple[str, ...] = ()
    random_nodes: tuple[str, ...] = ()
    coverage: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def __bool__(self) -> bool:
        return self.verdict in ("equal bitwise", "equal within tolerance")

    def worst(self) -> tuple[RunComparison, OutputComparison] | None:
        """Return the run and output that are furthest from equal, or None without any run."""
        pairs = [(run, output) for run in self.runs for output in run.outputs]
        return max(pairs, key=lambda pair: _badness(pair[1]), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as what JSON can hold; an infinite difference is the text "inf"."""
        return {"equal": bool(self), **_plain(asdict(self))}

    def error(self) -> VerificationError:
        """Return the error that says why the report is false."""
        if self.verdict == "not comparable":
            return VerificationError(
                f"{self.candidate} and {self.reference} cannot be compared: outputs are random",
                {"random": ", ".join(self.random_nodes)},
                "export in eval mode, or replace the random operators by inputs",
            )
        found = self.worst()
        if found is None:
            return VerificationError("nothing was compared")
        run, output = found
        facts: dict[str, object] = {"output": f"{output.name} {output.dtype}{list(output.shape)}"}
        if output.mismatch:
            facts["it has"] = output.mismatch
            fix = "compare models with the same outputs"
        else:
            facts |= {
                "max_abs_diff": f"{output.max_abs_diff:.6g}",
                "at": list(output.worst or ()),
                "candidate": output.worst_candidate,
                "reference": output.worst_reference,
                "allowed": f"rtol {self.rtol:g}, atol {self.atol:g}",
            }
            fix = "raises=False returns the whole report; optimize=False leaves out ORT's fusions"
        facts |= {"inputs": _sizes(run.sizes), "seed": self.seed}
        return VerificationError(
            f"{self.candidate} is not equal to {self.reference}: {printable(output.name)} differs",
            facts,
            fix,
        )

    def __str__(self) -> str:
        how = "every byte" if not (self.rtol or self.atol) else (
            f"rtol {self.rtol:g}, atol {self.atol:g}; integers and strings exactly"
        )  # fmt: skip
        inputs = "given" if self.seed is None else f"made with seed {self.seed}"
        lines = [
            f"{self.verdict} ({how})",
            f"  candidate  {_cut(self.candidate, 50)} on {self.candidate_provider}",
            f"  reference  {_cut(self.reference, 50)} on {self.reference_provider}",
            f"  inputs     {counted(len(self.runs), 'set')}, {inputs}",
        ]
        lines += [
            f"  input      {_cut(name, 40)}: {seen} of {rows} table rows indexed"
            for name, (seen, rows) in self.coverage.items()
        ]
        lines += [f"  random     {_cut(node, 80)}" for node in self.random_nodes]
        lines += [f"  missing    {_cut(name, 80)}" for name in self.missing_outputs]
        lines += [f"  extra      {_cut(name, 80)}" for name in self.extra_outputs]
        return "\n".join(lines + self._table())

    def _table(self) -> list[str]:
        if not self.runs:
            return []
        row = "  {:<24} {:<9} {:<20} {:>10} {:>10}  {}"
        lines = ["", row.format("output", "dtype", "worst at", "max diff", "of peak", "result")]
        found: dict[str, list[tuple[RunComparison, OutputComparison]]] = {}
        for run in self.runs:
            for output in run.outputs:
                found.setdefault(output.name, []).append((run, output))
        for pairs in found.values():
            run, worst = max(pairs, key=lambda pair: _badness(pair[1]))
            where = _sizes(run.sizes) if worst.worst is not None else counted(len(self.runs), "set")
            lines.append(
                row.format(
                    _cut(worst.name, 24),
                    _cut(worst.dtype, 9),
                    _cut(where, 20),
                    f"{worst.max_abs_diff:.3g}",
                    f"{worst.max_rel_diff:.3g}",
                    _result([output for _, output in pairs], worst),
                )
            )
            if worst.mismatch:
                lines.append(f"    {_cut(worst.mismatch, 92)}")
            elif not worst.ok:
                values = f"{worst.worst_candidate} instead of {worst.worst_reference}"
                lines.append(f"    {_cut(f'at {list(worst.worst or ())}: {values}', 92)}")
        return lines


def _badness(output: OutputComparison) -> tuple[bool, bool, float, bool]:
    return (bool(output.mismatch), not output.ok, output.max_abs_diff, not output.bitwise)


def _result(outputs: list[OutputComparison], worst: OutputComparison) -> str:
    if not worst.ok:
        return "DIFFERENT"
    if not any(output.elements for output in outputs):
        return "empty"
    return "bitwise" if all(output.bitwise for output in outputs) else "ok"


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "as given"


def _cut(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
