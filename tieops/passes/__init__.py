"""Passes on a tied model, each as an ``onnx_ir`` pass and as a function.

Read first ``base`` (the protocol: plan, then apply), then ``tie`` and ``untie``. ``join``,
``retie_slices`` and ``detach`` are the edits of these two; ``inline`` is how every pass inlines
calls of model-local functions. ``head``, ``initialise`` and ``shape_propagation`` are the parts of
``replace_head``, and ``node_builder`` makes its nodes. Then those that remove
(``disconnected_outputs``, ``dead_branches``, ``remove_layers``, ``extract``, with ``readers_gone``
for the names), ``rename`` and ``freeze_inputs``, and ``lower``, which ``to_onnx`` runs.

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
    from tieops.passes.extract import ExtractPass
    from tieops.passes.freeze_inputs import FreezeInputsPass
    from tieops.passes.lower import LowerTiedReadsPass
    from tieops.passes.remove_layers import RemoveLayersPass
    from tieops.passes.rename import RenamePass
    from tieops.passes.replace_head import ReplaceHeadPass
    from tieops.passes.tie import TiePass
    from tieops.passes.untie import UntiePass

__all__ = [
    "Change",
    "ExtractPass",
    "FreezeInputsPass",
    "LowerTiedReadsPass",
    "Plan",
    "Preserves",
    "RemoveDeadBranchesPass",
    "RemoveDisconnectedOutputsPass",
    "RemoveLayersPass",
    "RenamePass",
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
    "ExtractPass": "tieops.passes.extract",
    "FreezeInputsPass": "tieops.passes.freeze_inputs",
    "LowerTiedReadsPass": "tieops.passes.lower",
    "RemoveDeadBranchesPass": "tieops.passes.dead_branches",
    "RemoveDisconnectedOutputsPass": "tieops.passes.disconnected_outputs",
    "RemoveLayersPass": "tieops.passes.remove_layers",
    "RenamePass": "tieops.passes.rename",
    "ReplaceHeadPass": "tieops.passes.replace_head",
    "TiePass": "tieops.passes.tie",
    "UntiePass": "tieops.passes.untie",
}

__getattr__ = lazy(__name__, {name: _HOMES.get(name, "tieops.passes.base") for name in __all__})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
