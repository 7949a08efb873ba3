"""Repeated blocks: where the same learnable layers come again and again, one after the other.

Two layers look alike if their kind, what they read and their name up to its numbers are alike. So
one rule finds a transformer's twelve blocks, the twelve calls of ALBERT's one layer, and the blocks
of a graph that has no names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tieops.render.flow import Item, Leaf, leaves_of

__all__ = ["Run", "find_run", "is_plain", "module_of"]

Token = tuple[object, ...]
MIN_LEARNABLE = 2
"""A block has at least so many layers with learnables; a single layer is readable as it is."""
MAX_PERIOD = 400
"""A longer block is not looked for: comparing would take long."""


@dataclass(frozen=True)
class Run:
    """A repetition within a list of items: where each block begins, and where the last one ends."""

    starts: tuple[int, ...]
    stop: int


def find_run(items: Sequence[Item], begin: int = 0) -> Run | None:
    """Return the first repetition among items, or None.

    Args:
        items: Layers and bundles, in order.
        begin: The first item to look at.
    """
    places = [i for i in range(begin, len(items)) if not is_plain(items[i])]
    tokens = [_token(items[i]) for i in places]
    found = _tandem(tokens)
    if found is None:
        return None
    start, period, reach = found
    start = _in_phase([items[i] for i in places], start, period, reach)
    count = (reach - start) // period
    firsts = [places[start + i * period] for i in range(count)]
    last = places[start + count * period - 1]
    module = module_of(items[firsts[0] : firsts[1]])
    starts = [_lead(items, firsts[0], begin, module)]
    for first, before in zip(firsts[1:], firsts, strict=False):
        mine = module_of(_learnable(items[first:], period))
        other = module_of(_learnable(items[before:first], period))
        starts.append(_lead(items, first, before, mine if mine != other else ()))
    template = [_kind(item) for item in items[places[start + period - 1] + 1 : firsts[1]]]
    stop = last + 1
    for kind in template:
        if stop == len(items) or not is_plain(items[stop]) or _kind(items[stop]) != kind:
            break
        stop += 1
    return Run(tuple(starts), stop)


def is_plain(item: Item) -> bool:
    """Whether an item reads no parameter anywhere."""
    return not any(leaf.is_learnable or leaf.layer is None for leaf in leaves_of([item]))


def module_of(items: Sequence[Item]) -> tuple[str, ...]:
    """Return the innermost module that all learnable layers of some items come from."""
    paths = [leaf.module for leaf in leaves_of(items) if leaf.is_learnable]
    if not paths:
        return ()
    common = paths[0]
    for path in paths[1:]:
        same = 0
        while same < min(len(common), len(path)) and common[same] == path[same]:
            same += 1
        common = common[:same]
    return common


def _learnable(items: Sequence[Item], count: int) -> list[Item]:
    found: list[Item] = []
    for item in items:
        if not is_plain(item):
            found.append(item)
        if len(found) == count:
            break
    return found


def _lead(items: Sequence[Item], first: int, floor: int, module: tuple[str, ...]) -> int:
    """Return where a block begins whose first learnable layer is known: at its own operators."""
    at = first
    while at > floor and module and is_plain(items[at - 1]):
        leaf = items[at - 1]
        if not isinstance(leaf, Leaf) or leaf.module[: len(module)] != module:
            break
        at -= 1
    return at


def _kind(item: Item) -> str:
    return item.kind if isinstance(item, Leaf) else item.form


def _token(item: Item) -> Token:
    if not isinstance(item, Leaf):
        return (item.form, *(_token(leaf) for leaf in leaves_of([item]) if leaf.is_learnable))
    if item.layer is None:
        return (item.form, item.name)
    # "query@3" and "query_3" are calls of "query"; "h.3" is a sibling of "h.4".
    name = re.sub(r"\d+", "#", re.sub(r"[@_]\d+(?=\.|/|$)", "", item.name))
    reads = tuple((slot.role, slot.parameter.dtype, slot.view.shape) for slot in item.layer.slots)
    return (item.kind, name, reads)


def _tandem(tokens: Sequence[Token]) -> tuple[int, int, int] | None:
    """Return the repetition that covers most from the first place where there is one.

    Returns:
        Where it starts, its period, and where it ends, a part of a last round included.
    """
    codes: dict[Token, int] = {}
    row = [codes.setdefault(token, len(codes)) for token in tokens]
    places: dict[int, list[int]] = {}
    for at, code in enumerate(row):
        places.setdefault(code, []).append(at)
    for start, code in enumerate(row):
        best: tuple[int, int, int] | None = None
        for again in places[code]:
            period = again - start
            if not MIN_LEARNABLE <= period <= MAX_PERIOD:
                continue
            if row[start:again] != row[again : again + period]:
                continue
            reach = again + period
            while reach < len(row) and row[reach] == row[reach - period]:
                reach += 1
            if best is None or reach > best[2]:
                best = (start, period, reach)
            if reach == len(row):
                break
        if best is not None:
            return best
    return None


def _in_phase(items: Sequence[Item], start: int, period: int, reach: int) -> int:
    """Return the start at which the blocks are modules: each within one, as deep as can be."""

    def depth(at: int) -> int:
        blocks = range(at, reach - period + 1, period)
        return min(len(module_of(items[i : i + period])) for i in blocks)

    starts = range(start, min(start + period, reach - 2 * period + 1))
    return max(starts, key=lambda at: (depth(at), (reach - at) // period, -at))
