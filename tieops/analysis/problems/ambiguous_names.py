"""Find names of a tied tensor whose reader cannot be determined."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tieops.ir.notation import printable
from tieops.ir.parameter import Parameter
from tieops.ir.problem import Problem
from tieops.ir.readers.readers import Readers

__all__ = ["doubtful_problems"]


def doubtful_problems(tied: Iterable[tuple[Parameter, Readers]]) -> Iterator[Problem]:
    """Yield a problem for each tensor with several names that several readers could own.

    A tensor of one name is not a problem: whoever keeps the tensor keeps the name.

    Args:
        tied: Tied tensors, each with its readers.
    """
    for parameter, readers in tied:
        if not readers.doubtful or len(parameter.names) < 2:
            continue
        idle = [reader.slots[0].name for reader in readers.all if not reader.names]
        names = " and ".join(map(printable, readers.doubtful))
        shown = " and ".join(map(printable, idle))
        choice = json.dumps(dict(zip(readers.doubtful, idle, strict=False)))
        yield Problem(
            "doubtful name",
            "note",
            f"{names}: which of {shown} each belongs to cannot be known, so choose",
            "",
            f"tieops.untie(model, names={choice})",
        )
