"""Sizes of operands that native code has trusted: read past the end of, or divided by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx

from tieops.errors import UnsupportedModelError
from tieops.importers.onnx_tensors import shown

__all__ = ["Sizes", "check_operands", "sizes_of"]

Sizes = Mapping[str, tuple[int | None, ...]]
"""What graph inputs and stored tensors say: None for a size that is not known."""


def sizes_of(graph: onnx.GraphProto) -> Sizes:
    """Return the shapes that a graph's inputs declare and its stored tensors have."""
    found: dict[str, tuple[int | None, ...]] = {}
    for value in graph.input:
        declared = value.type.tensor_type
        if declared.HasField("shape"):
            found[value.name] = tuple(
                size.dim_value if size.HasField("dim_value") else None
                for size in declared.shape.dim
            )
    found.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
    return found


def check_operands(node: onnx.NodeProto, sizes: Callable[[], Sizes]) -> None:
    """Refuse operands that contradict their operator, of those that have crashed readers.

    Gemm and Conv: https://github.com/onnx/onnx/issues/6185 and 6180; MatMulNBits: its description
    in ONNX Runtime's ContribOperators.md.

    Args:
        node: The node.
        sizes: Tells the shapes that are known; asked only for operators that are looked at.

    Raises:
        UnsupportedModelError: With the node, the operand and both sizes.
    """
    check = _CHECKS.get(node.op_type)
    if check is not None:
        check(node, sizes())


def _operand(node: onnx.NodeProto, index: int, sizes: Sizes) -> tuple[int | None, ...] | None:
    return sizes.get(node.input[index]) if index < len(node.input) else None


def _check_gemm(node: onnx.NodeProto, sizes: Sizes) -> None:
    for index in (0, 1):
        operand = _operand(node, index, sizes)
        if operand is not None and len(operand) != 2:
            raise _wrong(node, index, {"axes": len(operand), "needed": 2})
    third = _operand(node, 2, sizes)
    if third is not None and len(third) > 2:
        raise _wrong(node, 2, {"axes": len(third), "needed": "at most 2"})


def _check_conv(node: onnx.NodeProto, sizes: Sizes) -> None:
    ranks = {len(each) for index in (0, 1) if (each := _operand(node, index, sizes)) is not None}
    if len(ranks) > 1 or (ranks and min(ranks) < 3):
        listed = ", ".join(map(str, sorted(ranks)))
        raise _wrong(node, 1, {"axes": listed, "needed": "as many as the input, 3 or more"})
    spatial = next(iter(ranks)) - 2 if ranks else None
    for attribute in node.attribute:
        if attribute.name in ("strides", "dilations", "kernel_shape", "pads"):
            values = list(attribute.ints)
            count = len(values) // (2 if attribute.name == "pads" else 1)
            least = 0 if attribute.name == "pads" else 1
            if any(value < least for value in values) or spatial not in (None, count):
                facts = {attribute.name: str(values[:8]), "spatial axes": spatial}
                raise _wrong(node, 0, facts)
        if attribute.name == "group" and attribute.i < 1:
            raise _wrong(node, 1, {"group": attribute.i})


def _check_blocks(node: onnx.NodeProto, sizes: Sizes) -> None:
    if node.domain != "com.microsoft":
        return
    numbers = {each.name: each.i for each in node.attribute}
    if numbers.get("weight_prepacked"):
        return
    k, n, bits = numbers.get("K", 0), numbers.get("N", 0), numbers.get("bits", 4)
    block = numbers.get("block_size", 0)
    if min(k, n, bits, block) < 1 or bits > 8:
        raise _wrong(node, 1, {"K": k, "N": n, "bits": bits, "block_size": block})
    blocks = n * -(-k // block)
    for index, needed in ((1, blocks * (block * bits // 8)), (2, blocks)):
        operand = _operand(node, index, sizes)
        known = None if operand is None else [size for size in operand if size is not None]
        if operand is None or known is None or len(known) < len(operand):
            continue
        if math.prod(known) != needed:
            raise _wrong(node, index, {"elements": math.prod(known), "needed": needed})


_CHECKS = {
    "Gemm": _check_gemm,
    "Conv": _check_conv,
    "ConvTranspose": _check_conv,
    "MatMulNBits": _check_blocks,
}


def _wrong(node: onnx.NodeProto, index: int, facts: Mapping[str, object]) -> UnsupportedModelError:
    name = node.input[index] if index < len(node.input) else node.name
    return UnsupportedModelError(
        f"{shown(node.op_type)} {shown(node.name)}".strip() + f" cannot read {shown(name)}",
        facts,
        "export the model again",
    )
