"""A model as plain data, for JSON and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tieops.ir.layer import Layer
from tieops.ir.notation import brief
from tieops.ir.parameter import Parameter
from tieops.ir.tie import Duplicate, Ledger, Tie

__all__ = ["record"]


def record(
    layers: Sequence[Layer],
    parameters: Sequence[Parameter],
    ties: Sequence[Tie],
    duplicates: Sequence[Duplicate],
    ledger: Ledger,
) -> dict[str, Any]:
    """Return layers, parameters, ties, duplicates and the ledger as JSON-ready data."""
    return {
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "slots": [
                    {
                        "name": slot.name,
                        "role": slot.role,
                        "reads": [
                            {"parameter": read.parameter.name, "view": str(read.view)}
                            for read in slot.reads
                        ],
                    }
                    for slot in layer.slots
                ],
            }
            for layer in layers
        ],
        "parameters": [
            {
                "name": each.name,
                "names": list(each.names),
                "type": brief(each.dtype, each.shape),
                "bytes": each.nbytes,
                "lr_factor": each.lr_factor,
            }
            for each in parameters
        ],
        "ties": [
            {
                "parameter": tie.parameter.name,
                "names": list(tie.names),
                "evidence": str(tie.evidence),
                "slots": [slot.name for slot in tie.slots],
                "views": [str(slot.view) for slot in tie.slots],
                "saved_bytes": tie.saved_bytes,
            }
            for tie in ties
        ],
        "duplicates": [
            {
                "parameters": [each.name for each in duplicate.parameters],
                "axes": [list(perm) for perm in duplicate.perms],
                "evidence": str(duplicate.evidence),
                "wasted_bytes": duplicate.wasted_bytes,
                "held_back": duplicate.held_back,
            }
            for duplicate in duplicates
        ],
        "ledger": {
            "logical_bytes": ledger.logical_bytes,
            "stored_bytes": ledger.stored_bytes,
        },
    }
