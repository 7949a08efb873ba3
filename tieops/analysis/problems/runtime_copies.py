"""Find ties that ONNX Runtime undoes on the CPU, from the graph alone.

Two things make a second copy in a plain session. A ``Transpose`` of a stored weight (below 1 GiB)
is folded into a new weight when the session is created. And the weight of a ``MatMul`` or ``Gemm``
is packed for its kernel, while an embedding that reads the same tensor keeps the original alive; a
session of tieops keeps one of the two where the weight is in a data file. ``tieops.resident_bytes``
and ``tieops check --runtime`` measure what a session really holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir

from tieops.analysis.problems.fixes import shown_slots
from tieops.ir.notation import brief_bytes, printable
from tieops.ir.operators.predicates import is_plain_product
from tieops.ir.parameter import Slot
from tieops.ir.problem import Problem
from tieops.ir.tie import Tie

__all__ = ["is_transposed_product", "runtime_problems"]

MIN_BYTES = 1_000_000
"""Below this size a second copy is not worth a word; the runtime arranges nothing below it."""
MAX_FOLDED_BYTES = 1 << 30
"""ONNX Runtime folds no constant that is larger."""
_PACKED_DTYPES = ("FLOAT", "FLOAT16")


def is_transposed_product(slot: Slot) -> bool:
    """Return whether a slot is the second operand of a product, transposed by nodes before it.

    ``to_onnx`` writes it as a ``Gemm`` that transposes by itself.
    """
    plain = is_plain_product(slot.node)
    return plain and slot.index == 1 and not slot.is_joined and slot.view.permutation == (1, 0)


def runtime_problems(ties: Iterable[Tie]) -> Iterator[Problem]:
    """Yield a problem for each tied weight that a plain session would hold twice.

    Args:
        ties: The ties of a model.
    """
    for tie in ties:
        nbytes, name = tie.parameter.nbytes, printable(tie.parameter.name)
        if nbytes < MIN_BYTES or tie.saved_bytes < nbytes:
            continue
        folded = [slot for slot in tie.slots if is_transposed_product(slot)]
        if folded and nbytes < MAX_FOLDED_BYTES:
            yield Problem(
                "folded copy",
                "caution",
                f"ONNX Runtime folds the transpose of {name} for {shown_slots(folded)}: a second "
                f"copy of {brief_bytes(nbytes)} in memory",
                "tieops convert MODEL OUT --external-data",
                'tieops.to_onnx(model, "out.onnx", external_data=True)',
                nbytes,
            )
            continue
        if isinstance(tie.parameter.tensor, onnx_ir.ExternalTensor):
            continue  # a session of tieops maps it, and keeps one copy
        packed = [slot for slot in tie.slots if _is_packed(slot)]
        if packed and len(packed) < len(tie.slots):
            yield Problem(
                "packed copy",
                "caution",
                f"ONNX Runtime packs {name} for {shown_slots(packed)}: a second copy of "
                f"{brief_bytes(nbytes)} on the CPU; from a data file, a session of tieops keeps "
                "one",
                "tieops convert MODEL OUT --external-data",
                'tieops.to_onnx(model, "out.onnx", external_data=True)',
                nbytes,
            )


def _is_packed(slot: Slot) -> bool:
    is_product = is_plain_product(slot.node) and slot.index == 1
    reads_it_directly = slot.node.inputs[slot.index] is slot.parameter.value
    return is_product and reads_it_directly and slot.parameter.dtype.name in _PACKED_DTYPES
