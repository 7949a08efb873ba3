"""Find what a model does not record about its training, and what would train differently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import onnx_ir

from tieops.ir.learnables.rules import Learnables
from tieops.ir.metadata.keys import TORCH_NOTES
from tieops.ir.notation import brief, counted, printable
from tieops.ir.problem import Problem
from tieops.ir.tie import Tie
from tieops.ir.walk import stored_values

__all__ = ["training_problems"]

_PRODUCER = "pytorch"
"""What torch's exporters, both of them, write into a file as its producer."""


def training_problems(
    model: onnx_ir.Model, accidental: Sequence[Tie], learnables: Learnables
) -> Iterator[Problem]:
    """Yield parameters merged by accident, what torch said of the forward, and what nobody said.

    Args:
        model: The graph; left alone.
        accidental: Its accidental ties.
        learnables: What of all that it stores is learnable.
    """
    for tie in accidental:
        parameter = tie.parameter
        yield Problem(
            "accidental tie",
            "caution",
            f"{printable(parameter.name)} {brief(parameter.dtype, parameter.shape)} was stored "
            f"once for {counted(len(tie.modules), 'module')}: it began equal in all of them",
            "tieops untie MODEL OUT --accidental",
            "tieops.untie(model, accidental=True)",
        )
    said = model.metadata_props.get(TORCH_NOTES)
    if said is not None:
        for line in _lines(said):
            yield Problem("forward", "caution", f"{printable(line)}; the graph does not", "", "")
    elif model.producer_name == _PRODUCER and any(
        map(learnables.is_learnable, stored_values(model))
    ):
        yield Problem(
            "unknown",
            "note",
            "the file does not say which parameters are frozen (requires_grad), nor which tensors "
            "the exporter merged or folded",
            "",
            "",
        )


def _lines(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []
