"""Folding: what is drawn as one box at first, so that a large model fits a screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tieops.ir.brief import counted
from tieops.render.flow import Bundle, Item, Leaf, leaves_of
from tieops.render.repeats import find_run, is_plain, module_of

__all__ = ["fold"]

SMALL = 16
"""As many items are shown as they are."""
CROWDED = 24
"""More items than this are grouped by their modules."""
MAX_ITEMS = 40
"""No box unfolds into more than this."""
# fmt: off
_MOVES = frozenset({
    "Shape", "Size", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Transpose",
    "Identity", "Cast", "CastLike", "Slice", "Split", "Concat", "Gather", "GatherND",
    "GatherElements", "Where", "Range", "ConstantOfShape",
})
# fmt: on
"""Operators that tell little about a model."""


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
    if is_plain(item) and item.form == "bodies":
        return Bundle("operators", item.title, list(leaves_of([item])))
    return Bundle(item.form, item.title, fold(item.items))


def _repeats(items: Sequence[Item]) -> list[Item]:
    made: list[Item] = []
    stems: set[tuple[str, ...]] = set()
    at = 0
    while (run := find_run(items, at)) is not None:
        made += items[at : run.starts[0]]
        ends = (*run.starts[1:], run.stop)
        blocks = [list(items[a:b]) for a, b in zip(run.starts, ends, strict=True)]
        modules = _apart([module_of(block) for block in blocks])
        if len(set(modules)) > 1:
            stems.add(modules[0][:-1])
        made.append(_repeat(blocks, modules))
        at = run.stop
    made += items[at:]
    # Blocks beside the repeated ones that differ from them, such as the first of T5.
    return _grouped(made, lambda leaf: _sibling(leaf, stems))


def _apart(modules: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Cut the blocks' modules off behind the first name in which they differ."""
    size = next(
        (i for i, names in enumerate(zip(*modules, strict=False)) if len(set(names)) > 1), -1
    )
    return [module[: size + 1] for module in modules] if size >= 0 else list(modules)


def _repeat(blocks: Sequence[list[Item]], modules: Sequence[tuple[str, ...]]) -> Bundle:
    titles = [".".join(module) for module in modules]
    if len(set(titles)) == 1:
        numbers = range(1, len(blocks) + 1)
        called = [f"{titles[0]} call {i}" if titles[0] else f"block {i}" for i in numbers]
        title = titles[0] or "repeated block"
    else:
        called = titles
        title = f"{titles[0]} … {modules[-1][-1]}" if all(titles) else titles[0] or titles[-1]
    inner = [Bundle("block", name, fold(b)) for name, b in zip(called, blocks, strict=True)]
    folded: list[Item] = list(inner)
    while len(folded) > MAX_ITEMS:
        folded = _parts(folded)
    return Bundle("repeat", title, folded)


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
            elif other or not is_plain(items[ahead]):
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
    depth = len(module_of(items)) if len(paths) > 1 else 0
    made = _grouped(items, lambda leaf: leaf.module[: depth + 1] if leaf.module[depth:] else ())
    return made if len(made) > 1 else list(items)


def _operators(items: Sequence[Item]) -> list[Item]:
    made: list[Item] = []
    run: list[Item] = []
    for item in [*items, None]:
        if item is not None and is_plain(item):
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
    """Return how many operators there are, and those that tell most."""
    kinds = list(dict.fromkeys(leaf.kind for leaf in leaves))
    kinds.sort(key=lambda kind: kind in _MOVES)
    shown = ", ".join(kinds[:3]) + (", …" if len(kinds) > 3 else "")
    return f"{counted(len(leaves), 'operator')}: {shown}"


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
