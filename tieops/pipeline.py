"""Run several passes in a row, with one report of what was done and declined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tieops.arguments import expect
from tieops.ir.notation import brief_bytes
from tieops.model import Model, TiedModel, as_model
from tieops.passes.base import SurgeryPass, SurgeryResult

__all__ = ["Pipeline", "PipelineReport"]


@dataclass(frozen=True)
class PipelineReport:
    """What a pipeline did.

    Args:
        model: The new model.
        before: The model it was made from.
        results: Each pass with its result, in order.
    """

    model: TiedModel
    before: TiedModel
    results: tuple[tuple[SurgeryPass[Any], SurgeryResult], ...]

    @property
    def modified(self) -> bool:
        """Whether any pass changed anything."""
        return any(result.modified for _, result in self.results)

    def __str__(self) -> str:
        lines: list[str] = []
        for surgery, result in self.results:
            lines.append(type(surgery).__name__.removesuffix("Pass"))
            lines += [f"  {line}" for line in (*result.changes, *result.skips)] or ["  no change"]
        lines += compared(self.before, self.model)
        return "\n".join(lines)


def compared(before: TiedModel, after: TiedModel) -> list[str]:
    """Return layers, ties and bytes before and after, a line each."""
    learnable = [sum(layer.is_learnable for layer in model.layers) for model in (before, after)]
    stored = [brief_bytes(model.ledger.stored_bytes) for model in (before, after)]
    return [
        f"layers  {learnable[0]} → {learnable[1]}",
        f"ties    {len(before.ties)} → {len(after.ties)}",
        f"stored  {stored[0]} → {stored[1]}",
    ]


class Pipeline:
    """Run passes one after the other on a copy of a model.

    ``onnx_ir.passes.Sequential`` runs the same passes on a bare graph; it keeps neither what they
    report nor the errors they raise as they are, which is why this one is here.

    Args:
        passes: The passes, in order.

    Example:
        >>> import onnx_ir
        >>> from tieops.passes.tie import TiePass
        >>> from tieops.passes.untie import UntiePass
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 3] y) <float[3, 3] emb = {1,2,3,4,5,6,7,8,9}>
        ... { h = Gather(emb, x)
        ...   t = Transpose<perm = [1, 0]>(emb)
        ...   y = MatMul(h, t) }''')
        >>> print(Pipeline([UntiePass(), TiePass()])(TiedModel(graph)))
        Untie
          MatMul_y.weight: owns MatMul_y.weight: f32[3,3], 36 B
        Tie
          MatMul_y.weight: reads emb transposed, 36 B less stored
        layers  2 → 2
        ties    1 → 1
        stored  36 B → 36 B
    """

    def __init__(self, passes: Sequence[SurgeryPass[Any]]) -> None:
        fix = "give a list of passes: Pipeline([TiePass(), UntiePass()])"
        expect(Iterable, passes, "passes in a list", fix)
        for each in passes:
            expect(SurgeryPass, each, "passes in a list", fix)
        self.passes = tuple(passes)

    def __call__(self, model: Model) -> PipelineReport:
        """Run all passes; ``model`` is left alone.

        Raises:
            TieopsError: What a pass raises; then nothing has changed.
        """
        model = as_model(model)
        now = TiedModel(model.clone())
        results: list[tuple[SurgeryPass[Any], SurgeryResult]] = []
        for surgery in self.passes:
            now, result = surgery.on_copy(now)
            results.append((surgery, result))
        return PipelineReport(now, model, tuple(results))
