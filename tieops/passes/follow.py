"""What happens downstream when one axis of a value changes its size: what follows, what cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.brief import brief, printable
from tieops.ir.operators.operands import Missing, known_ints, operand

__all__ = ["Following", "follow"]

_SAME = frozenset((
    "Softmax", "LogSoftmax", "Hardmax", "Sigmoid", "HardSigmoid", "Relu", "LeakyRelu", "Elu",
    "Selu", "Gelu", "Tanh", "Identity", "Cast", "Neg", "Exp", "Log", "Sqrt", "Abs", "Clip",
    "Dropout", "Erf", "Floor", "Ceil", "Round", "Sign", "Softplus", "Softsign", "Not", "IsNaN",
    "Mish", "HardSwish", "Celu", "ThresholdedRelu", "Reciprocal", "Sin", "Cos", "CumSum",
))  # fmt: skip
"""Operators whose outputs have the shape of their first input."""
_BROADCAST = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "Equal", "Greater",
    "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Mod", "PRelu",
))  # fmt: skip
_REDUCE = frozenset((
    "ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin",
))  # fmt: skip

_POOLS = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "AveragePool", "MaxPool", "LpPool")


@dataclass(frozen=True, eq=False)
class Following:
    """What has to be changed so that the graph follows.

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


def follow(start: onnx_ir.Value, axis: int, old: int, new: int) -> Following:
    """Follow a change of size through everything that reads a value.

    Args:
        start: The value whose axis changes.
        axis: Which axis, not negative.
        old: Its size now.
        new: Its size then.

    Raises:
        PreconditionError: If a node downstream has the old size baked in, or it cannot be told; the
            node is named. Nothing has changed.
    """
    plan = Following()
    plan.sizes[start] = (axis, new)
    home = start.graph
    pending = [start]
    while pending:
        value = pending.pop()
        at, _ = plan.sizes[value]
        for node, index in value.uses():
            if node.graph is not home:
                raise _baked(node, value, old, "it lies in the body of an If, Loop or Scan")
            if value.shape is None:
                raise _baked(node, value, old, "the rank of what it reads is not known")
            for output, out_axis in _through(node, index, value, at, old, new, plan):
                known = plan.sizes.get(output)
                if known is None:
                    plan.sizes[output] = (out_axis, new)
                    pending.append(output)
                elif known[0] != out_axis:
                    raise _baked(node, value, old, "its axes cannot be told apart")
    return plan


def _baked(node: onnx_ir.Node, value: onnx_ir.Value, old: int, why: str) -> PreconditionError:
    return PreconditionError(
        f"cannot change the size {old} of {printable(value.name or '?')}: "
        f"{node.op_type} {printable(node.name or '?')} depends on it",
        {"why": why, "reads": ", ".join(_described(v) for v in node.inputs if v is not None)},
        "remove that node first, or its output with remove_disconnected_outputs(outputs=[...])",
    )


def _described(value: onnx_ir.Value) -> str:
    return f"{printable(value.name or '?')} {brief(value.dtype, value.shape)}"


def _through(
    node: onnx_ir.Node,
    index: int,
    value: onnx_ir.Value,
    axis: int,
    old: int,
    new: int,
    plan: Following,
) -> list[tuple[onnx_ir.Value, int]]:
    """Return the outputs whose size changes too, with their axes."""
    kind = node.op_type
    first = node.outputs[0]
    rank = _rank(value)
    if node.domain not in ("", "ai.onnx"):
        raise _baked(node, value, old, "tieops does not know this operator")
    if kind in _SAME and index == 0:
        return [(output, axis) for output in node.outputs]
    if kind in _BROADCAST:
        return [(first, _broadcast(node, index, value, axis, old, plan))]
    if kind == "Shape" and not _shows(node, value, axis):
        return []
    if kind in _POOLS and axis == 1:
        return [(output, 1) for output in node.outputs]
    if kind in _REDUCE:
        return _reduced(node, value, axis, old)
    special: dict[str, Callable[[], list[tuple[onnx_ir.Value, int]]]] = {
        "Transpose": lambda: [(first, _order(node, rank).index(axis))],
        "Reshape": lambda: _reshape(node, value, axis, old, new, plan),
        "Squeeze": lambda: _squeezed(node, value, axis, old),
        "Unsqueeze": lambda: [(first, _unsqueezed(node, axis, rank))],
        "Flatten": lambda: _flatten(node, value, axis, old),
        "Gather": lambda: _gather(node, value, index, axis, old, new),
        "Slice": lambda: _slice(node, value, axis, old, new),
        "TopK": lambda: _top_k(node, value, axis, old, new),
    }
    if kind not in special or (index != 0 and kind != "Gather"):
        raise _baked(node, value, old, "the new size cannot be followed through this operator")
    return special[kind]()


def _rank(value: onnx_ir.Value) -> int:
    return 0 if value.shape is None else value.shape.rank()


def _order(node: onnx_ir.Node, rank: int) -> list[int]:
    perm = node.attributes.get("perm")
    return list(reversed(range(rank))) if perm is None else list(perm.as_ints())


def _is_given(node: onnx_ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _known(node: onnx_ir.Node, index: int, name: str) -> tuple[int, ...] | None:
    found = operand(node, index, name)
    return None if isinstance(found, Missing) else found


def _axes(node: onnx_ir.Node, rank: int) -> list[int]:
    return sorted(axis % rank for axis in _known(node, 1, "axes") or ())


def _squeezed(
    node: onnx_ir.Node, value: onnx_ir.Value, axis: int, old: int
) -> list[tuple[onnx_ir.Value, int]]:
    sizes: list[object] = [] if value.shape is None else list(value.shape)
    if _known(node, 1, "axes") is not None:
        gone = _axes(node, len(sizes))
    elif not _is_given(node, 1) and all(isinstance(size, int) for size in sizes):
        gone = [each for each, size in enumerate(sizes) if size == 1]
    else:
        raise _baked(node, value, old, "which axes it drops is not known")
    if axis in gone:
        raise _baked(node, value, old, "it drops the axis, which has to be of size 1")
    return [(node.outputs[0], axis - sum(each < axis for each in gone))]


def _unsqueezed(node: onnx_ir.Node, axis: int, rank: int) -> int:
    added = rank + len(_known(node, 1, "axes") or ())
    new = set(_axes(node, added))
    return [each for each in range(added) if each not in new][axis]


def _broadcast(
    node: onnx_ir.Node, index: int, value: onnx_ir.Value, axis: int, old: int, plan: Following
) -> int:
    from_end = _rank(value) - axis
    highest = _rank(value)
    for position, other in enumerate(node.inputs):
        if other is None or position == index or other is value or other in plan.sizes:
            continue
        highest = max(highest, _rank(other))
        if other.shape is None:
            raise _baked(node, value, old, f"the shape of {other.name} is not known")
        if other.shape.rank() < from_end:
            continue
        size = other.shape[other.shape.rank() - from_end]
        if old == 1 and size != 1:
            raise _baked(node, value, old, f"it is spread over {other.name}, which has {size}")
        if size == old != 1:
            stored = "a stored constant" if other.const_value is not None else "another value"
            raise _baked(node, value, old, f"{other.name} is {stored} of the old size")
    return highest - from_end


def _reduced(
    node: onnx_ir.Node, value: onnx_ir.Value, axis: int, old: int
) -> list[tuple[onnx_ir.Value, int]]:
    rank = _rank(value)
    if node.op_type in ("ArgMax", "ArgMin"):
        attr = node.attributes.get("axis")
        axes = [(0 if attr is None else attr.as_int()) % rank]
    elif _is_given(node, 1) and _known(node, 1, "axes") is None:
        raise _baked(node, value, old, "which axes it reduces is not known")
    else:
        noop = node.attributes.get("noop_with_empty_axes")
        every = [] if noop is not None and noop.as_int() else list(range(rank))
        axes = _axes(node, rank) or every
    keep = node.attributes.get("keepdims")
    if axis in axes:
        return []
    gone = 0 if keep is None or keep.as_int() else sum(each < axis for each in axes)
    return [(node.outputs[0], axis - gone)]


def _shows(node: onnx_ir.Node, value: onnx_ir.Value, axis: int) -> bool:
    """Tell whether a Shape node hands the size of an axis on to others."""
    start, end = node.attributes.get("start"), node.attributes.get("end")
    picked = range(_rank(value))[
        slice(None if start is None else start.as_int(), None if end is None else end.as_int())
    ]
    if axis not in picked:
        return False
    for reader, index in node.outputs[0].uses():
        taken: list[int] | None = None
        if reader.op_type == "Gather" and index == 0:
            found = known_ints(reader.inputs[1])
            taken = None if found is None else [picked[each] for each in found]
        elif reader.op_type == "Slice" and index == 0:
            starts, ends = known_ints(reader.inputs[1]), known_ints(reader.inputs[2])
            if starts and ends and len(reader.inputs) < 5:
                taken = list(picked[slice(starts[0], ends[0])])
        if taken is None or axis in taken:
            return True
    return bool(node.outputs[0].is_graph_output())


def _reshape(
    node: onnx_ir.Node, value: onnx_ir.Value, axis: int, old: int, new: int, plan: Following
) -> list[tuple[onnx_ir.Value, int]]:
    target = known_ints(node.inputs[1])
    shape: list[object] = [] if value.shape is None else list(value.shape)
    behind = shape[axis + 1 :]
    if target is None or not all(isinstance(size, int) for size in behind):
        raise _baked(node, value, old, "it reshapes to sizes that are not known")
    sizes: list[object] = [
        shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(target)
    ]
    # The axis comes out as one if as many elements lie behind it, and as many before it, as did.
    spots = [
        spot
        for spot in range(len(sizes))
        if _product(sizes[spot + 1 :]) == _product(behind)
        and (
            sizes[spot] == old
            or (sizes[spot] == -1 and _without_ones(sizes[:spot]) == _without_ones(shape[:axis]))
        )
    ]
    if not spots:
        raise _baked(node, value, old, f"it reshapes to {list(target)}")
    spot = spots[0]
    if target[spot] == old:
        plan.operands[node, 1] = [new if i == spot else size for i, size in enumerate(target)]
    return [(node.outputs[0], spot)]


def _product(sizes: Sequence[object]) -> int | None:
    """Return the product of sizes; None if one is not known, or left to be inferred."""
    known = [size for size in sizes if isinstance(size, int) and size >= 0]
    return math.prod(known) if len(known) == len(sizes) else None


def _without_ones(sizes: Sequence[object]) -> list[str]:
    return [str(size) for size in sizes if size != 1]


def _flatten(
    node: onnx_ir.Node, value: onnx_ir.Value, axis: int, old: int
) -> list[tuple[onnx_ir.Value, int]]:
    attr = node.attributes.get("axis")
    cut = (1 if attr is None else attr.as_int()) % max(_rank(value), 1)
    behind = [] if value.shape is None else list(value.shape)[axis + 1 :]
    if cut == axis and _product(behind) == 1:
        return [(node.outputs[0], 1)]
    raise _baked(node, value, old, "it merges the axis with others")


def _gather(
    node: onnx_ir.Node, value: onnx_ir.Value, index: int, axis: int, old: int, new: int
) -> list[tuple[onnx_ir.Value, int]]:
    attr = node.attributes.get("axis")
    along = (0 if attr is None else attr.as_int()) % max(_rank(value), 1)
    if index != 0:
        raise _baked(node, value, old, "it is used as indices")
    indices = known_ints(node.inputs[1])
    rank = _rank(node.inputs[1]) if node.inputs[1] is not None else 0
    if along != axis:
        return [(node.outputs[0], axis if axis < along else axis + rank - 1)]
    if indices is None or any(not -new <= each < new for each in indices):
        raise _baked(node, value, old, f"it takes elements {list(indices or ())[:8]} of the axis")
    return []


def _slice(
    node: onnx_ir.Node, value: onnx_ir.Value, axis: int, old: int, new: int
) -> list[tuple[onnx_ir.Value, int]]:
    starts, ends, axes, steps = (
        _known(node, place, name)
        for place, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    if starts is None or ends is None:
        raise _baked(node, value, old, "it slices by computed bounds")
    along = [each % _rank(value) for each in axes or range(len(starts))]
    if axis not in along:
        return [(node.outputs[0], axis)]
    start, end = starts[along.index(axis)], ends[along.index(axis)]
    step = 1 if steps is None else steps[along.index(axis)]
    if start == 0 and end > old and step == 1:
        return [(node.outputs[0], axis)]
    raise _baked(node, value, old, f"it slices {start}:{end} of the axis")


def _top_k(
    node: onnx_ir.Node, value: onnx_ir.Value, axis: int, old: int, new: int
) -> list[tuple[onnx_ir.Value, int]]:
    attr = node.attributes.get("axis")
    along = (-1 if attr is None else attr.as_int()) % max(_rank(value), 1)
    if along != axis:
        return [(output, axis) for output in node.outputs]
    count = _known(node, 1, "k")
    if count is None or count[0] > new:
        raise _baked(node, value, old, "it takes more elements than there will be")
    return []
