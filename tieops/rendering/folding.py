"""Fold parts of a picture into single boxes, so that a large model fits a screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from tieops.analysis.repeats import Repeat, common_module, find_repeats
from tieops.ir.layer import Layer
from tieops.ir.notation import counted
from tieops.ir.operators.predicates import says_little
from tieops.rendering.flow import Bundle, Item, Leaf, layers_of, leaves_of

__all__ = ["fold"]

SMALL = 16
"""As many items are shown as they are."""
CROWDED = 24
"""More items than this are grouped by their modules."""
MAX_ITEMS = 40
"""No box unfolds into more than this."""


def fold(items: Sequence[Item]) -> list[Item]:
    """Group items that lie next to each other: repeated blocks, modules, runs of plain operators.

    A group is a stretch of the order, so that groups never read each other in a circle.

    Args:
        items: Layers and bundles, in order.
    """
    items = [_inner(item) for item in items]
    if len(items) <= SMALL:
        return items
    items = _repeats(items)
    items = _operators(items)
    if len(items) > CROWDED:
        items = _modules(items)
    while len(items) > MAX_ITEMS:
        items = _parts(items)
    return items


def _inner(item: Item) -> Item:
    if isinstance(item, Leaf) or item.form in ("repeat", "block", "operators", "part"):
        return item  # made by this module, and folded when it was made
    if _is_plain(item) and item.form == "bodies":
        return Bundle("operators", item.title, list(leaves_of([item])))
    return Bundle(item.form, item.title, fold(item.items))


def _repeats(items: Sequence[Item]) -> list[Item]:
    made: list[Item] = []
    stems: set[tuple[str, ...]] = set()
    at = 0
    for repeat, cuts in _between_items(items):
        made += items[at : cuts[0]]
        if len(set(repeat.modules)) > 1:
            stems.add(repeat.modules[0][:-1])
        made.append(_repeat([list(items[a:b]) for a, b in pairwise(cuts)], repeat))
        at = cuts[-1]
    made += items[at:]
    # Blocks beside the repeated ones that differ from them, such as the first of T5.
    return _grouped(made, lambda leaf: _sibling(leaf, stems))


def _between_items(items: Sequence[Item]) -> Iterator[tuple[Repeat, list[int]]]:
    """Yield the repetitions whose blocks begin and end where items do, and at which items."""
    layers: list[Layer] = []
    begins: dict[int, int] = {}
    ends: dict[int, int] = {0: 0}
    for place, item in enumerate(items):
        mine = layers_of([item])
        if not mine:
            continue
        # A block may begin or end in the midst of what folds operators: they go to the one before.
        inside = range(len(layers) + 1, len(layers) + len(mine)) if _is_plain(item) else ()
        begins |= {len(layers): place} | dict.fromkeys(inside, place + 1)
        layers += mine
        ends |= {len(layers): place + 1} | dict.fromkeys(inside, place + 1)
    for repeat in find_repeats(layers):
        if repeat.stop in ends and all(start in begins for start in repeat.starts):
            yield repeat, [*(begins[start] for start in repeat.starts), ends[repeat.stop]]


def _repeat(blocks: Sequence[list[Item]], repeat: Repeat) -> Bundle:
    called = [".".join(module) for module in repeat.modules]
    if len(set(called)) == 1:
        name = f"{called[0]} call" if called[0] else "block"
        called = [f"{name} {i}" for i in range(1, len(blocks) + 1)]
    inner = [Bundle("block", name, fold(b)) for name, b in zip(called, blocks, strict=True)]
    folded: list[Item] = list(inner)
    while len(folded) > MAX_ITEMS:
        folded = _parts(folded)
    return Bundle("repeat", repeat.title or "repeated block", folded)


def _sibling(leaf: Leaf, stems: set[tuple[str, ...]]) -> tuple[str, ...]:
    for stem in stems:
        size = len(stem)
        if leaf.module[:size] == stem and len(leaf.module) > size and leaf.module[size].isdigit():
            return leaf.module[: size + 1]
    return ()


def _grouped(items: Sequence[Item], key: Callable[[Leaf], tuple[str, ...]]) -> list[Item]:
    """Bundle neighbours of one key; plain items without a key join what they stand between."""
    made: list[Item] = []
    at = 0
    while at < len(items):
        mine = _key(items[at], key)
        end = at + 1
        ahead = end
        while mine and ahead < len(items):
            other = _key(items[ahead], key)
            if other == mine:
                end = ahead + 1
            elif other or not _is_plain(items[ahead]):
                break
            ahead += 1
        block = list(items[at:end])
        leaves = leaves_of(block)
        if mine and len(leaves) > 3 and any(leaf.is_learnable for leaf in leaves):
            made.append(Bundle("block", ".".join(mine), fold(block)))
        else:
            made += block
        at = end
    return made


def _key(item: Item, key: Callable[[Leaf], tuple[str, ...]]) -> tuple[str, ...]:
    keys = {key(leaf) for leaf in leaves_of([item])}
    return keys.pop() if len(keys) == 1 else ()


def _modules(items: Sequence[Item]) -> list[Item]:
    paths = [leaf.module for leaf in leaves_of(items) if leaf.is_learnable and leaf.module]
    depth = len(common_module(layers_of(items))) if len(paths) > 1 else 0
    made = _grouped(items, lambda leaf: leaf.module[: depth + 1] if leaf.module[depth:] else ())
    return made if len(made) > 1 else list(items)


def _operators(items: Sequence[Item]) -> list[Item]:
    made: list[Item] = []
    run: list[Item] = []
    for item in [*items, None]:
        if item is not None and _is_plain(item):
            run.append(item)
            continue
        leaves = leaves_of(run)
        if len(leaves) > 1:
            made.append(Bundle("operators", _operators_title(leaves), _few(leaves)))
        else:
            made += run
        run = []
        if item is not None:
            made.append(item)
    return made


def _few(leaves: Sequence[Leaf]) -> list[Item]:
    items: list[Item] = list(leaves)
    while len(items) > MAX_ITEMS:
        items = _parts(items)
    return items


def _operators_title(leaves: Sequence[Leaf]) -> str:
    """Return how many operators there are, and the most telling ones."""
    kinds = list(dict.fromkeys(leaf.kind for leaf in leaves))
    kinds.sort(key=lambda kind: says_little(kind))
    shown = ", ".join(kinds[:3]) + (", …" if len(kinds) > 3 else "")
    return f"{counted(len(leaves), 'operator')}: {shown}"


def _is_plain(item: Item) -> bool:
    """Whether an item is operators alone: no layer with learnables, no input, no output."""
    return not any(leaf.is_learnable or leaf.layer is None for leaf in leaves_of([item]))


def _parts(items: Sequence[Item]) -> list[Item]:
    """Cut a long list into about as many parts as each part has items."""
    size = max(2, math.isqrt(len(items)))
    made: list[Item] = []
    for at in range(0, len(items), size):
        part = list(items[at : at + size])
        if len(part) == 1:
            made += part
            continue
        names = [
            item.name if isinstance(item, Leaf) else item.title for item in (part[0], part[-1])
        ]
        made.append(Bundle("part", " … ".join(names), part))
    return made
