"""Value flow through operators: which pass values on unchanged, and which index rows by them."""

from __future__ import annotations

from dataclasses import dataclass

from tieops.ir.operators.identity import Operator, operator_name

__all__ = ["Table", "keeps_sizes", "moves_values", "passes_values_on", "table_of"]

_MOVES = (
    "Cast", "CastLike", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Identity", "Pad",
    "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
)  # fmt: skip
_SELECTS = ("Clip", "Gather", "GatherElements", "GatherND", "Trilu")
# Which inputs an operator passes on with their values; an empty tuple means all of them.
_PASSES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((*_MOVES, *_SELECTS), (0,)),
    **dict.fromkeys(("ScatterND", "ScatterElements"), (0, 2)),
    "Where": (1, 2),
    **dict.fromkeys(("Concat", "Max", "Min"), ()),
}


@dataclass(frozen=True)
class Table:
    """What an operator looks up in by an input of its own.

    Args:
        input: Which input is the table.
        axis: The attribute that names its axis; empty if that is always the first.
        is_nested: Whether the last axis of the indices holds one index for each of several axes,
            of which the first is that of the attribute.
        depth: Which input says how many rows there are, where there is no table.
    """

    input: int = 0
    axis: str = ""
    is_nested: bool = False
    depth: int | None = None


# By operator and the position of the indices.
_TABLES = {
    ("Gather", 1): Table(0, "axis"),
    ("GatherElements", 1): Table(0, "axis"),
    ("ScatterElements", 1): Table(0, "axis"),
    ("GatherND", 1): Table(0, "batch_dims", is_nested=True),
    ("ScatterND", 1): Table(0, "batch_dims", is_nested=True),
    ("OneHot", 0): Table(depth=1),
    ("com.microsoft.GatherBlockQuantized", 1): Table(0, "gather_axis"),
    ("com.microsoft.EmbedLayerNormalization", 0): Table(2),
    ("com.microsoft.EmbedLayerNormalization", 1): Table(4),
}
_KEEPS_SIZES = frozenset((
    "Cast", "CastLike", "DequantizeLinear", "Identity", "QuantizeLinear", "Squeeze", "Transpose",
    "Unsqueeze",
))  # fmt: skip


def moves_values(node: Operator) -> bool:
    """Return whether a node's outputs hold its data's values, moved, repeated or cast."""
    return operator_name(node) in _MOVES


def passes_values_on(node: Operator, index: int) -> bool:
    """Return whether the values of an input are among those of the outputs."""
    taken = _PASSES.get(operator_name(node))
    return taken is not None and (not taken or index in taken)


def table_of(node: Operator, index: int) -> Table | None:
    """Return what an input indexes; None if it is not an index."""
    return _TABLES.get((operator_name(node), index))


def keeps_sizes(node: Operator) -> bool:
    """Return whether the sizes of an output are those of the first input, but for ones."""
    return operator_name(node) in _KEEPS_SIZES
