"""The list of layers as people read it: operators counted, repeated blocks folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tieops.analysis.fold import Fold, Item, Plain, folded, grouped
from tieops.analysis.ports import Port
from tieops.analysis.rows import Learnable, Row
from tieops.analysis.sections import shortened
from tieops.ir.brief import brief_bytes, printable

__all__ = ["Entry", "Shape", "entries_of", "shape_text"]

NOTHING = "–"
Shape = tuple[str, ...]
"""Sizes as they are printed; ``("?",)`` if not even their number is known."""


@dataclass(frozen=True)
class Entry:
    """One entry; every text is safe to print.

    Args:
        name: The layer, without what its block says already; or how many operators.
        kind: Its type; or how often a block is there.
        input: The shape of what it reads first.
        output: The shape of what it computes last.
        learnables: Each as text, and the bytes that it adds to what is stored.
        stores: The bytes of a folded block, all repetitions together.
        depth: 1 within a folded block.
    """

    name: str
    kind: str = ""
    input: Shape | None = None
    output: Shape | None = None
    learnables: tuple[tuple[str, str], ...] = ()
    stores: str = ""
    depth: int = 0


def entries_of(rows: Sequence[Row], *, everything: bool = False) -> Iterator[Entry]:
    """Yield the entries in order.

    Args:
        rows: The layers.
        everything: An entry for every layer and operator; nothing is folded.
    """
    if everything:
        yield from (_layer(row) for row in rows)
        return
    for item in folded(grouped(rows)):
        if not isinstance(item, Fold):
            yield _entry(item, [item])
            continue
        stores = brief_bytes(item.owned_bytes) if item.owned_bytes else NOTHING
        yield Entry(printable(item.label), f"×{len(item.blocks)}", stores=stores)
        for place, each in enumerate(item.blocks[0]):
            same = [block[place] for block in item.blocks if place < len(block)]
            yield _entry(each, same, item.prefix, 1)


def _entry(item: Item, same: Sequence[Item], prefix: str = "", depth: int = 0) -> Entry:
    """Return the entry of an item; ``same`` has its like in every block."""
    if isinstance(item, Row):
        return _layer(item, prefix, depth)
    counts = [len(each.rows) for each in same if isinstance(each, Plain)]
    if max(counts) == 1:
        return _layer(item.rows[0], prefix, depth)
    kinds = Counter(printable(row.kind) for row in item.rows)
    shown = ", ".join(kind for kind, _ in kinds.most_common(4)) + (", …" if len(kinds) > 4 else "")
    count = str(max(counts)) if len({*counts}) == 1 else f"{min(counts)}–{max(counts)}"
    return Entry(f"({count} operators: {shown})", depth=depth)


def _layer(row: Row, prefix: str = "", depth: int = 0) -> Entry:
    name = row.name
    if prefix:
        name = name.partition("@")[0]
        name = name.removeprefix(prefix) or name.rpartition(".")[2]
    return Entry(
        printable(name),
        printable(row.kind),
        _shape(row.inputs[:1]),
        _shape(row.outputs[-1:]),
        tuple(_learnable(each) for each in row.learnables),
        depth=depth,
    )


def _learnable(each: Learnable) -> tuple[str, str]:
    return str(each), brief_bytes(each.owned_bytes) if each.owned_bytes else NOTHING


def _shape(ports: Sequence[Port]) -> Shape | None:
    for port in ports:
        if port.shape is None:
            return ("?",)
        return tuple("?" if size is None else printable(str(size)) for size in port.shape)
    return None


def shape_text(shape: Shape | None, longest: int = 99) -> str:
    """Return a shape as text, the names of its sizes cut to ``longest``; nothing for None."""
    if shape is None:
        return ""
    return f"[{','.join(shortened(size, longest, keep_end=False) for size in shape)}]"
