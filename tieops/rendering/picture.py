"""The picture as plain data: boxes, what they read, what is shared, and what is folded.

A picture holds what is drawn, not how. ``as_data`` converts it to plain data for the drawing code,
which HTML, SVG and PNG share.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any

from tieops.ir.notation import brief, brief_bytes, counted, printable
from tieops.ir.parameter import Parameter, Slot
from tieops.model import TiedModel
from tieops.rendering.flow import Bundle, Flow, Item, Leaf, flow_of, leaves_of
from tieops.rendering.folding import fold
from tieops.system.gc_paused import gc_paused

__all__ = ["Box", "Edge", "Group", "Picture", "Row", "Stored", "Use", "picture_of"]

FIRST_SCREEN = 24
"""Boxes that are shown at first, at most: what a person takes in on one screen."""
ENOUGH = 12
"""Where so many are shown, blocks stay folded."""
MAX_NAMES = 12
"""Further names of one parameter are counted, not listed."""


@dataclass(frozen=True)
class Row:
    """A learnable that a layer reads: one line of its box."""

    role: str
    what: str
    """Dtype and shape as it is read."""
    size: str
    parameters: tuple[int, ...]
    view: str
    """How it is read, empty where it is read as it is stored."""


@dataclass(frozen=True)
class Box:
    """A layer, or an input or output of the model."""

    form: str
    name: str
    kind: str
    group: int
    """The group it is in; -1 at the top."""
    rows: tuple[Row, ...] = ()
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    status: str = ""
    """In a comparison: ``new``, ``gone`` or ``changed``."""


@dataclass(frozen=True)
class Group:
    """Boxes that are folded into one."""

    form: str
    title: str
    group: int
    notes: tuple[str, ...]
    times: int
    """How often a repeated block comes; 0 for what is not repeated."""
    status: str = ""


@dataclass(frozen=True)
class Use:
    """One reader of a parameter."""

    box: int
    role: str
    view: str


@dataclass(frozen=True)
class Stored:
    """A stored parameter with its readers."""

    names: tuple[str, ...]
    what: str
    nbytes: int
    size: str
    evidence: str
    uses: tuple[Use, ...]
    tied: bool
    saved: int = 0
    """What its ties save, in bytes."""
    mark: int = -1
    """Its letter and colour; -1 for one that is not shared."""
    status: str = ""


@dataclass(frozen=True)
class Edge:
    """What flows from one box to another."""

    start: int
    end: int
    what: str


@dataclass(frozen=True)
class Picture:
    """A model as it is drawn.

    Boxes, groups and parameters are named by their position. Groups come before what is in them.
    """

    title: str
    boxes: tuple[Box, ...]
    groups: tuple[Group, ...]
    parameters: tuple[Stored, ...]
    edges: tuple[Edge, ...]
    opened: tuple[int, ...]
    """The groups that are unfolded at first."""
    ledger: str
    duplicates: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return dataclasses.asdict(self)


@gc_paused()
def picture_of(model: TiedModel, title: str = "") -> Picture:
    """Return a model's picture.

    Args:
        model: The model. Of its weights only what ``model.duplicates`` needs is read.
        title: What to call it.
    """
    return _PictureBuilder(model, flow_of(model)).picture(title)


class _PictureBuilder:
    def __init__(self, model: TiedModel, flow: Flow) -> None:
        self._model = model
        self._flow = flow
        self._numbers = {each: i for i, each in enumerate(model.parameters)}
        self._uses: dict[int, list[Use]] = {}
        self._groups: list[Group] = []
        self._children: dict[int, list[Bundle]] = {}
        self._parents: dict[Leaf, int] = {}

    def picture(self, title: str) -> Picture:
        items = fold(self._flow.items)
        self._number(items)
        leaves = leaves_of(items)
        places = {leaf: i for i, leaf in enumerate(leaves)}
        boxes = tuple(self._box(leaf, places[leaf]) for leaf in leaves)
        self._expose(leaves, places)
        edges = tuple(
            Edge(places[start], places[end], what)
            for (start, end), what in self._flow.edges.items()
        )
        return Picture(
            title=printable(title),
            boxes=boxes,
            groups=tuple(self._groups),
            parameters=self._parameters(),
            edges=edges,
            opened=_opened(self._groups, [box.group for box in boxes]),
            ledger=str(self._model.ledger),
            duplicates=tuple(str(each) for each in self._model.duplicates if not each.held_back),
        )

    def _number(self, items: list[Item]) -> None:
        """Give every group its number, outer before inner, and every leaf its group."""
        queue: deque[tuple[Item, int]] = deque((item, -1) for item in items)
        while queue:
            item, parent = queue.popleft()
            if isinstance(item, Leaf):
                self._parents[item] = parent
                continue
            number = len(self._groups)
            self._groups.append(self._group(item, parent))
            queue.extend((inner, number) for inner in item.items)

    def _group(self, bundle: Bundle, parent: int) -> Group:
        leaves = leaves_of(bundle.items)
        learnable = [leaf for leaf in leaves if leaf.is_learnable]
        plain = len(leaves) - len(learnable)
        times = _times(bundle)
        notes: list[str] = []
        if learnable:
            inside = counted(len(learnable), "layer")
            notes.append(inside + (f", {counted(plain, 'operator')}" if plain else ""))
            notes.append(self._stored_note(learnable, times))
        return Group(bundle.form, printable(bundle.title), parent, tuple(notes), times)

    def _stored_note(self, leaves: list[Leaf], times: int) -> str:
        slots = [slot for leaf in leaves if leaf.layer is not None for slot in leaf.layer.slots]
        read = list(dict.fromkeys(read.parameter for slot in slots for read in slot.reads))
        size = brief_bytes(sum(each.nbytes for each in read))
        what = counted(len(read), "parameter")
        if times and len(slots) == times * len(read):
            return f"every one reads the same {what}, {size}"
        return f"{what}, {size}"

    def _box(self, leaf: Leaf, place: int) -> Box:
        slots = leaf.layer.slots if leaf.layer is not None else ()
        for slot in slots:
            for read in slot.reads:
                view = "" if read.view.is_identity else str(read.view)
                use = Use(place, printable(slot.role), view)
                self._uses.setdefault(self._numbers[read.parameter], []).append(use)
        return Box(
            form=leaf.form,
            name=printable(leaf.name),
            kind=printable(leaf.kind),
            group=self._parents[leaf],
            rows=tuple(self._row(slot) for slot in slots),
            takes=tuple(leaf.takes),
            gives=tuple(leaf.gives),
        )

    def _row(self, slot: Slot) -> Row:
        read = tuple(dict.fromkeys(self._numbers[read.parameter] for read in slot.reads))
        views = dict.fromkeys(str(read.view) for read in slot.reads if not read.view.is_identity)
        what = brief(slot.parameter.dtype, slot.view.shape)
        size = brief_bytes(slot.logical_bytes)
        return Row(printable(slot.role), what, size, read, ", ".join(views))

    def _expose(self, leaves: list[Leaf], places: dict[Leaf, int]) -> None:
        """Add the outputs of the model that are a parameter, as it is or through a view."""
        outputs = {leaf.name: places[leaf] for leaf in leaves if leaf.form == "output"}
        for each in self._model.trace.escaping:
            number = self._numbers.get(each.parameter)
            if number is not None:
                view = "" if each.view.is_identity else str(each.view)
                use = Use(outputs[each.output.name or ""], "output", view)
                self._uses.setdefault(number, []).append(use)

    def _parameters(self) -> tuple[Stored, ...]:
        saved: dict[Parameter, int] = {}
        for tie in self._model.ties:
            saved[tie.parameter] = saved.get(tie.parameter, 0) + tie.saved_bytes
        marks = {parameter: mark for mark, parameter in enumerate(saved)}
        return tuple(
            Stored(
                names=_names(each),
                what=brief(each.dtype, each.shape),
                nbytes=each.nbytes,
                size=brief_bytes(each.nbytes),
                evidence=str(each.evidence),
                uses=tuple(self._uses.get(number, ())),
                tied=each in saved,
                saved=saved.get(each, 0),
                mark=marks.get(each, -1),
            )
            for each, number in self._numbers.items()
        )


def _names(parameter: Parameter) -> tuple[str, ...]:
    names = [printable(name) for name in parameter.names]
    more = len(names) - MAX_NAMES
    return (*names[:MAX_NAMES], *([f"… and {more} more"] if more > 0 else []))


def _times(bundle: Bundle) -> int:
    if bundle.form != "repeat":
        return 0
    blocks = [item for item in bundle.items if isinstance(item, Bundle)]
    return sum(len(each.items) if each.form == "part" else 1 for each in blocks)


def _opened(groups: list[Group], parents: list[int]) -> tuple[int, ...]:
    """Return the groups that are unfolded at first: the outer ones, as many as fit a screen."""
    sizes = [0] * len(groups)
    shown = 0
    for parent in [*parents, *(group.group for group in groups)]:
        if parent >= 0:
            sizes[parent] += 1
        else:
            shown += 1
    opened: set[int] = set()
    for number, group in enumerate(groups):
        if group.form in ("repeat", "operators", "part"):
            continue
        if group.form == "block" and shown >= ENOUGH:
            continue
        if group.group >= 0 and group.group not in opened:
            continue
        if shown + sizes[number] <= FIRST_SCREEN:
            shown += sizes[number]
            opened.add(number)
    return tuple(sorted(opened))
