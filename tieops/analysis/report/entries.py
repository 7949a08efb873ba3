"""The list of layers for reading: operators counted, repeated blocks folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tieops.analysis.repeats import Repeat
from tieops.analysis.report.layer_ports import Port
from tieops.analysis.report.rows import Learnable, Row
from tieops.analysis.report.sections import shortened
from tieops.ir.notation import brief_bytes, printable

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


def entries_of(
    rows: Sequence[Row], repeats: Iterable[Repeat], *, everything: bool = False
) -> Iterator[Entry]:
    """Yield the entries in order.

    Args:
        rows: The layers.
        repeats: Which of them are repeated blocks.
        everything: An entry for every layer and operator; nothing is folded.
    """
    if everything:
        yield from (_layer(row) for row in rows)
        return
    at = 0
    for repeat in repeats:
        yield from _stretch(rows[at : repeat.starts[0]])
        blocks = [rows[block.start : block.stop] for block in repeat.blocks]
        owned = sum(row.owned_bytes for block in blocks for row in block)
        stores = brief_bytes(owned) if owned else NOTHING
        yield Entry(printable(_title(repeat, blocks)), f"×{len(blocks)}", stores=stores)
        plain = [tuple(counts) for counts in zip(*map(_plain_counts, blocks), strict=True)]
        yield from _stretch(blocks[0], plain, ".".join(repeat.modules[0]), 1)
        at = repeat.stop
    yield from _stretch(rows[at:])


def _title(repeat: Repeat, blocks: Sequence[Sequence[Row]]) -> str:
    """Return what the blocks are called; by their first layers where no module tells."""
    if repeat.title:
        return repeat.title
    first, last = (next(row.name for row in block if row.learnables) for block in
                   (blocks[0], blocks[-1]))  # fmt: skip
    return f"{first} … {last}"


def _plain_counts(rows: Sequence[Row]) -> list[int]:
    """Return how many operators lie before each layer with learnables, and behind the last."""
    counts = [0]
    for row in rows:
        if row.learnables:
            counts.append(0)
        else:
            counts[-1] += 1
    return counts


def _stretch(
    rows: Sequence[Row],
    plain: Sequence[Sequence[int]] = (),
    module: str = "",
    depth: int = 0,
) -> Iterator[Entry]:
    """Yield the entries of layers that follow each other.

    Args:
        rows: The layers.
        plain: For each place where operators may lie, how many there are in every block.
        module: What the names of layers need not say again.
        depth: 1 within a folded block.
    """
    plain = plain or [(count,) for count in _plain_counts(rows)]
    place = 0
    operators: list[Row] = []
    for row in [*rows, None]:
        if row is not None and not row.learnables:
            operators.append(row)
            continue
        if operators:
            yield _operators(operators, plain[place], module, depth)
        operators = []
        place += 1
        if row is not None:
            yield _layer(row, module, depth)


def _operators(rows: Sequence[Row], counts: Sequence[int], module: str, depth: int) -> Entry:
    """Return the entry of operators; ``counts`` has how many there are in every block."""
    fewest, most = min(counts), max(counts)
    if most == 1:
        return _layer(rows[0], module, depth)
    kinds = Counter(printable(row.kind) for row in rows)
    shown = ", ".join(kind for kind, _ in kinds.most_common(4)) + (", …" if len(kinds) > 4 else "")
    count = str(most) if fewest == most else f"{fewest}–{most}"
    return Entry(f"({count} operators: {shown})", depth=depth)


def _layer(row: Row, module: str = "", depth: int = 0) -> Entry:
    name = row.name
    if module:
        name = name.partition("@")[0]
        name = name.removeprefix(module) or name.rpartition(".")[2]
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
