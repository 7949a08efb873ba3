"""Check sizes of operands that native code has trusted: out of bounds, or a division by zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from tieops.errors import UnsupportedModelError
from tieops.ir.operators.operand_checks import (
    Contradiction,
    ShapesByName,
    check_for,
    may_contradict,
)
from tieops.untrusted.onnx_tensors import shown

__all__ = ["check_operands", "sizes_of"]


def sizes_of(graph: onnx.GraphProto) -> ShapesByName:
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


def check_operands(node: onnx.NodeProto, sizes: Callable[[], ShapesByName]) -> None:
    """Refuse operands that contradict their operator, of those that have crashed readers.

    Args:
        node: The node.
        sizes: Tells the shapes that are known; asked only for operators that are looked at.

    Raises:
        UnsupportedModelError: With the node, the operand and both sizes.
    """
    if not may_contradict(node):
        return
    try:
        check_for(node, sizes())
    except Contradiction as error:
        raise _wrong(node, error.index, error.facts) from None


def _wrong(node: onnx.NodeProto, index: int, facts: Mapping[str, object]) -> UnsupportedModelError:
    name = node.input[index] if index < len(node.input) else node.name
    return UnsupportedModelError(
        f"{shown(node.op_type)} {shown(node.name)}".strip() + f" cannot read {shown(name)}",
        facts,
        "export the model again",
    )
