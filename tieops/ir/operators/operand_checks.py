"""Check operands that native code would trust without checking.

Gemm and Conv: https://github.com/onnx/onnx/issues/6185 and 6180; MatMulNBits: its description in
ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx

from tieops.ir.operators.identity import operator_name

__all__ = ["Contradiction", "ShapesByName", "check_for", "may_contradict"]

ShapesByName = Mapping[str, tuple[int | None, ...]]
"""What is known of shapes: None for a size that is not known."""


class Contradiction(Exception):  # noqa: N818 - no error of the library's: the importer makes one
    """An operand and what is wrong with it; never leaves the importer."""

    def __init__(self, index: int, facts: Mapping[str, object]) -> None:
        super().__init__(index, facts)
        self.index = index
        self.facts = facts


def may_contradict(node: onnx.NodeProto) -> bool:
    """Return whether there is a check for the operator of a node."""
    return operator_name(node) in _CHECKS


def check_for(node: onnx.NodeProto, sizes: ShapesByName) -> None:
    """Check the operands of a node.

    Raises:
        Contradiction: If one of them contradicts the operator.
    """
    _CHECKS[operator_name(node)](node, sizes)


def _operand(
    node: onnx.NodeProto, index: int, sizes: ShapesByName
) -> tuple[int | None, ...] | None:
    return sizes.get(node.input[index]) if index < len(node.input) else None


def _check_gemm(node: onnx.NodeProto, sizes: ShapesByName) -> None:
    for index in (0, 1):
        operand = _operand(node, index, sizes)
        if operand is not None and len(operand) != 2:
            raise Contradiction(index, {"axes": len(operand), "needed": 2})
    third = _operand(node, 2, sizes)
    if third is not None and len(third) > 2:
        raise Contradiction(2, {"axes": len(third), "needed": "at most 2"})


def _check_conv(node: onnx.NodeProto, sizes: ShapesByName) -> None:
    ranks = {len(each) for index in (0, 1) if (each := _operand(node, index, sizes)) is not None}
    if len(ranks) > 1 or (ranks and min(ranks) < 3):
        listed = ", ".join(map(str, sorted(ranks)))
        raise Contradiction(1, {"axes": listed, "needed": "as many as the input, 3 or more"})
    spatial = next(iter(ranks)) - 2 if ranks else None
    for attribute in node.attribute:
        if attribute.name in ("strides", "dilations", "kernel_shape", "pads"):
            values = list(attribute.ints)
            count = len(values) // (2 if attribute.name == "pads" else 1)
            least = 0 if attribute.name == "pads" else 1
            if any(value < least for value in values) or spatial not in (None, count):
                facts = {attribute.name: str(values[:8]), "spatial axes": spatial}
                raise Contradiction(0, facts)
        if attribute.name == "group" and attribute.i < 1:
            raise Contradiction(1, {"group": attribute.i})


def _check_blocks(node: onnx.NodeProto, sizes: ShapesByName) -> None:
    numbers = {each.name: each.i for each in node.attribute}
    if numbers.get("weight_prepacked"):
        return
    k, n, bits = numbers.get("K", 0), numbers.get("N", 0), numbers.get("bits", 4)
    block = numbers.get("block_size", 0)
    if min(k, n, bits, block) < 1 or bits > 8:
        raise Contradiction(1, {"K": k, "N": n, "bits": bits, "block_size": block})
    blocks = n * -(-k // block)
    for index, needed in ((1, blocks * (block * bits // 8)), (2, blocks)):
        operand = _operand(node, index, sizes)
        known = None if operand is None else [size for size in operand if size is not None]
        if operand is None or known is None or len(known) < len(operand):
            continue
        if math.prod(known) != needed:
            raise Contradiction(index, {"elements": math.prod(known), "needed": needed})


_CHECKS: Mapping[str, Callable[[onnx.NodeProto, ShapesByName], None]] = {
    "Gemm": _check_gemm,
    "Conv": _check_conv,
    "ConvTranspose": _check_conv,
    "com.microsoft.MatMulNBits": _check_blocks,
}
