"""Find shared weights that ONNX Runtime's quantizer would break.

``onnxruntime.quantization.quantize_dynamic`` turns each Gemm into a MatMul first. Where the Gemm
has ``transB=1`` it transposes the stored weight in place, on the assumption that no other node
reads it (``ONNXModel.replace_gemm_with_matmul``). The other readers then see the transpose: outputs
are wrong where the weight is square, and no session opens where it is not. ``quantize_static``
leaves Gemm as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir

from tieops.analysis.problems.fixes import shown_slots, untie_fix
from tieops.ir.notation import printable
from tieops.ir.operators.predicates import is_gemm
from tieops.ir.parameter import Slot
from tieops.ir.problem import Problem
from tieops.ir.tie import Tie

__all__ = ["quantizer_problems"]


def quantizer_problems(ties: Iterable[Tie]) -> Iterator[Problem]:
    """Yield a problem for each tie that dynamic quantization by ONNX Runtime would break.

    Args:
        ties: The ties of a model.
    """
    for tie in ties:
        reading = [slot for slot in tie.slots if _is_transposed_in_place(slot)]
        stored = {slot.parameter.value for slot in tie.slots}
        readers = {usage for value in stored for usage in value.uses()}
        if reading and len(readers) > 1:
            # Named as a whole, the first reader keeps the tensor and all others leave.
            alike = len(reading) == len(tie.slots)
            targets = [tie.parameter.name] if alike else [slot.name for slot in reading]
            told = f"each of its {len(reading)} readers" if alike else shown_slots(reading)
            yield Problem(
                "quantizer",
                "caution",
                f"quantize_dynamic of ONNX Runtime would transpose {printable(tie.parameter.name)} "
                f"for {told} and break its other readers",
                *untie_fix(targets),
            )


def _is_transposed_in_place(slot: Slot) -> bool:
    node, value = slot.node, slot.parameter.value
    if not is_gemm(node) or slot.index != 1 or node.inputs[1] is not value:
        return False
    plain = _number(node, "alpha", 1) == 1 == _number(node, "beta", 1)
    return plain and _number(node, "transB", 0) == 1 and _number(node, "transA", 0) == 0


def _number(node: onnx_ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return default
    return float(attribute.value)
