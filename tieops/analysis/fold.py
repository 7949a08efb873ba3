"""Folding: layers that repeat (the blocks of a transformer) are told once, with their number."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tieops.analysis.rows import Row

__all__ = ["Fold", "Item", "Plain", "folded", "grouped"]

MAX_PERIOD = 200
"""A block of more items than this is not looked for."""
MAX_WORK = 4_000_000
"""How many pairs of items are compared; of a model of 40,000 layers, only short blocks fold."""


@dataclass(frozen=True)
class Plain:
    """Operators without learnables that follow each other."""

    rows: tuple[Row, ...]


Item = Row | Plain


@dataclass(frozen=True)
class Fold:
    """Blocks that follow each other and differ in the numbers in their names, and in operators.

    Args:
        blocks: The items of each.
    """

    blocks: tuple[tuple[Item, ...], ...]

    @property
    def owned_bytes(self) -> int:
        """What all blocks own together."""
        items = (item for block in self.blocks for item in block)
        return sum(item.owned_bytes for item in items if isinstance(item, Row))

    @property
    def prefix(self) -> str:
        """What the names of all layers of the first block begin with; empty if nothing."""
        common = _prefix(self.blocks[0])
        first = self._ends[0].partition("@")[0]
        return first if common.startswith(first) else common

    @property
    def label(self) -> str:
        """What the blocks are called: ``h.0 … 11``, or ``ffn@1 … @11`` for calls of one module."""
        return " … ".join(dict.fromkeys(self._ends))

    @property
    def _ends(self) -> tuple[str, str]:
        """The first block's name, up to where it differs, and that part of the last one's."""
        first, last = _called(self.blocks[0]), _called(self.blocks[-1])
        one, other = (re.split(r"(?<=\.)|(?=@)", name) for name in (first, last))
        same = _alike([one, other])
        if first == last or same == len(other):
            return first, last
        return "".join(one[: same + 1]).rstrip("."), other[same].rstrip(".")


def grouped(rows: Iterable[Row]) -> list[Item]:
    """Return the layers with learnables, and what lies between them as one item each time."""
    found: list[Item] = []
    plain: list[Row] = []
    for row in rows:
        if row.learnables:
            found += [Plain(tuple(plain))] if plain else []
            found.append(row)
            plain = []
        else:
            plain.append(row)
    return [*found, Plain(tuple(plain))] if plain else found


def folded(items: Sequence[Item]) -> Iterator[Item | Fold]:
    """Yield the items, with repeated blocks as one each.

    Of the blocks that begin with a layer, the one is taken that covers the most; but where blocks
    begin in the midst of a module, those are waited for that are a module each.
    """
    numbers: dict[Hashable, int] = {}
    runs = _runs([numbers.setdefault(_key(item), len(numbers)) for item in items])
    position = 0
    while position < len(items):
        period, covered = _best(items, runs, position)
        if not covered or _is_early(items, runs, position, period, covered):
            yield items[position]
            position += 1
            continue
        end = position + covered
        starts = range(position, end, period)
        yield Fold(tuple(tuple(items[start : min(start + period, end)]) for start in starts))
        position = end


def _key(item: Item) -> Hashable:
    """Return what two items have in common that differ in numbers in their names alone."""
    if isinstance(item, Plain):
        return "operators"
    learnables = tuple((each.role, each.type, each.view, each.readers) for each in item.learnables)
    # Further calls of a module are called fqn@1 here, and fqn_1 by torch's older exporter.
    name = re.sub(r"[@_]\d+(?=[./]|$)", "", item.name)
    return re.sub(r"\d+", "#", name), item.kind, learnables


def _runs(keys: Sequence[int]) -> list[list[int]]:
    """Return for each period and place how many keys from there on equal the one a period later."""
    found: list[list[int]] = [[]]
    longest = min(MAX_PERIOD, len(keys) // 2, MAX_WORK // max(1, len(keys)))
    for period in range(1, longest + 1):
        run = [0] * (len(keys) + 1)
        for place in range(len(keys) - period - 1, -1, -1):
            run[place] = run[place + 1] + 1 if keys[place] == keys[place + period] else 0
        found.append(run)
    return found


def _best(items: Sequence[Item], runs: Sequence[Sequence[int]], position: int) -> tuple[int, int]:
    """Return the period of the blocks that begin here, and how many items they are together."""
    best = (0, 0)
    if isinstance(items[position], Plain):
        return best
    for period in range(1, len(runs)):
        alike = runs[period][position] + period
        covered = alike - alike % period
        if alike - covered == period - 1 and isinstance(items[position + period - 1], Plain):
            covered = alike  # operators between blocks do not follow the last
        is_worth_it = covered > period + 1
        if is_worth_it and covered > best[1]:
            best = period, covered
    return best


def _is_early(
    items: Sequence[Item],
    runs: Sequence[Sequence[int]],
    position: int,
    period: int,
    covered: int,
) -> bool:
    """Tell whether blocks of one module each begin soon after blocks that are none."""
    if _are_modules(items, position, period):
        return False
    for later in range(position + 1, position + period):
        other, reach = _best(items, runs, later)
        if reach > covered - 2 * period and other and _are_modules(items, later, other):
            return True
    return False


def _are_modules(items: Sequence[Item], position: int, period: int) -> bool:
    """Tell whether the first two of some blocks are modules of different names, or calls."""
    middle = position + period
    return _called(items[position:middle]) != _called(items[middle : middle + period])


def _names(items: Sequence[Item]) -> list[str]:
    return [item.name for item in items if isinstance(item, Row)]


def _called(items: Sequence[Item]) -> str:
    """Return the module that a block is, with the number of its call; else its first layer."""
    names = _names(items)
    calls = {name.partition("@")[2] for name in names}
    call = f"@{calls.pop()}" if len(calls) == 1 and "" not in calls else ""
    prefix = _prefix(items)
    return prefix + call if prefix else next(iter(names), "")


def _prefix(items: Sequence[Item]) -> str:
    names = [name.partition("@")[0].split(".") for name in _names(items)]
    return ".".join(names[0][: _alike(names)]) if names else ""


def _alike(names: Sequence[Sequence[str]]) -> int:
    """Return with how many equal parts all names begin."""
    places = enumerate(zip(*names, strict=False))
    shortest = min(len(name) for name in names)
    return next((place for place, parts in places if len({*parts}) > 1), shortest)
