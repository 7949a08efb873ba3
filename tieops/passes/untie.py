"""Untie layers: give them separate weights where they share one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from tieops.model import Model, TiedModel
from tieops.passes.base import (
    Change,
    Plan,
    Preserves,
    Rewrite,
    Skip,
    SurgeryPass,
    run,
    unchangeable,
)
from tieops.passes.detach import Untier
from tieops.passes.inline import CallInliner, Detached, Place, places_of, stuck_slots
from tieops.select import Target, slots_of

__all__ = ["UntiePass", "UntiePlan", "untie"]


def untie(
    model: Model,
    *targets: Target,
    together: bool = False,
    accidental: bool = False,
    names: Mapping[str, str] | None = None,
) -> TiedModel:
    """Give layers separate weights: all that share one, or the named ones.

    Each slot that leaves gets an initializer of its own, with what it read of the shared one (a
    transpose is applied to the values), under its own old name where it has one. The first slot
    of a tie that reads all of the shared tensor keeps it, its name and its values, unless it is
    named and another is not.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.
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


@dataclass(frozen=True, kw_only=True, eq=False)
class UntiePlan(Plan):
    """Which slots leave which ties.

    Args:
        owners: Names that were doubtful, each with the slot under whose reader it goes.
        leaving: The ties concerned, each with the slots that leave it. An accidental tie comes
            once for each module that leaves it.
        calls: The calls on the way to these slots.
    """

    owners: Sequence[tuple[str, Slot]]
    leaving: Detached
    calls: CallInliner = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class UntiePass(SurgeryPass[UntiePlan]):
    """Give the named slots, or all, initializers of their own; see ``tieops.untie``.

    Args:
        targets: A layer or slot that leaves its tie; without any, all come apart.
        together: Those that leave stay tied with each other.
        accidental: Take apart what an exporter merged because it began equal, and nothing else.
        names: Whose a doubtful name is, as name=layer.
    """

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.BITS
    targets: tuple[Target, ...] = ()
    together: bool = False
    accidental: bool = False
    names: Mapping[str, str] = field(default_factory=dict[str, str])

    def plan(self, model: TiedModel) -> UntiePlan:
        """Choose the slots that leave; check that every target is tied and can leave."""
        owners = _owners(model, self.names)
        together = self.together or self.accidental  # the calls of one module read one parameter
        calls = CallInliner(model, together=together, accidental=self.accidental)
        chooser = _Chooser(model, calls, owners, together=together)
        if self.accidental:
            leaving = chooser.accidental(self.targets)
        elif self.targets:
            leaving = chooser.named(self.targets)
        else:
            leaving = list(chooser.all_apart())
        if self.targets:
            calls.check(leaving)
        return UntiePlan(model=model, owners=owners, leaving=leaving, calls=calls)

    def apply(self, model: onnx_ir.Model, plan: UntiePlan) -> Rewrite:
        """Untie."""
        for name, slot in plan.owners:
            record_reads(slot.node, slot.index, [name])
        liveness = Liveness(model)
        tied, leaving, inlined = plan.calls.inline(plan.leaving)
        if inlined and not self.targets and not self.accidental:
            leaving = _by_tensor(tied, leaving)
        rewrite = self._detach(tied, leaving, plan.calls.names)
        liveness.remove_newly_dead()
        return Rewrite((*inlined, *rewrite.changes), rewrite.skips)

    def _detach(self, tied: TiedModel, leaving: Detached, names: NameAuthority) -> Rewrite:
        """Give the slots that leave each tie tensors of their own, one tie after the other."""
        model, learnables = tied.ir, tied.trace.learnables
        values = {tie.parameter.value for tie, _ in leaving}
        learnable = {v for v in values if word_of(v) is None and learnables.is_learnable(v)}
        untier = Untier(model, names)
        changes: list[Change] = []
        skips: list[Skip] = []
        rewired: set[tuple[onnx_ir.Node, int]] = set()
        places: Mapping[Place, Slot] = {}
        for tie, going in leaving:
            stuck = stuck_slots(tie, going, model)
            skips += [Skip(each.name, "a function reads for it and for others") for each in stuck]
            slots, parameter = [slot for slot in going if slot not in stuck], tie.parameter
            why = unchangeable(parameter)
            if why:
                skips.append(Skip(parameter.name, why))
                continue
            if not slots:
                if not stuck:
                    skips.append(Skip(parameter.name, "its names have one reader, which keeps it"))
                continue
            if any((slot.node, slot.index) in rewired for slot in slots):
                # A slot that reads several parameters left another tie already, and reads through
                # copies now.
                tied = TiedModel(model)
                places = places_of(tied.slots)
            if places:  # the slots of a later trace are other objects
                slots = [places[s.path, s.node, s.index, parameter.value] for s in slots]
                parameter = Parameter(parameter.value)
            rewired |= {(slot.node, slot.index) for slot in slots if slot.is_joined}
            if parameter.value in learnable and not (self.accidental and _holds_statistics(tie)):
                note_learnable(parameter.value)  # those that made it one may leave
            readers = tied.readers(parameter)
            changes += untier.detach(
                parameter,
                readers,
                slots,
                together=self.together or self.accidental,
                by_name=not self.targets and not self.accidental and _has_names(readers),
                remember=not self.accidental,
            )
        if self.accidental:
            for tie in {tie.parameter.value: tie for tie, _ in leaving}.values():
                untier.name_module(tie.parameter, _staying(tie))
        untier.name_copies()
        return Rewrite(tuple(changes), tuple(skips))


def _owners(model: TiedModel, names: Mapping[str, str]) -> list[tuple[str, Slot]]:
    """Return the slots under whose reader a caller wants to see doubtful names."""
    if not names:
        return []
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
                f"the reader of the name {printable(name)} is not in doubt",
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


def _by_tensor(model: TiedModel, leaving: Detached) -> Detached:
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


class _Chooser:
    """Says which slots leave which ties; the rest keep the shared tensor.

    Args:
        model: The model.
        calls: The calls on the way to its slots.
        owners: Whose the names are that the caller has chosen a reader for.
        together: Whether the slots that leave one tie stay tied with each other.
    """

    def __init__(
        self,
        model: TiedModel,
        calls: CallInliner,
        owners: Sequence[tuple[str, Slot]],
        *,
        together: bool,
    ) -> None:
        self._model = model
        self._calls = calls
        self._owners = owners
        self._together = together

    def accidental(self, targets: Sequence[Target]) -> Detached:
        """Return each accidental tie once for each module that leaves it, of those named or all.

        The module that the tensor is called after keeps it.
        """
        named = set(self._tied_slots(targets))
        return [
            (tie, module)
            for tie in self._model.accidental_ties
            for module in tie.modules
            if module is not _staying(tie) and (not targets or named.intersection(module))
        ]

    def named(self, targets: Sequence[Target]) -> Detached:
        """Return the ties that the targets are in, each with those that leave it."""
        readers = {slot.reader for slot in self._tied_slots(targets)}
        found: list[tuple[Tie, Sequence[Slot]]] = []
        for tie in self._model.ties:
            mine = [slot for slot in tie.slots if slot.reader in readers]
            if not mine:
                continue
            if self._together and len(mine) == len(tie.slots):
                continue  # they are tied with each other, and with nobody else
            # Someone has to keep what is stored: if all are named, it is as if none were.
            found.append((tie, mine if len(mine) < len(tie.slots) else self._all_but_one(tie)))
        return found

    def all_apart(self) -> Iterator[tuple[Tie, Sequence[Slot]]]:
        """Yield every tie with the slots that leave it when all do.

        Where the readers of a tensor have names of their own, these say what is one: all slots of
        one name stay together, the calls of one module and the slices that it reads one by one.
        """
        done: set[onnx_ir.Value] = set()
        for tie in self._model.ties:
            readers = self._model.readers(tie.parameter, self._owners)
            if not _has_names(readers):
                yield tie, self._all_but_one(tie)
                continue
            if tie.parameter.value in done:
                continue
            done.add(tie.parameter.value)
            slots = tuple(slot for reader in readers.all for slot in reader.slots)
            able = [r for r in readers.all if r.names and self._owns_all(r.slots, tie.parameter)]
            # Better one whose name stands for the tensor in the form that it is stored in.
            owner = next(
                (r for r in able if _is_stored_as_named(r, tie.parameter)), next(iter(able), None)
            )
            stays = owner.names if owner is not None else readers.all[0].names
            leaving = [s for r in readers.all if r.names != stays for s in r.slots]
            yield Tie(tie.parameter, slots), leaving

    def _owns_all(self, slots: Iterable[Slot], parameter: Parameter) -> bool:
        """Return whether one of the slots would own all of a tensor."""
        return max(map(self._calls.owned_elements, slots)) == parameter.elements

    def _all_but_one(self, tie: Tie) -> list[Slot]:
        """Return all slots but those of the first reader that would own all of the tensor."""
        first = next(
            (s for s in tie.slots if s.is_joined or self._owns_all([s], tie.parameter)), None
        )
        return [slot for slot in tie.slots if first is None or slot.reader != first.reader]

    def _tied_slots(self, targets: Sequence[Target]) -> Iterator[Slot]:
        """Yield the slots of the targets that share what they read with another reader.

        Raises:
            PreconditionError: If a target is not tied, or a caller may override what it reads.
        """
        tied = {
            slot
            for tie in self._calls.ties_of(self._model)
            for slot in tie.slots
            if len({other.reader for other in tie.slots}) > 1
        }
        for target in targets:
            slots = slots_of(self._model, target)
            mine = [slot for slot in slots if slot in tied]
            if not mine:
                raise PreconditionError(
                    f"{printable(slots[0].name)} is not tied",
                    {"reads": slots[0].parameter, "ties": len(self._model.ties)},
                    "see print(model.ties)",
                )
            for slot in mine:
                why = unchangeable(slot.parameter)
                if why:
                    raise PreconditionError(f"cannot untie {printable(slot.name)}", {"why": why})
            yield from mine


def _holds_statistics(tie: Tie) -> bool:
    """Return whether some of the readers take a tensor for statistics, which are not trained."""
    return any(is_statistic(slot.node, slot.index) for slot in tie.slots)


def _staying(tie: Tie) -> tuple[Slot, ...]:
    """Return the slots of the module that an accidental tie's tensor is called after."""
    name = tie.parameter.name
    return next((each for each in tie.modules if title_of(each) == name), tie.modules[0])


def _is_stored_as_named(reader: Reader, parameter: Parameter) -> bool:
    return any(form_of(parameter.value, name).is_identity for name in reader.names)
