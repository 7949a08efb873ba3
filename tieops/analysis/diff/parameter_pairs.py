"""Pair the parameters of two models by name, then by alias, then by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tieops.analysis.diff.difference import Difference
from tieops.analysis.duplicates.bit_equality import bit_equal
from tieops.analysis.duplicates.by_content import find_duplicates, same_range
from tieops.ir.notation import brief
from tieops.ir.parameter import Parameter

__all__ = ["Pairs", "matched", "parameter_changes"]

Pairs = Mapping[Parameter, Parameter]
"""Parameters of the first model to those of the second."""


def matched(old: Sequence[Parameter], new: Sequence[Parameter]) -> Pairs:
    """Return which parameter is which: of one name, of a common name, or of equal content.

    Content may be in another order of axes. Each parameter has one counterpart at most.
    """
    found: dict[Parameter, Parameter] = {}
    by_name = {each.name: each for each in new}
    for each in old:
        if each.name in by_name:
            found[each] = by_name.pop(each.name)
    by_alias = {name: each for each in by_name.values() for name in each.names}
    taken: set[Parameter] = set()
    for each in old:
        if each in found:
            continue
        others = (by_alias[name] for name in each.names if name in by_alias)
        other = next((this for this in others if this not in taken), None)
        if other is not None:
            found[each] = other
            taken.add(other)
    known = set(found.values())
    rest = dict.fromkeys(each for each in old if each not in found)
    free = dict.fromkeys(each for each in new if each not in known)
    for group in find_duplicates([*rest, *free]):
        pairs = zip(
            [each for each in group.parameters if each in rest],
            [each for each in group.parameters if each in free],
            strict=False,
        )
        found.update(pairs)
    return found


def parameter_changes(
    old: Sequence[Parameter], new: Sequence[Parameter], pairs: Pairs
) -> Iterator[Difference]:
    """Yield what became of each parameter."""
    for each in old:
        if each not in pairs:
            yield Difference("parameter", each.name, "removed", _kind(each))
        else:
            yield from _changes(each, pairs[each])
    known = {*pairs.values()}
    for each in new:
        if each not in known:
            yield Difference("parameter", each.name, "added", "", _kind(each))


def _changes(old: Parameter, new: Parameter) -> Iterator[Difference]:
    if old.name != new.name:
        yield Difference("parameter", new.name, "renamed", old.name, new.name)
    if _kind(old) != _kind(new):
        is_moved = bool(find_duplicates([old, new]))
        change = "stored transposed" if is_moved else "retyped"
        yield Difference("parameter", new.name, change, _kind(old), _kind(new))
    elif not same_range(old.tensor, new.tensor) and not bit_equal(old.numpy(), new.numpy()):
        change = "stored transposed" if find_duplicates([old, new]) else "other values"
        yield Difference("parameter", new.name, change)
    if old.lr_factor != new.lr_factor:
        factors = f"{old.lr_factor:g}", f"{new.lr_factor:g}"
        yield Difference("parameter", new.name, "learning-rate factor", *factors)


def _kind(parameter: Parameter) -> str:
    return brief(parameter.dtype, parameter.shape)
