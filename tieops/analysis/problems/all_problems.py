"""Collect all problems of a model: what is wasted, what is wrong, what other tools would break."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir

from tieops.analysis.problems.ambiguous_names import doubtful_problems
from tieops.analysis.problems.quantization import quantizer_problems
from tieops.analysis.problems.runtime_copies import runtime_problems
from tieops.analysis.problems.training import training_problems
from tieops.analysis.problems.unneeded import unneeded_problems
from tieops.analysis.problems.unread_bytes import unread_problems
from tieops.ir.learnables.rules import Learnables
from tieops.ir.notation import brief_bytes, printable
from tieops.ir.parameter import Parameter
from tieops.ir.problem import Problem
from tieops.ir.readers.readers import Readers
from tieops.ir.tie import Duplicate, Tie

__all__ = ["find_problems"]

_ORDER = ("waste", "wrong", "caution", "note")


def find_problems(
    model: onnx_ir.Model,
    ties: Sequence[Tie],
    accidental: Sequence[Tie],
    duplicates: Iterable[Duplicate],
    learnables: Learnables,
    readers: Iterable[tuple[Parameter, Readers]],
) -> tuple[Problem, ...]:
    """Return every problem, waste first, then what is wrong, then cautions; the largest first.

    Args:
        model: The graph; left alone.
        ties: Its ties.
        accidental: What an exporter tied by accident.
        duplicates: Its duplicates. Those that ``tie`` does not join are not problems.
        learnables: What of all that it stores is learnable.
        readers: Tied tensors, each with its readers.
    """
    found = [
        *_duplicates(duplicates),
        *unneeded_problems(model),
        *unread_problems(model),
        *runtime_problems(ties),
        *quantizer_problems(ties),
        *doubtful_problems(readers),
        *training_problems(model, accidental, learnables),
    ]
    return tuple(sorted(found, key=lambda each: (_ORDER.index(each.severity), -each.nbytes)))


def _duplicates(duplicates: Iterable[Duplicate]) -> Iterator[Problem]:
    for duplicate in duplicates:
        if duplicate.held_back or not duplicate.wasted_bytes or not duplicate.is_joinable:
            continue
        first, *others = duplicate.parameters
        straight = all(perm == tuple(range(len(perm))) for perm in duplicate.perms)
        shown = printable(others[0].name)
        if len(others) > 1:
            shown += f" and {len(others) - 1} more are"
        else:
            shown += " is"
        how = ("copies" if straight else "transposed copies") if len(others) > 1 else (
            "a copy" if straight else "a transposed copy"
        )  # fmt: skip
        yield Problem(
            "duplicate",
            "waste",
            f"{shown} {how} of {printable(first.name)}: {brief_bytes(duplicate.wasted_bytes)}",
            "tieops tie MODEL OUT",
            "tieops.tie(model)",
            duplicate.wasted_bytes,
        )
