"""Compare two pictures: describe and mark what a surgery changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tieops.ir.notation import counted
from tieops.rendering.picture import Box, Group, Picture, Stored

__all__ = ["compared"]

MAX_NAMES = 4
"""Names listed in one sentence; more are counted."""


def compared(before: Picture, after: Picture) -> dict[str, Any]:
    """Return two pictures as data, with the differences marked in both and described in words.

    A parameter keeps its colour from the one picture to the other. Layers and parameters are the
    same if they have a name in common.

    Args:
        before: The picture of the model before the surgery.
        after: The picture of the model after it.
    """
    pairs = _pairs(before.parameters, after.parameters)
    back = {new: old for old, new in pairs.items()}
    marks = _marks(before, after, pairs)
    changes = [*_ties(before, after, pairs), *_layers(before, after), *_bytes(before, after)]
    first = _marked(before, "gone", after, marks[0], pairs)
    second = _marked(after, "new", before, marks[1], back)
    return {
        "pictures": [first.as_data(), second.as_data()],
        "headings": ["before", "after"],
        "changes": changes or ["Nothing changed: the same layers read the same parameters."],
    }


def _pairs(before: Sequence[Stored], after: Sequence[Stored]) -> dict[int, int]:
    """Return, for each parameter that is in both pictures, its place in each."""
    stored = {each.names[0]: i for i, each in reversed(list(enumerate(after))) if each.names}
    known = {name: i for i, each in reversed(list(enumerate(after))) for name in each.names}
    pairs: dict[int, int] = {}
    for i, each in enumerate(before):
        found = stored.get(each.names[0], known.get(each.names[0])) if each.names else None
        if found is not None and found not in pairs.values():
            pairs[i] = found
    return pairs


def _marks(
    before: Picture, after: Picture, pairs: dict[int, int]
) -> tuple[dict[int, int], dict[int, int]]:
    """Return marks for both pictures: what is shared in either has one, the same in both."""
    first = {i: each.mark for i, each in enumerate(before.parameters) if each.mark >= 0}
    second = {pairs[i]: mark for i, mark in first.items() if i in pairs}
    fresh = max(first.values(), default=-1) + 1
    back = {new: old for old, new in pairs.items()}
    for i, each in sorted(enumerate(after.parameters), key=lambda pair: pair[1].mark):
        if each.mark >= 0 and i not in second:
            second[i] = fresh
            if i in back:
                first[back[i]] = fresh
            fresh += 1
    return first, second


def _marked(
    picture: Picture, alone: str, other: Picture, marks: dict[int, int], same: dict[int, int]
) -> Picture:
    """Return a picture with marks, and with what the other one lacks or has differently."""
    there = {(box.form, box.name): box for box in other.boxes}
    boxes = tuple(
        dataclasses.replace(box, status=_status(box, there.get((box.form, box.name)), alone))
        for box in picture.boxes
    )
    parameters = tuple(
        dataclasses.replace(each, mark=marks.get(i, -1), status="" if i in same else alone)
        for i, each in enumerate(picture.parameters)
    )
    groups = _stained(picture, boxes)
    return dataclasses.replace(picture, boxes=boxes, parameters=parameters, groups=groups)


def _status(box: Box, twin: Box | None, alone: str) -> str:
    if twin is None:
        # Plain operators get other names too easily for it to mean anything.
        return alone if box.rows or box.form != "layer" else ""
    mine = [(row.role, row.what, row.view) for row in box.rows]
    theirs = [(row.role, row.what, row.view) for row in twin.rows]
    return "" if (box.kind, mine) == (twin.kind, theirs) else "changed"


def _stained(picture: Picture, boxes: Sequence[Box]) -> tuple[Group, ...]:
    """Mark every group that holds something new, gone or changed."""
    stained: set[int] = set()
    for box in boxes:
        at = box.group if box.status else -1
        while at >= 0 and at not in stained:
            stained.add(at)
            at = picture.groups[at].group
    return tuple(
        dataclasses.replace(group, status="changed" if i in stained else "")
        for i, group in enumerate(picture.groups)
    )


def _readers(picture: Picture, parameter: Stored) -> dict[str, str]:
    """Return who reads a parameter, with the view."""
    readers: dict[str, str] = {}
    for use in parameter.uses:
        box = picture.boxes[use.box]
        name = f"output {box.name}" if box.form == "output" else f"{box.name}.{use.role}"
        readers[name] = use.view
    return readers


def _ties(before: Picture, after: Picture, pairs: dict[int, int]) -> list[str]:
    changes: list[str] = []
    for old, new in pairs.items():
        was, now = before.parameters[old], after.parameters[new]
        if not (was.tied or now.tied):
            continue
        left = [r for r in _readers(before, was) if r not in _readers(after, now)]
        came = [r for r in _readers(after, now) if r not in _readers(before, was)]
        name = now.names[0]
        owners = _owners(after, left, exclude=new)
        if left:
            what = f"{_listed(left)} no longer {_verb(left, 'read')} {name}"
            changes.append(
                what + (f" and {_verb(left, 'have')} a copy: {owners}" if owners else "")
            )
        if came:
            changes.append(f"{_listed(came)} now {_verb(came, 'read')} {name}")
        if was.tied and not now.tied and not left:
            changes.append(f"{name} is not shared any more")
    return changes


def _owners(picture: Picture, slots: Sequence[str], exclude: int) -> str:
    """Return what the slots that left a parameter read instead."""
    found: list[str] = []
    for i, each in enumerate(picture.parameters):
        if i != exclude and any(slot in _readers(picture, each) for slot in slots):
            found.append(f"{each.names[0]} {each.what}")
    return _listed(found)


def _layers(before: Picture, after: Picture) -> list[str]:
    changes: list[str] = []
    old = {(b.form, b.name): b for b in before.boxes if b.rows or b.form != "layer"}
    new = {(b.form, b.name): b for b in after.boxes if b.rows or b.form != "layer"}
    for form, noun in (("layer", "layer"), ("output", "output"), ("input", "input")):
        gone = [key[1] for key in old if key[0] == form and key not in new]
        came = [key[1] for key in new if key[0] == form and key not in old]
        if gone:
            changes.append(f"gone: {noun} {_listed(gone)}")
        if came:
            told = [
                f"{name} ({_rows(new[form, name])})" if form == "layer" else name for name in came
            ]
            changes.append(f"new: {noun} {_listed(told)}")
    return changes


def _rows(box: Box) -> str:
    return ", ".join(f"{row.role} {row.what}" for row in box.rows[:MAX_NAMES])


def _bytes(before: Picture, after: Picture) -> list[str]:
    if before.ledger == after.ledger:
        return []
    return [f"before: {before.ledger}; after: {after.ledger}"]


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:MAX_NAMES])
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {counted(more, 'other')}" if more else "")


def _verb(subjects: Sequence[str], verb: str) -> str:
    if len(subjects) > 1:
        return verb
    return "has" if verb == "have" else f"{verb}s"
