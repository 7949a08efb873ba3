"""Untie through function calls: which of them to inline so that a slot reads a tensor alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.edit import NameAuthority
from tieops.ir.functions.calls import Path, call_paths, function_graphs
from tieops.ir.notation import printable
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.tie import Tie
from tieops.model import TiedModel
from tieops.passes.base import Change
from tieops.passes.inline import inliner_of
from tieops.passes.leave import handle_of, handles_of
from tieops.select import Target

__all__ = ["Choice", "UntieCalls", "bound", "places_of", "stuck_slots"]

_BECAUSE = "so that what it reads need not be what others read"


@dataclass(frozen=True)
class Choice:
    """Which slots leave."""

    targets: Sequence[Target]
    together: bool
    """Whether those of one tie get one tensor."""
    accidental: bool

    def ties_of(self, model: TiedModel) -> Sequence[Tie]:
        """Return the ties that are concerned."""
        return model.accidental_ties if self.accidental else model.ties


def stuck_slots(tie: Tie, leaving: Sequence[Slot], model: onnx_ir.Model) -> list[Slot]:
    """Return the slots that cannot be given another weight without a slot that stays."""
    gone = set(leaving)
    staying = {h for slot in tie.slots if slot not in gone for h in handles_of(slot, model)}
    return [
        slot
        for slot in leaving
        if handle_of(slot) in staying or _is_held(slot) or _computing_call(slot, model) is not None
    ]


def _computing_call(slot: Slot, model: onnx_ir.Model) -> onnx_ir.Node | None:
    """Return the call that computes what a slot reads and returns it; None if there is none.

    Its body serves all of its calls, so a slot that leaves needs nodes of its own instead.
    """
    entry = slot.reads[0].entry
    nodes, view = slot.reads[0].nodes, slot.reads[0].view
    last = slot.node
    if entry is not None:
        nodes, view, last = entry.nodes, entry.view, slot.path[0]
    if not view.computed:
        return None
    graphs = {node.graph for node in nodes}
    for node in (last, *reversed(nodes)):
        for value in node.inputs:
            call = value.producer() if value is not None else None
            function = None if call is None else model.functions.get(call.op_identifier())
            if function is not None and function.graph in graphs:
                return call
    return None


def _is_held(slot: Slot) -> bool:
    """Return whether what a slot reads is stored in a function, for all calls at once."""
    return bool(slot.path) and slot.reads[0].entry is None


class UntieCalls:
    """The function calls that slots are reached through, and which of them to inline.

    A slot that leaves has its calls inlined as far as one input of a call serves others too, or
    the body cuts off what it reads, so that it owns no more than that. What a body stores is read
    by all of its calls.

    Args:
        tied: The model, before any call is inlined.
        model: Its graph.
        names: Where copies get their names.
        choice: Which slots leave.
    """

    def __init__(
        self, tied: TiedModel, model: onnx_ir.Model, names: NameAuthority, choice: Choice
    ) -> None:
        self.tied = tied
        self._model = model
        self._choice = choice
        self._inliner = inliner_of(tied, model, names)
        self._paths = call_paths(model)
        self._owners = function_graphs(model)
        self._depths: dict[Path, int] = {}

    def owned_elements(self, slot: Slot) -> int:
        """Return how many elements a slot gets that leaves."""
        read = slot.reads[0]
        if read.entry is None or self._depth(slot.path) == len(slot.path):
            return read.view.elements
        return read.entry.view.elements

    def check(self, tie: Tie, leaving: Sequence[Slot]) -> None:
        """Refuse slots that cannot leave.

        Raises:
            PreconditionError: With those that would have to leave too.
        """
        for slot in stuck_slots(tie, leaving, self._model):
            why = self._obstacle(tie, slot)
            if why:
                raise PreconditionError(
                    f"cannot untie {printable(slot.name)} alone: others read what it reads "
                    "through the same function",
                    {
                        "with it": ", ".join(s.name for s in tie.slots if s not in leaving),
                        "why": why,
                    },
                    "name them too, or inline the function",
                )

    def inline(
        self, leaving: Sequence[tuple[Tie, list[Slot]]]
    ) -> tuple[list[tuple[Tie, list[Slot]]], list[Change]]:
        """Inline what slots need that leave, in place.

        Args:
            leaving: Ties of the model before, and which of their slots leave.

        Returns:
            The ties and slots as they are now, and what was done.
        """
        able = {
            slot
            for tie, slots in leaving
            for slot in slots
            if not bound(tie.parameter) and not self._obstacle(tie, slot)
        }
        opened = [tie.parameter.value for tie, slots in leaving if able.intersection(slots)]
        changes: list[Change] = []
        found = self._now(leaving)
        while True:
            calls = [call for each in found for call in self._shared(*each, able)]
            gone = self._inliner.inline(calls, opened)
            if not gone:
                return [(tie, [*slots]) for tie, slots in found], changes
            changes += [Change(f"call of {each.op_type}", f"inlined, {_BECAUSE}") for each in gone]
            found = self._now(leaving)

    def _now(
        self, leaving: Sequence[tuple[Tie, Sequence[Slot]]]
    ) -> list[tuple[Tie, dict[Slot, Slot]]]:
        """Return ties and slots of the model before any inlining as they are now.

        A node whose operands or attributes a call binds may be a reader before, and part of a view
        after: then the slots that read through it stand for it.

        Returns:
            Ties that are left, and for each slot that leaves which one it was.
        """
        self.tied = TiedModel(self._model)
        ties: dict[onnx_ir.Value, list[Tie]] = {}
        for tie in self._choice.ties_of(self.tied):
            ties.setdefault(tie.parameter.value, []).append(tie)
        found: list[tuple[Tie, dict[Slot, Slot]]] = []
        for before, slots in leaving:
            value = before.parameter.value
            for tie in ties.get(self._inliner.moved.get(value, value), []):
                places = places_of(tie.slots)
                mine: dict[Slot, Slot] = {}
                for old in slots:
                    path, node = self._inliner.now(old.path, old.node)
                    new = places.get((path, node, old.index, tie.parameter.value))
                    through = [s for s in tie.slots if any(node in read.nodes for read in s.reads)]
                    mine |= dict.fromkeys(through if new is None else [new], old)
                if mine:
                    found.append((tie, mine))
        return found

    def _shared(
        self, tie: Tie, leaving: Mapping[Slot, Slot], able: Collection[Slot]
    ) -> Iterator[onnx_ir.Node]:
        """Yield the calls to inline next, so that each of the able slots has a way of its own."""
        company: dict[object, set[bool | Slot]] = {}
        for slot in tie.slots:
            own = slot in leaving
            mine = slot if own and not self._choice.together else own
            for handle in handles_of(slot, self._model):
                company.setdefault(handle, set()).add(mine)
        for slot in (now for now, before in leaving.items() if before in able):
            read = slot.reads[0]
            cuts = read.entry is not None and read.view.elements != read.entry.view.elements
            alone = cuts or slot.is_joined
            returning = _computing_call(slot, self._model)
            if returning is not None and not self._inliner.obstacle((returning,)):
                yield slot.path[0] if slot.path else returning
                continue
            if slot.path and (
                len(company[handle_of(slot)]) > 1
                or (alone and self._depth(slot.path) == len(slot.path))
            ):
                yield slot.path[0]

    def _paths_to(self, value: onnx_ir.Value) -> Sequence[Path]:
        """Return the calls that lead to the body that stores a value."""
        function = self._owners.get(value.graph) if value.graph is not None else None
        return [] if function is None else self._paths.get(function.identifier(), [])

    def _obstacle(self, tie: Tie, slot: Slot) -> str:
        """Return why a slot cannot be told from others that are reached through its calls."""
        why = self._inliner.obstacle(
            call for path in self._paths_to(tie.parameter.value) for call in path
        )
        if why:
            return why
        count = self._depth(slot.path) + 1
        if count > len(slot.path):
            return ""
        others = [other for other in tie.slots if other is not slot]
        if all(other.path[:count] != slot.path[:count] for other in others):
            return ""
        return self._inliner.obstacle(slot.path[:count])

    def _depth(self, path: Path) -> int:
        """Return how many calls of a path can be inlined, from the outermost on."""
        if path not in self._depths:
            counts = range(len(path), 0, -1)
            self._depths[path] = next(
                (count for count in counts if not self._inliner.obstacle(path[:count])), 0
            )
        return self._depths[path]


def places_of(
    slots: Iterable[Slot],
) -> dict[tuple[Path, onnx_ir.Node, int, onnx_ir.Value], Slot]:
    """Return slots by where they read which tensor."""
    return {
        (slot.path, slot.node, slot.index, read.parameter.value): slot
        for slot in slots
        for read in slot.reads
    }


def bound(parameter: Parameter) -> str:
    """Return why readers of a parameter cannot be given another weight; empty if they can."""
    if parameter.is_overridable:
        return "it is a graph input too, which a caller may override for all readers at once"
    return ""
