"""Untie: give layers weights of their own where they share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.brief import printable
from tieops.ir.fresh import FreshNames
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.reach import Liveness
from tieops.ir.scopes import stored_values
from tieops.ir.ties import Tie
from tieops.passes.base import Change, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.passes.leave import Leaver, handle_of
from tieops.passes.ways import Ways
from tieops.select import Target, slots_of
from tieops.tied_model import TiedModel

__all__ = ["UntiePass", "untie"]


def untie(model: TiedModel, *targets: Target, together: bool = False) -> TiedModel:
    """Give layers weights of their own: all that share one, or the ones named.

    Each slot that leaves gets an initializer of its own, with what it read of the shared one (a
    transpose is applied to the values), under its own old name where it has one. The first slot
    of a tie that reads all of the shared tensor keeps it, its name and its values, unless it is
    named and another is not.

    Args:
        model: The model; left alone.
        targets: Nothing for all ties; or layers, slots, globs or predicates: these slots leave.
        together: Slots that leave one tie together stay tied with each other.

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
    free, _ = run(UntiePass(targets=targets, together=together), model)
    return free


@dataclass(frozen=True, kw_only=True)
class UntiePass(SurgeryPass):
    """Give the named slots, or all, initializers of their own; see ``tieops.untie``."""

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.BITS
    targets: tuple[Target, ...] = ()
    together: bool = False

    def requires(self, model: onnx_ir.Model) -> None:
        """Check that every target is tied and can leave, before anything changes."""
        if self.targets:
            ways = Ways(model, FreshNames(model))
            for tie, leaving in _leaving(TiedModel(model), ways, self.targets):
                stuck = [slot for slot in _stuck(tie, leaving, ways) if not ways.can_part(slot)]
                if stuck:
                    raise PreconditionError(
                        f"cannot untie {printable(stuck[0].name)} alone: others read what it reads "
                        "through the same function",
                        {"with it": ", ".join(s.name for s in tie.slots if s not in leaving)},
                        "name them too, or inline the function",
                    )

    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Untie."""
        return untie_in_place(model, self.targets, together=self.together)


def untie_in_place(
    model: onnx_ir.Model, targets: Sequence[Target] = (), *, together: bool = False
) -> Rewrite:
    """Do the work of ``untie`` on a graph, in place."""
    liveness = Liveness(model)
    names = FreshNames(model)
    ways = Ways(model, names)
    tied = TiedModel(model)
    # Only functions have to be changed before: without them the graph is traced once.
    if model.functions and _lift_held(tied, ways, targets):
        tied = TiedModel(model)
    if model.functions and _part_ways(tied, ways, targets, together=together):
        tied = TiedModel(model)
    leaver = Leaver(model, names)
    changes: list[Change] = []
    skips: list[Skip] = []
    for tie, leaving in _leaving(tied, ways, targets, together=together):
        stuck = _stuck(tie, leaving, ways)
        skips += [Skip(each.name, "a function reads for it and for others") for each in stuck]
        held = set(stuck)
        slots, parameter = [slot for slot in leaving if slot not in held], tie.parameter
        if any(slot.is_joined for slot in leaving):
            # A slot that joins several parameters has been rewired if it left another tie already.
            slots = _again(TiedModel(model), slots)
            parameter = Parameter(tie.parameter.value)
        why = _bound(parameter)
        if why:
            skips.append(Skip(parameter.name, why))
        elif not slots and not stuck:
            skips.append(Skip(parameter.name, "its names have one reader, which keeps it"))
        elif slots:
            changes += leaver.leave(parameter, slots, together=together)
    liveness.remove_newly_dead()
    while ways.close_unread():
        liveness.remove_newly_dead()
    leaver.name_copies()
    return Rewrite(tuple(changes), tuple(skips))


def _lift_held(model: TiedModel, ways: Ways, targets: Sequence[Target]) -> bool:
    """Take what leaves out of functions: a body has one Constant for all of its calls.

    Returns:
        Whether there was any.
    """
    held = {
        tie.parameter.value
        for tie, slots in _leaving(model, ways, targets)
        for slot in slots
        if ways.can_lift(tie.parameter.value) and (not _is_held(slot) or ways.can_part(slot))
    }
    for value in [value for value in stored_values(model.ir) if value in held]:
        ways.lift(value)
    return bool(held)


def _part_ways(model: TiedModel, ways: Ways, targets: Sequence[Target], *, together: bool) -> bool:
    """Give slots that leave inputs of their own: who shares one, or does not read all of it.

    Returns:
        Whether there was any.
    """
    parted: dict[tuple[onnx_ir.Node, int], None] = {}
    for tie, leaving in _leaving(model, ways, targets, together=together):
        company: dict[object, set[bool | Slot]] = {}
        gone = set(leaving)
        for slot in tie.slots:
            own = slot in gone
            for handle in ways.handles_of(slot):
                company.setdefault(handle, set()).add(slot if own and not together else own)
        for slot in leaving:
            shares = len(company[handle_of(slot)]) > 1 and ways.can_part(slot)
            if shares or ways.can_move_cut(slot):
                parted[slot.node, slot.index] = None
    for node, index in parted:
        ways.part(node, index)
    return bool(parted)


def _stuck(tie: Tie, leaving: Sequence[Slot], ways: Ways) -> list[Slot]:
    """Return the slots that cannot be given another weight without a slot that stays."""
    gone = set(leaving)
    staying = {h for slot in tie.slots if slot not in gone for h in ways.handles_of(slot)}
    return [slot for slot in leaving if handle_of(slot) in staying or _is_held(slot)]


def _is_held(slot: Slot) -> bool:
    """Tell whether what a slot reads is stored in a function, for all calls at once."""
    return bool(slot.path) and slot.reads[0].entry is None


def _again(model: TiedModel, slots: Sequence[Slot]) -> list[Slot]:
    places = {(slot.path, slot.node, slot.index): slot for slot in model.slots}
    return [places[slot.path, slot.node, slot.index] for slot in slots]


def _leaving(
    model: TiedModel, ways: Ways, targets: Sequence[Target], *, together: bool = False
) -> list[tuple[Tie, list[Slot]]]:
    """Return, for each tie concerned, the slots that leave it; the rest keep the shared tensor."""
    if not targets:
        return [(tie, _all_but_one(tie, ways)) for tie in model.ties]
    named = {slot for target in targets for slot in _tied_slots(model, target)}
    found: list[tuple[Tie, list[Slot]]] = []
    for tie in model.ties:
        mine = [slot for slot in tie.slots if slot in named]
        if not mine:
            continue
        if together and len(mine) == len(tie.slots):
            continue  # they are tied with each other, and with nobody else
        # Someone has to keep what is stored: if all are named, it is as if none were.
        found.append((tie, mine if len(mine) < len(tie.slots) else _all_but_one(tie, ways)))
    return found


def _all_but_one(tie: Tie, ways: Ways) -> list[Slot]:
    """Return the slots that leave when all do: the first that would own all of the tensor stays."""
    whole = tie.parameter.elements
    first = next((s for s in tie.slots if s.is_joined or ways.owned_elements(s) == whole), None)
    if first is None:
        return list(tie.slots)
    return [slot for slot in tie.slots if slot is not first]


def _tied_slots(model: TiedModel, target: Target) -> list[Slot]:
    slots = slots_of(model, target)
    tied = {slot: tie for tie in model.ties for slot in tie.slots if len(tie.slots) > 1}
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
