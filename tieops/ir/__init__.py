"""What a tied model consists of, and the kit that reads and edits its graph.

Read first ``parameter`` (a stored tensor, and the slots where layers read it), ``view`` (how a
slot reads it), ``layer`` and ``tie``. Two packages decide: ``readers`` (which slots are one
reader, and which reader owns a name) and ``learnables`` (what trains). The kit on an ``onnx_ir``
graph: ``walk``, ``operators``, ``dataflow``, ``functions`` and ``edit``. ``metadata`` is the record
of all this in a file, and ``storage`` is where the numbers are.

What users compare or catch can be imported from here; it is loaded when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tieops._lazy import lazy

if TYPE_CHECKING:
    from tieops.ir.evidence import Evidence
    from tieops.ir.layer import Layer
    from tieops.ir.parameter import Parameter, Read, Slot
    from tieops.ir.problem import Problem
    from tieops.ir.tie import Duplicate, Ledger, Tie
    from tieops.ir.view import View

__all__ = [
    "Duplicate",
    "Evidence",
    "Layer",
    "Ledger",
    "Parameter",
    "Problem",
    "Read",
    "Slot",
    "Tie",
    "View",
]

__getattr__ = lazy(
    __name__,
    {
        "Duplicate": "tieops.ir.tie",
        "Evidence": "tieops.ir.evidence",
        "Layer": "tieops.ir.layer",
        "Ledger": "tieops.ir.tie",
        "Parameter": "tieops.ir.parameter",
        "Problem": "tieops.ir.problem",
        "Read": "tieops.ir.parameter",
        "Slot": "tieops.ir.parameter",
        "Tie": "tieops.ir.tie",
        "View": "tieops.ir.view",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
