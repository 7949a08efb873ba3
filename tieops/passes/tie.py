"""Tie layers: make them read one stored tensor where the model stores equal ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir

from tieops.analysis.duplicates.bit_equality import bit_equal, bits
from tieops.analysis.duplicates.by_content import same_range
from tieops.errors import PreconditionError, TieMismatchError
from tieops.ir.edit import (
    NameAuthority,
    TransposedInputs,
    drop_unread,
    merge_views,
    move_to_main_graph,
    rename_initializer,
    substitute,
)
from tieops.ir.evidence import Evidence
from tieops.ir.functions.calls import function_graphs
from tieops.ir.metadata.keys import (
    add_names,
    join_packed_names,
    origin_of,
    recorded_names,
    set_evidence,
)
from tieops.ir.metadata.torch_kinds import has_generated_name, join_kinds, word_of
from tieops.ir.notation import brief, brief_bytes, printable
from tieops.ir.operators.operands import Missing, bool_attribute
from tieops.ir.operators.predicates import is_gemm, is_matmul
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.readers.forms import as_read, form_of, set_forms
from tieops.ir.readers.readers import record_reads
from tieops.ir.view import Shape, View, permuted, relative
from tieops.ir.walk import scope_of, stored_values
from tieops.model import TiedModel
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
from tieops.passes.retie_slices import RecordedSlice, recorded_slices, retie_slices
from tieops.select import Target, weight_slot

__all__ = ["TiePass", "TiePlan", "tie"]


def tie(
    model: TiedModel,
    *targets: Target,
    keep: bool | str = False,
    include_small: bool = False,
) -> TiedModel:
    """Tie what is stored more than once; or tie the layers named.

    Without targets every duplicate that qualifies is joined: equal bit for bit and of one dtype, as
    stored or with permuted axes. Small and constant tensors, which may be equal by chance, are left
    alone. With targets the tie is declared: their weights must be equal, unless ``keep`` says whose
    values stay.

    Args:
        model: The model; left alone.
        targets: None, or two or more layers, slots or parameters, the one to keep first.
        keep: ``True`` to give the first target's values to all; or the name of the target whose
            values stay.
        include_small: Join small and constant duplicates too.

    Returns:
        A new model. Written by ``to_onnx``, its outputs are the same to the last bit with ONNX
        Runtime's optimizations off (opset 14 on), unless ``keep`` replaced values. In the portable
        form they may differ in rounding: the runtime packs a stored matrix, and not one that a
        Transpose computes, and multiplies the two in another order.

    Raises:
        TieMismatchError: If declared targets differ in dtype, shape or, without ``keep``, values.
        SelectionError: If a target names nothing, or several things.
        PreconditionError: If one target is given, or a target's weight cannot be shared.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[1, 2] x) => (float[1, 2] y)
        ... <float[2, 2] a = {1,2,3,4}, float[2, 2] b = {1,3,2,4}>
        ... { h = MatMul(x, a)
        ...   y = MatMul(h, b) }''')
        >>> print(tie(TiedModel(graph), "a", "b").ties)
        a = b: f32[2,2] (declared)
          MatMul_h.weight
          MatMul_y.weight (transpose)
    """
    tied, _ = run(TiePass(targets=targets, keep=keep, include_small=include_small), model)
    return tied


@dataclass(frozen=True)
class Group:
    """Parameters to join into the first one, with the order of its axes that each is read by."""

    parameters: tuple[Parameter, ...]
    perms: tuple[Shape, ...]
    evidence: Evidence


@dataclass(frozen=True, kw_only=True, eq=False)
class TiePlan(Plan):
    """What is joined.

    Args:
        groups: The tensors to join; empty if slices come first, as these may be equal then.
        slices: Tensors that were cut out of another one, by the name of that.
    """

    groups: tuple[Group, ...] = ()
    slices: Mapping[str, Sequence[RecordedSlice]] = field(
        default_factory=dict[str, Sequence[RecordedSlice]]
    )


@dataclass(frozen=True, kw_only=True)
class TiePass(SurgeryPass[TiePlan]):
    """Join duplicates, or the named targets, into one stored tensor each; see ``tieops.tie``.

    Args:
        targets: A layer, slot or parameter to tie; name two or more of them. Without any, all
            duplicates are joined.
        keep: Whose values stay, where the targets' values differ.
        include_small: Join small and constant duplicates too.
    """

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.BITS
    targets: tuple[Target, ...] = ()
    keep: bool | str = False
    include_small: bool = False

    def plan(self, model: TiedModel) -> TiePlan:
        """Check what is declared, or find what qualifies."""
        if self.keep and not self.targets:
            raise PreconditionError(
                "keep chooses among targets, but no targets were given",
                {"keep": self.keep},
                "name two or more targets",
            )
        if len(self.targets) == 1:
            raise PreconditionError(
                f"expected at least two targets to tie, got only {self.targets[0]}",
                None,
                "name two or more targets",
            )
        if self.targets:
            return TiePlan(model=model, groups=(resolve_targets(model, self.targets, self.keep),))
        slices = recorded_slices(model.ir)
        groups, skips = ((), ()) if slices else self._duplicates(model)
        return TiePlan(model=model, slices=slices, groups=groups, skips=skips)

    def apply(self, model: onnx_ir.Model, plan: TiePlan) -> Rewrite:
        """Join what qualifies."""
        tied, groups, skips = plan.model, plan.groups, plan.skips
        retied = retie_slices(model, plan.slices, NameAuthority(model))
        if plan.slices:
            # Two slices that are equal may be cut out of a tensor in two ways, and keep theirs: so
            # what is equal shows only when they are back.
            tied = TiedModel(model) if retied.changes else tied
            groups, skips = self._duplicates(tied)
        joiner = _Joiner(model, tied)
        for group in groups:
            joiner.join(group)
        merge_views([*joiner.kept, *retied.wholes])
        return Rewrite((*retied.changes, *joiner.changes), (*retied.skips, *skips, *joiner.skips))

    def _duplicates(self, model: TiedModel) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
        """Return the duplicates to join, and those that are held back."""
        groups: list[Group] = []
        skips: list[Skip] = []
        # What was one tensor before is one again before others are joined to it.
        for duplicate in sorted(model.duplicates, key=lambda each: bool(each.held_back)):
            if duplicate.held_back and not self.include_small:
                skips.append(Skip(duplicate.parameters[0].name, duplicate.held_back))
            else:
                groups.append(Group(duplicate.parameters, duplicate.perms, duplicate.evidence))
        return tuple(groups), tuple(skips)


class _Joiner:
    """Joins groups of equal tensors, one after the other, and notes what it did."""

    def __init__(self, model: onnx_ir.Model, tied: TiedModel) -> None:
        self.changes: list[Change] = []
        self.skips: list[Skip] = []
        self.kept: list[onnx_ir.Value] = []
        self._model = model
        self._fresh = NameAuthority(model)
        self._turned: TransposedInputs = {}
        self._in_functions = function_graphs(model)
        self._kinds_are_known = any(word_of(value) is not None for value in stored_values(model))
        self._tied = tied

    def join(self, group: Group) -> None:
        """Make all readers of a group read the first of its tensors that can be shared."""
        able: list[tuple[Parameter, tuple[int, ...]]] = []
        for parameter, perm in zip(group.parameters, group.perms, strict=True):
            why = self._unable(parameter)
            if why:
                self.skips.append(Skip(parameter.name, why))
            else:
                able.append((parameter, perm))
        if len(able) < 2:
            if group.evidence is Evidence.DECLARED and len(group.parameters) == 1:
                self._declare(able[0][0])
            return
        for parameter, _ in able:
            self._record_readers(parameter)
        keep, base = able[0]
        value = keep.value
        if value.graph is not self._model.graph or value.producer() is not None:
            value = move_to_main_graph(self._model, value, self._fresh)
        names = self._names(keep)
        if not origin_of(keep.value):
            names.insert(0, keep.name)
        forms: dict[str, View] = {}
        for other, perm in able[1:]:
            theirs, order = self._names(other), relative(base, perm)
            names += theirs
            forms |= {
                name: as_read(form_of(other.value, name), order)
                for name in theirs
                if name in other.names
            }
            if order == tuple(range(len(order))):
                join_packed_names(value, other.value)
            substitute(other.value, value, order, self._fresh, self._turned)
            drop_unread([other.value])
            how = "" if order == tuple(range(len(order))) else " transposed"
            saved = 0 if group.evidence is Evidence.STORAGE else other.nbytes
            less = f", {brief_bytes(saved)} less stored" if saved else ""
            self.changes.append(Change(other.name, f"reads {value.name}{how}{less}"))
        self.kept.append(value)
        join_kinds(value, [other.value for other, _ in able[1:]])
        self._restore_name(value, names)
        add_names(value, names)
        set_forms(value, forms)
        set_evidence(value, group.evidence)

    def _record_readers(self, parameter: Parameter) -> None:
        """Record who reads a tensor under which names: once it is joined, nothing may tell it."""
        names, readers = self._names(parameter), self._tied.readers(parameter).all
        for reader in readers:
            mine = [n for n in names if n in reader.names or len(readers) == 1]
            # A body serves many calls, which may read under many names.
            for slot in (slot for slot in reader.slots if mine and not slot.path):
                record_reads(slot.node, slot.index, mine)

    def _restore_name(self, value: onnx_ir.Value, names: Sequence[str]) -> None:
        """Store what was untied under a name that it had, if untie had to find the one it has."""
        found = value.name or ""
        if not origin_of(value) or found in names or not names or value.is_graph_output():
            return
        origin = origin_of(value)
        rename_initializer(value, origin if origin in names else names[0], self._fresh)

    def _declare(self, parameter: Parameter) -> None:
        if parameter.evidence is not Evidence.DECLARED:
            set_evidence(parameter.value, Evidence.DECLARED)
            self.changes.append(Change(parameter.name, "is tied already, and declared to be"))

    def _unable(self, parameter: Parameter) -> str:
        if parameter.value.graph in self._in_functions:
            return "it lives in a function, which sees no other tensor"
        return unchangeable(parameter)

    def _is_made_up(self, parameter: Parameter, name: str) -> bool:
        """Return whether an exporter made a name up: torch's says what came from the module."""
        folded = self._kinds_are_known and word_of(parameter.value) is None
        return has_generated_name(parameter.value, name) or (folded and "." not in name)

    def _names(self, parameter: Parameter) -> list[str]:
        """Return the names a tensor is known by; if an exporter made them up, its slots' names."""
        if origin_of(parameter.value):
            # Untied before: the name it is stored under may be one that untie had to find.
            return list(recorded_names(parameter.value))
        real = [name for name in parameter.names if not self._is_made_up(parameter, name)]
        if real:
            return real
        return [
            slot.name
            for reader in self._tied.readers(parameter).all
            for slot in reader.slots
            if (scope := scope_of(slot.node)) is not None and scope.fqn
        ]


# --- declared ties -----------------------------------------------------------------------------


def resolve_targets(model: TiedModel, targets: Sequence[Target], keep: bool | str) -> Group:
    """Return the parameters that the targets read, the one to keep first.

    Raises:
        SelectionError: If a target names nothing, or several parameters.
        TieMismatchError: If they differ in dtype, shape or, without ``keep``, values.
        PreconditionError: If two targets are one slot, one cannot be shared, or ``keep`` is none of
            them.
    """
    slots = [weight_slot(model, target) for target in targets]
    parameters = {slot.parameter for slot in slots}
    shared = len(parameters) == 1 and all(
        isinstance(target, str) and target in slots[0].parameter.names for target in targets
    )
    if len({slot.name for slot in slots}) < len(slots) and not (
        shared and len({*map(str, targets)}) == len(targets)
    ):
        raise PreconditionError(
            "two targets name the same slot",
            {"slots": ", ".join(printable(slot.name) for slot in slots)},
            "name layers that each read a weight",
        )
    if isinstance(keep, str):
        kept = weight_slot(model, keep).parameter
        if kept not in [slot.parameter for slot in slots]:
            raise PreconditionError(
                f"expected keep to name one of the targets, got {keep!r}",
                {"targets": ", ".join(printable(slot.name) for slot in slots)},
                "name one of them",
            )
        slots.sort(key=lambda slot: slot.parameter is not kept)
    one_each = list({slot.parameter: slot for slot in reversed(slots)}.values())[::-1]
    first = one_each[0]
    for slot in one_each if len(one_each) > 1 else ():
        if why := unchangeable(slot.parameter):
            raise PreconditionError(
                f"cannot tie {printable(slot.parameter.name)}",
                {slot.parameter.name: why},
                "remove it from the graph's inputs first",
            )
    perms = [tuple(range(len(first.parameter.shape)))]
    perms += [_matching_perm(first, other, anything=bool(keep)) for other in one_each[1:]]
    return Group(tuple(slot.parameter for slot in one_each), tuple(perms), Evidence.DECLARED)


def _matching_perm(kept: Slot, slot: Slot, *, anything: bool) -> Shape:
    """Return the order of the kept parameter's axes that equals the other one."""
    first, other = kept.parameter, slot.parameter
    facts: dict[str, object] = {each.name: brief(each.dtype, each.shape) for each in (first, other)}
    title = f"cannot tie {printable(other.name)} to {printable(first.name)}"
    if first.dtype != other.dtype:
        raise TieMismatchError(f"{title}: dtypes differ", facts, "convert one of them first")
    rank = len(first.shape)
    perms = [
        perm
        for perm in itertools.permutations(range(rank))
        if rank == len(other.shape) and permuted(first.shape, perm) == other.shape
    ]
    if not perms:
        raise TieMismatchError(
            f"{title}: shapes differ",
            facts,
            "pad or slice one of them to the other's size, in any order of axes",
        )
    perms.sort(key=lambda perm: perm != _usual_perm(kept, slot))
    if same_range(first.tensor, other.tensor):
        return tuple(range(rank))
    for perm in perms:
        if bit_equal(first.numpy().transpose(perm), other.numpy()):
            return perm
    if not anything:
        raise TieMismatchError(
            f"{title}: values differ",
            {**facts, "first difference": _difference(first, other, perms[0])},
            "choose whose values to keep: keep=",
        )
    return perms[0]


def _usual_perm(kept: Slot, slot: Slot) -> Shape | None:
    """Return the order in which two matrices are the same layer's weight as torch stores it."""
    mine, others = _torch_order(kept), _torch_order(slot)
    return None if mine is None or others is None else relative(others, mine)


def _torch_order(slot: Slot) -> Shape | None:
    """Return the order of a stored matrix' axes that gives (out, in), or (vocab, hidden)."""
    perm = slot.view.permutation
    if perm is None or len(perm) != 2:
        return None
    if not is_matmul(slot.node) and not is_gemm(slot.node):
        return perm
    flips = is_gemm(slot.node) and bool_attribute(slot.node, "transB", default=False)
    if isinstance(flips, Missing):
        return None
    return (perm[1], perm[0]) if slot.index == 1 and not flips else perm


def _difference(first: Parameter, other: Parameter, perm: Shape) -> str:
    one, two = first.numpy().transpose(perm), other.numpy()
    if one.dtype.kind == "O" or first.dtype == onnx_ir.DataType.STRING:
        return "somewhere"
    places = np.argwhere(np.ascontiguousarray(bits(one)) != np.ascontiguousarray(bits(two)))
    at = tuple(int(axis) for axis in places[0][: one.ndim])
    return f"{one[at]} and {two[at]} at {list(at)}"
