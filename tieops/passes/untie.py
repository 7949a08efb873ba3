"""Untie: give layers weights of their own where they share one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir

from tieops.arguments import mapping_of
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.dataflow.liveness import Liveness
from tieops.ir.edit import NameAuthority
from tieops.ir.learnables.accidental import title_of
from tieops.ir.metadata.torch_kinds import note_learnable, word_of
from tieops.ir.notation import printable
from tieops.ir.operators.roles import is_statistic
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.readers.forms import form_of
from tieops.ir.readers.readers import Reader, Readers, record_reads
from tieops.ir.tie import Tie
from tieops.model import TiedModel
from tieops.passes.base import Change, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.passes.leave import Leaver
from tieops.passes.untie_calls import Choice, UntieCalls, bound, places_of, stuck_slots
from tieops.select import Target, slots_of

__all__ = ["UntiePass", "untie"]


def untie(
    model: TiedModel,
    *targets: Target,
    together: bool = False,
    accidental: bool = False,
    names: Mapping[str, str] | None = None,
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
        names: Whose a name is, where that cannot be known (a problem ``doubtful name``): from the
            name to the layer or slot that reads the tensor under it.

    Returns:
        A new model. Outputs are the same to the last bit. Weights are views of the old ones until
        they are written; nothing is copied before.

    Raises:
        SelectionError: If a target names nothing, or ``names`` has a name that is not doubtful, or
            a layer or slot that does not read the tensor of the name.
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
    surgery = UntiePass(
        targets=targets,
        together=together,
        accidental=accidental,
        names={} if names is None else mapping_of(names, "names by layer or slot", _NAMES_FIX),
    )
    free, _ = run(surgery, model)
    return free


_NAMES_FIX = 'give names and whose they are: names={"out": "MatMul_y"}'


@dataclass(frozen=True, kw_only=True)
class UntiePass(SurgeryPass):
    """Give the named slots, or all, initializers of their own; see ``tieops.untie``."""

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.BITS
    targets: tuple[Target, ...] = ()
    together: bool = False
    accidental: bool = False
    names: Mapping[str, str] = field(default_factory=dict[str, str])

    def requires(self, model: onnx_ir.Model) -> None:
        """Check that every target is tied and can leave, before anything changes."""
        if self.names:
            _chosen(TiedModel(model), self.names)
        if self.targets:
            tied = TiedModel(model)
            choice = Choice(self.targets, self.together, self.accidental)
            calls = UntieCalls(tied, model, NameAuthority(model), choice)
            for tie, leaving in _leaving(tied, calls, choice):
                calls.check(tie, leaving)

    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Untie."""
        for name, slot in _chosen(TiedModel(model), self.names) if self.names else ():
            record_reads(slot.node, slot.index, [name])
        return untie_in_place(
            model, self.targets, together=self.together, accidental=self.accidental
        )


def untie_in_place(
    model: onnx_ir.Model,
    targets: Sequence[Target] = (),
    *,
    together: bool = False,
    accidental: bool = False,
) -> Rewrite:
    """Do the work of ``untie`` on a graph, in place."""
    together = together or accidental  # the calls of one module read one parameter
    choice = Choice(targets, together, accidental)
    liveness = Liveness(model)
    names = NameAuthority(model)
    tied = TiedModel(model)
    calls = UntieCalls(tied, model, names, choice)
    leaving = _leaving(tied, calls, choice)
    changes: list[Change] = []
    if model.functions:  # else the graph is traced once
        leaving, changes = calls.inline(leaving)
        if not targets and not accidental:
            leaving = _by_tensor(calls.tied, leaving)
    learnables = calls.tied.trace.learnables
    values = {tie.parameter.value for tie, _ in leaving}
    learnable = {v for v in values if word_of(v) is None and learnables.is_learnable(v)}
    leaver = Leaver(model, names)
    skips: list[Skip] = []
    for tie, going in leaving:
        stuck = stuck_slots(tie, going, model)
        skips += [Skip(each.name, "a function reads for it and for others") for each in stuck]
        held = set(stuck)
        slots, parameter = [slot for slot in going if slot not in held], tie.parameter
        readers = calls.tied.readers(parameter)
        if any(slot.is_joined for slot in going):
            # A slot that reads several parameters has been rewired if it left another tie already.
            retraced = TiedModel(model)
            slots = _again(retraced, parameter, slots)
            parameter = Parameter(tie.parameter.value)
            readers = retraced.readers(parameter)
        why = bound(parameter)
        if why:
            skips.append(Skip(parameter.name, why))
        elif not slots and not stuck:
            skips.append(Skip(parameter.name, "its names have one reader, which keeps it"))
        elif slots:
            if parameter.value in learnable and not (accidental and _holds_statistics(tie)):
                note_learnable(parameter.value)  # those that made it one may leave
            changes += leaver.leave(
                parameter,
                readers,
                slots,
                together=together,
                by_name=not targets and not accidental and _has_names(readers),
                remember=not accidental,
            )
    if accidental:
        for tie in {tie.parameter.value: tie for tie, _ in leaving}.values():
            leaver.name_module(tie.parameter, _staying(tie))
    liveness.remove_newly_dead()
    leaver.name_copies()
    return Rewrite(tuple(changes), tuple(skips))


def _chosen(model: TiedModel, names: Mapping[str, str]) -> list[tuple[str, Slot]]:
    """Return the slots under whose reader a caller wants to see doubtful names."""
    doubtful: dict[str, list[Slot]] = {}
    for parameter in dict.fromkeys(tie.parameter for tie in model.ties):
        readers = model.readers(parameter)
        idle = [reader.slots[0] for reader in readers.all if not reader.names]
        doubtful.update(dict.fromkeys(readers.doubtful, idle))
    found: list[tuple[str, Slot]] = []
    for name, wanted in names.items():
        slots = doubtful.get(name)
        if slots is None:
            raise SelectionError(
                f"{printable(name)} is no name whose reader is to be chosen",
                {"doubtful": ", ".join(map(printable, doubtful)) or "none"},
                "leave it out, or see model.analysis.problems",
            )
        mine = [slot for slot in slots if wanted in (slot.layer, slot.name)]
        if len(mine) != 1:
            raise SelectionError(
                f"{printable(wanted)} names {len(mine)} readers that {printable(name)} could be of",
                {"readers": ", ".join(printable(slot.name) for slot in slots)},
                "name one of them",
            )
        if any(other.node is mine[0].node for other in slots if other is not mine[0]):
            raise PreconditionError(
                f"{printable(wanted)} reads in a function, with others",
                {"name": name},
                "inline it first: onnx.inliner.inline_local_functions(proto)",
            )
        found.append((name, mine[0]))
    return found


def _again(model: TiedModel, parameter: Parameter, slots: Sequence[Slot]) -> list[Slot]:
    places = places_of(model.slots)
    return [places[slot.path, slot.node, slot.index, parameter.value] for slot in slots]


def _by_tensor(
    model: TiedModel, leaving: Sequence[tuple[Tie, list[Slot]]]
) -> list[tuple[Tie, list[Slot]]]:
    """Put what leaves one tensor together where names say who leaves it."""
    found: dict[object, tuple[Tie, list[Slot]]] = {}
    for tie, slots in leaving:
        named = _has_names(model.readers(tie.parameter))
        key = tie.parameter.value if named else tie
        known, mine = found.get(key, (None, []))
        found[key] = (tie if known is None else _joined(known, tie), [*mine, *slots])
    return list(found.values())


def _joined(one: Tie, other: Tie) -> Tie:
    return Tie(one.parameter, tuple(dict.fromkeys((*one.slots, *other.slots))))


def _has_names(readers: Readers) -> bool:
    """Return whether readers of a tensor differ in their names, so that these say what to part."""
    return len({reader.names for reader in readers.all if reader.names}) > 1


def _leaving(model: TiedModel, calls: UntieCalls, choice: Choice) -> list[tuple[Tie, list[Slot]]]:
    """Return, for each tie concerned, the slots that leave it; the rest keep the shared tensor.

    An accidental tie comes once for each module that leaves it.
    """
    named = {slot for target in choice.targets for slot in _tied_slots(model, target, choice)}
    readers = {slot.reader for slot in named}
    if choice.accidental:
        modules = [(tie, each) for tie in model.accidental_ties for each in _modules(tie)]
        return [(t, each) for t, each in modules if not choice.targets or named.intersection(each)]
    if not choice.targets:
        return list(_all_apart(model, calls))
    found: list[tuple[Tie, list[Slot]]] = []
    for tie in model.ties:
        mine = [slot for slot in tie.slots if slot.reader in readers]
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


def _holds_statistics(tie: Tie) -> bool:
    """Return whether some of the readers take a tensor for statistics, which are not trained."""
    return any(is_statistic(slot.node, slot.index) for slot in tie.slots)


def _staying(tie: Tie) -> tuple[Slot, ...]:
    """Return the slots of the module that an accidental tie's tensor is called after."""
    name = tie.parameter.name
    return next((each for each in tie.modules if title_of(each) == name), tie.modules[0])


def _all_apart(model: TiedModel, calls: UntieCalls) -> Iterator[tuple[Tie, list[Slot]]]:
    """Yield every tie with the slots that leave it when all do.

    Where the readers of a tensor have names of their own, these say what is one: all slots of one
    name stay together, the calls of one module and the slices that it reads one by one.
    """
    done: set[onnx_ir.Value] = set()
    for tie in model.ties:
        readers = model.readers(tie.parameter)
        if not _has_names(readers):
            yield tie, _all_but_one(tie, calls)
            continue
        if tie.parameter.value in done:
            continue
        done.add(tie.parameter.value)
        slots = tuple(slot for reader in readers.all for slot in reader.slots)
        whole = tie.parameter.elements
        able = [r for r in readers.all if r.names and _owned(r, calls) == whole]
        # Better one whose name stands for the tensor in the form that it is stored in.
        owner = next(
            (r for r in able if _is_stored_as_named(r, tie.parameter)), next(iter(able), None)
        )
        stays = owner.names if owner is not None else readers.all[0].names
        leaving = [s for r in readers.all if r.names != stays for s in r.slots]
        yield Tie(tie.parameter, slots), leaving


def _is_stored_as_named(reader: Reader, parameter: Parameter) -> bool:
    return any(form_of(parameter.value, name).is_identity for name in reader.names)


def _owned(reader: Reader, calls: UntieCalls) -> int:
    return max(calls.owned_elements(slot) for slot in reader.slots)


def _all_but_one(tie: Tie, calls: UntieCalls) -> list[Slot]:
    """Return the slots that leave when all do: the first reader that would own all of it stays."""
    whole = tie.parameter.elements
    first = next((s for s in tie.slots if s.is_joined or calls.owned_elements(s) == whole), None)
    if first is None:
        return list(tie.slots)
    return [slot for slot in tie.slots if slot.reader != first.reader]


def _tied_slots(model: TiedModel, target: Target, choice: Choice) -> list[Slot]:
    slots = slots_of(model, target)
    tied = {
        slot
        for tie in choice.ties_of(model)
        for slot in tie.slots
        if len({other.reader for other in tie.slots}) > 1
    }
    mine = [slot for slot in slots if slot in tied]
    if not mine:
        raise PreconditionError(
            f"{printable(slots[0].name)} is not tied",
            {"reads": slots[0].parameter, "ties": len(model.ties)},
            "see print(model.ties)",
        )
    for slot in mine:
        why = bound(slot.parameter)
        if why:
            raise PreconditionError(f"cannot untie {printable(slot.name)}", {"why": why})
    return mine
