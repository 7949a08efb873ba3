"""Shape propagation: what has to change downstream when one axis of a value changes size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.notation import brief, printable
from tieops.ir.operators.reshaping_shapes import resized_target
from tieops.ir.operators.shape_rules import output_shapes, shows_size
from tieops.ir.operators.sizes import NotKnownError, Resized, Sizes

__all__ = ["ResizePlan", "plan_resize"]


@dataclass(frozen=True, eq=False)
class ResizePlan:
    """What has to be changed so that the graph fits the new size.

    Args:
        sizes: For each value the axis that changes and its new size.
        operands: For each (node, input) the new integers of a shape that named the old size.
    """

    sizes: dict[onnx_ir.Value, tuple[int, int]] = field(
        default_factory=dict[onnx_ir.Value, tuple[int, int]]
    )
    operands: dict[tuple[onnx_ir.Node, int], list[int]] = field(
        default_factory=dict[tuple[onnx_ir.Node, int], list[int]]
    )


def plan_resize(start: onnx_ir.Value, axis: int, old: int, new: int) -> ResizePlan:
    """Propagate a change of size through everything that reads a value.

    Args:
        start: The value whose axis changes.
        axis: Which axis, not negative.
        old: Its size now.
        new: Its size then.

    Raises:
        PreconditionError: If a node downstream depends on the old size, or it is not known whether
            it does; the node is named. Nothing has changed.
    """
    plan = ResizePlan()
    plan.sizes[start] = (axis, new)
    if old == new:
        return plan
    resized = {start: Resized(old, new)}
    done: set[onnx_ir.Node] = set()
    home = start.graph
    assert home is not None
    for node in home:
        value = next((each for each in node.inputs if each in resized), None)
        if value is None:
            continue
        done.add(node)
        for output, at, size in _through(node, value, plan, resized):
            plan.sizes[output] = (at, size.new)
            resized[output] = size
    for value in plan.sizes:
        for node, _ in value.uses():
            if node.graph is not home:
                raise _refused(node, value, old, "it lies in the body of an If, Loop or Scan")
            if node not in done:
                raise _refused(node, value, old, "it stands in front of what it reads")
    return plan


def _through(
    node: onnx_ir.Node,
    value: onnx_ir.Value,
    plan: ResizePlan,
    resized: dict[onnx_ir.Value, Resized],
) -> list[tuple[onnx_ir.Value, int, Resized]]:
    """Return the outputs of a node whose size changes too, with their axes and sizes."""
    old = resized[value].old
    if value.shape is None:
        raise _refused(node, value, old, "the rank of what it reads is not known")
    shapes = [None if each is None else _shape(each, plan, resized) for each in node.inputs]
    place = node.inputs.index(value)
    if shows_size(node, shapes[place] or ()):
        raise _refused(node, value, old, "it hands the size on")
    try:
        outputs = output_shapes(node, shapes)
        target = resized_target(node, shapes)
    except NotKnownError as error:
        raise _refused(node, value, old, str(error)) from None
    if target is not None:
        plan.operands[node, 1] = list(target)
    found: list[tuple[onnx_ir.Value, int, Resized]] = []
    for output, sizes in zip(node.outputs, outputs, strict=False):
        axes = [(axis, size) for axis, size in enumerate(sizes) if isinstance(size, Resized)]
        if len(axes) > 1:
            raise _refused(node, value, old, "its axes cannot be told apart")
        found += [(output, axis, size) for axis, size in axes if size.old != size.new]
    return found


def _shape(
    value: onnx_ir.Value, plan: ResizePlan, resized: dict[onnx_ir.Value, Resized]
) -> Sizes | None:
    if value.const_value is not None and value.producer() is None:
        return [int(size) for size in value.const_value.shape.numpy()]
    if value.shape is None:
        return None
    sizes: list[int | Resized | onnx_ir.SymbolicDim | None] = list(value.shape)
    if value in resized:
        sizes[plan.sizes[value][0]] = resized[value]
    return sizes


def _refused(node: onnx_ir.Node, value: onnx_ir.Value, old: int, why: str) -> PreconditionError:
    reads: Sequence[str] = [_described(each) for each in node.inputs if each is not None]
    return PreconditionError(
        f"cannot change the size {old} of {printable(value.name or '?')}: "
        f"{node.op_type} {printable(node.name or '?')} depends on it",
        {"why": why, "reads": ", ".join(reads)},
        "remove that node first, or its output with remove_disconnected_outputs(outputs=[...])",
    )


def _described(value: onnx_ir.Value) -> str:
    return f"{printable(value.name or '?')} {brief(value.dtype, value.shape)}"
