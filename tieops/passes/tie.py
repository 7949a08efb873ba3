"""Tie: make layers read one stored tensor where the model stores equal ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.errors import PreconditionError
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
from tieops.ir.notation import brief_bytes
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.readers.forms import as_read, form_of, set_forms
from tieops.ir.view import View, relative
from tieops.ir.walk import scope_of, stored_values
from tieops.model import TiedModel
from tieops.passes.base import Change, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.passes.declared import Group, declared, unshareable
from tieops.passes.rejoin import Rejoined, rejoin
from tieops.select import Target

__all__ = ["TiePass", "tie"]


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


@dataclass(frozen=True, kw_only=True)
class TiePass(SurgeryPass):
    """Join duplicates, or the named targets, into one stored tensor each; see ``tieops.tie``."""

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.BITS
    targets: tuple[Target, ...] = ()
    keep: bool | str = False
    include_small: bool = False

    def requires(self, model: onnx_ir.Model) -> None:
        """Check what is declared before anything changes."""
        if self.keep and not self.targets:
            raise PreconditionError(
                "keep says whose values stay, and no targets are named",
                {"keep": self.keep},
                "name two or more targets",
            )
        if len(self.targets) == 1:
            raise PreconditionError(
                f"cannot tie {self.targets[0]} to nothing", None, "name two or more targets"
            )
        if self.targets:
            declared(TiedModel(model), self.targets, self.keep)

    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Join what qualifies."""
        return tie_in_place(model, self.targets, self.keep, include_small=self.include_small)


def tie_in_place(
    model: onnx_ir.Model,
    targets: Sequence[Target] = (),
    keep: bool | str = False,
    *,
    include_small: bool = False,
) -> Rewrite:
    """Do the work of ``tie`` on a graph, in place."""
    # Parts first: two that are equal may be cut out of a tensor in two ways, and keep theirs.
    rejoined = Rejoined() if targets else rejoin(model, NameAuthority(model))
    tied = TiedModel(model)
    skips: list[Skip] = []
    groups: list[Group] = []
    if targets:
        groups.append(declared(tied, targets, keep))
    else:
        # What was one tensor before is one again before others are joined to it.
        for duplicate in sorted(tied.duplicates, key=lambda each: bool(each.held_back)):
            if duplicate.held_back and not include_small:
                skips.append(Skip(duplicate.parameters[0].name, duplicate.held_back))
            else:
                groups.append(Group(duplicate.parameters, duplicate.perms, duplicate.evidence))
    joiner = _Joiner(model, tied.slots)
    for group in groups:
        joiner.join(group)
    merge_views([*joiner.kept, *rejoined.wholes])
    return Rewrite((*rejoined.changes, *joiner.changes), (*rejoined.skips, *skips, *joiner.skips))


class _Joiner:
    """Joins groups of equal tensors, one after the other, and notes what it did."""

    def __init__(self, model: onnx_ir.Model, slots: Iterable[Slot]) -> None:
        self.changes: list[Change] = []
        self.skips: list[Skip] = []
        self.kept: list[onnx_ir.Value] = []
        self._model = model
        self._fresh = NameAuthority(model)
        self._turned: TransposedInputs = {}
        self._in_functions = function_graphs(model)
        self._kinds_are_known = any(word_of(value) is not None for value in stored_values(model))
        self._readers: dict[Parameter, list[Slot]] = {}
        for slot in slots:
            for read in slot.reads:
                self._readers.setdefault(read.parameter, []).append(slot)

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
        return unshareable(parameter)

    def _is_made_up(self, parameter: Parameter, name: str) -> bool:
        """Tell whether an exporter made a name up: torch's says what came from the module."""
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
            for slot in self._readers.get(parameter, [])
            if (scope := scope_of(slot.node)) is not None and scope.fqn
        ]
