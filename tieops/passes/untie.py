"""Untie: give layers weights of their own where they share one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.accidental import title_of
from tieops.ir.brief import printable
from tieops.ir.dataflow.liveness import Liveness
from tieops.ir.edit import NameAuthority
from tieops.ir.functions.calls import Path, call_paths, function_graphs
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.ties import Tie
from tieops.passes.base import Change, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.passes.inline import inliner_of
from tieops.passes.leave import Leaver, handle_of, handles_of
from tieops.select import Target, slots_of
from tieops.tied_model import TiedModel

__all__ = ["UntiePass", "untie"]

_BECAUSE = "so that what it reads need not be what others read"


def untie(
    model: TiedModel, *targets: Target, together: bool = False, accidental: bool = False
) -> TiedModel:
    """Give layers weights of their own: all that share one, or the ones named.

    Each slot that leaves gets an initializer of its own, with what it read of the shared one (a
    transpose is applied to the values), under its own old name where it has one. The first slot
    of a tie that reads all of the shared tensor keeps it, its name and its values, unless it is
    named and another is not.

    Args:
        model: The model; left alone.
        targets: Nothing for all ties; or layers, slots, globs or predicates: these slots leave.
        together: Slots that leave one tie together stay tied with each other.
        accidental: Take apart what an exporter merged because it began equal, and nothing else
            (``model.accidental_ties``): each module gets a parameter of its own, which all of its
            calls read. Targets choose among these.

    Returns:
        A new model. Outputs are the same to the last bit. Weights are views of the old ones until
        they are written; nothing is copied before.

    Raises:
        SelectionError: If a target names nothing.
        PreconditionError: If a target is not tied, or a caller may override what it reads.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 3] y) <float[3, 3] emb = {1,2,3,4,5,6,7,8,9}>
        ... { h = Gather(emb, x)
        ...   t = Transpose<perm = [1, 0]>(emb)
        ...   y = MatMul(h, t) }''')
        >>> free = untie(TiedModel(graph))
        >>> len(free.ties), [parameter.name for parameter in free.parameters]
        (0, ['emb', 'MatMul_y.weight'])
    """
    free, _ = run(UntiePass(targets=targets, together=together, accidental=accidental), model)
    return free


@dataclass(frozen=True, kw_only=True)
class UntiePass(SurgeryPass):
    """Give the named slots, or all, initializers of their own; see ``tieops.untie``."""

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.BITS
    targets: tuple[Target, ...] = ()
    together: bool = False
    accidental: bool = False

    def requires(self, model: onnx_ir.Model) -> None:
        """Check that every target is tied and can leave, before anything changes."""
        if self.targets:
            tied = TiedModel(model)
            choice = _Choice(self.targets, self.together, self.accidental)
            calls = _Calls(tied, model, NameAuthority(model), choice)
            for tie, leaving in _leaving(tied, calls, choice):
                calls.check(tie, leaving)

    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Untie."""
        return untie_in_place(
            model, self.targets, together=self.together, accidental=self.accidental
        )


@dataclass(frozen=True)
class _Choice:
    """Which slots leave."""

    targets: Sequence[Target]
    together: bool
    """Whether those of one tie get one tensor."""
    accidental: bool

    def ties_of(self, model: TiedModel) -> Sequence[Tie]:
        """Return the ties that are concerned."""
        return model.accidental_ties if self.accidental else model.ties


def untie_in_place(
    model: onnx_ir.Model,
    targets: Sequence[Target] = (),
    *,
    together: bool = False,
    accidental: bool = False,
) -> Rewrite:
    """Do the work of ``untie`` on a graph, in place."""
    together = together or accidental  # the calls of one module read one parameter
    choice = _Choice(targets, together, accidental)
    liveness = Liveness(model)
    names = NameAuthority(model)
    tied = TiedModel(model)
    calls = _Calls(tied, model, names, choice)
    leaving = _leaving(tied, calls, choice)
    changes: list[Change] = []
    if model.functions:  # else the graph is traced once
        leaving, changes = calls.inline(leaving)
    leaver = Leaver(model, names)
    skips: list[Skip] = []
    for tie, going in leaving:
        stuck = _stuck(tie, going, model)
        skips += [Skip(each.name, "a function reads for it and for others") for each in stuck]
        held = set(stuck)
        slots, parameter = [slot for slot in going if slot not in held], tie.parameter
        if any(slot.is_joined for slot in going):
            # A slot that joins several parameters has been rewired if it left another tie already.
            slots = _again(TiedModel(model), slots)
            parameter = Parameter(tie.parameter.value)
        why = _bound(parameter)
        if why:
            skips.append(Skip(parameter.name, why))
        elif not slots and not stuck:
            skips.append(Skip(parameter.name, "its names have one reader, which keeps it"))
        elif slots:
            changes += leaver.leave(parameter, slots, together=together, remember=not accidental)
    if accidental:
        for tie in {tie.parameter.value: tie for tie, _ in leaving}.values():
            leaver.name_module(tie.parameter, _staying(tie))
    liveness.remove_newly_dead()
    leaver.name_copies()
    return Rewrite(tuple(changes), tuple(skips))


def _stuck(tie: Tie, leaving: Sequence[Slot], model: onnx_ir.Model) -> list[Slot]:
    """Return the slots that cannot be given another weight without a slot that stays."""
    gone = set(leaving)
    staying = {h for slot in tie.slots if slot not in gone for h in handles_of(slot, model)}
    return [slot for slot in leaving if handle_of(slot) in staying or _is_held(slot)]


def _is_held(slot: Slot) -> bool:
    """Return whether what a slot reads is stored in a function, for all calls at once."""
    return bool(slot.path) and slot.reads[0].entry is None


class _Calls:
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
        self, tied: TiedModel, model: onnx_ir.Model, names: NameAuthority, choice: _Choice
    ) -> None:
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
        for slot in _stuck(tie, leaving, self._model):
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
            if not _bound(tie.parameter) and not self._obstacle(tie, slot)
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
        tied = TiedModel(self._model)
        ties: dict[onnx_ir.Value, list[Tie]] = {}
        for tie in self._choice.ties_of(tied):
            ties.setdefault(tie.parameter.value, []).append(tie)
        found: list[tuple[Tie, dict[Slot, Slot]]] = []
        for before, slots in leaving:
            value = before.parameter.value
            for tie in ties.get(self._inliner.moved.get(value, value), []):
                places = {(slot.path, slot.node, slot.index): slot for slot in tie.slots}
                mine: dict[Slot, Slot] = {}
                for old in slots:
                    path, node = self._inliner.now(old.path, old.node)
                    new = places.get((path, node, old.index))
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


def _again(model: TiedModel, slots: Sequence[Slot]) -> list[Slot]:
    places = {(slot.path, slot.node, slot.index): slot for slot in model.slots}
    return [places[slot.path, slot.node, slot.index] for slot in slots]


def _leaving(model: TiedModel, calls: _Calls, choice: _Choice) -> list[tuple[Tie, list[Slot]]]:
    """Return, for each tie concerned, the slots that leave it; the rest keep the shared tensor.

    An accidental tie comes once for each module that leaves it.
    """
    named = {slot for target in choice.targets for slot in _tied_slots(model, target, choice)}
    if choice.accidental:
        modules = [(tie, each) for tie in model.accidental_ties for each in _modules(tie)]
        return [(t, each) for t, each in modules if not choice.targets or named.intersection(each)]
    if not choice.targets:
        return [(tie, _all_but_one(tie, calls)) for tie in model.ties]
    found: list[tuple[Tie, list[Slot]]] = []
    for tie in model.ties:
        mine = [slot for slot in tie.slots if slot in named]
        if not mine:
            continue
        if choice.together and len(mine) == len(tie.slots):
            continue  # they are tied with each other, and with nobody else
        # Someone has to keep what is stored: if all are named, it is as if none were.
        found.append((tie, mine if len(mine) < len(tie.slots) else _all_but_one(tie, calls)))
    return found


def _modules(tie: Tie) -> list[list[Slot]]:
    """Return the slots of each module that leaves an accidental tie; the tensor's own one stays."""
    stays = _staying(tie)
    return [list(each) for each in tie.modules if each is not stays]


def _staying(tie: Tie) -> tuple[Slot, ...]:
    """Return the slots of the module that an accidental tie's tensor is called after."""
    name = tie.parameter.name
    return next((each for each in tie.modules if title_of(each) == name), tie.modules[0])


def _all_but_one(tie: Tie, calls: _Calls) -> list[Slot]:
    """Return the slots that leave when all do: the first that would own all of the tensor stays."""
    whole = tie.parameter.elements
    first = next((s for s in tie.slots if s.is_joined or calls.owned_elements(s) == whole), None)
    if first is None:
        return list(tie.slots)
    return [slot for slot in tie.slots if slot is not first]


def _tied_slots(model: TiedModel, target: Target, choice: _Choice) -> list[Slot]:
    slots = slots_of(model, target)
    tied = {slot for tie in choice.ties_of(model) for slot in tie.slots if len(tie.slots) > 1}
    mine = [slot for slot in slots if slot in tied]
    if not mine:
        raise PreconditionError(
            f"{printable(slots[0].name)} is not tied",
            {"reads": slots[0].parameter, "ties": len(model.ties)},
            "see print(model.ties)",
        )
    for slot in mine:
        why = _bound(slot.parameter)
        if why:
            raise PreconditionError(f"cannot untie {printable(slot.name)}", {"why": why})
    return mine


def _bound(parameter: Parameter) -> str:
    if parameter.is_overridable:
        return "it is a graph input too, which a caller may override for all readers at once"
    return ""
