"""Passes: what can be done to a tied model, each an ``onnx_ir`` pass and a function.

Read first ``base`` (the protocol: plan, then apply), then ``tie`` and ``untie``. ``retie_slices``
and ``detach`` are the edits of these two, ``inline`` is what both of ``untie`` and ``replace_head``
do about model-local functions. ``head``, ``initialise`` and ``shape_propagation`` are the parts of
``replace_head``, and ``node_builder`` makes its nodes. Then ``disconnected_outputs`` and
``dead_branches``, and ``lower``, which ``to_onnx`` runs.

    from tieops.passes import TiePass, run
    tied, result = run(TiePass(), model)

Names are loaded when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tieops._lazy import lazy

if TYPE_CHECKING:
    from tieops.passes.base import (
        Change,
        Plan,
        Preserves,
        Rewrite,
        Skip,
        SurgeryPass,
        SurgeryResult,
        run,
    )
    from tieops.passes.dead_branches import RemoveDeadBranchesPass
    from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass
    from tieops.passes.lower import LowerTiedReadsPass
    from tieops.passes.replace_head import ReplaceHeadPass
    from tieops.passes.tie import TiePass
    from tieops.passes.untie import UntiePass

__all__ = [
    "Change",
    "LowerTiedReadsPass",
    "Plan",
    "Preserves",
    "RemoveDeadBranchesPass",
    "RemoveDisconnectedOutputsPass",
    "ReplaceHeadPass",
    "Rewrite",
    "Skip",
    "SurgeryPass",
    "SurgeryResult",
    "TiePass",
    "UntiePass",
    "run",
]

_HOMES = {
    "LowerTiedReadsPass": "tieops.passes.lower",
    "RemoveDeadBranchesPass": "tieops.passes.dead_branches",
    "RemoveDisconnectedOutputsPass": "tieops.passes.disconnected_outputs",
    "ReplaceHeadPass": "tieops.passes.replace_head",
    "TiePass": "tieops.passes.tie",
    "UntiePass": "tieops.passes.untie",
}

__getattr__ = lazy(__name__, {name: _HOMES.get(name, "tieops.passes.base") for name in __all__})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
