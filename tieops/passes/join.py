"""Joining equal tensors: their readers read one of them, which has all of their names.

What nothing tells afterwards is recorded on the way: which reader read under which name, and what
of the tensor each name stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.ir.edit import (
    NameAuthority,
    TransposedInputs,
    drop_unread,
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
from tieops.ir.parameter import Parameter
from tieops.ir.readers.forms import as_read, form_of, set_forms
from tieops.ir.readers.readers import record_reads
from tieops.ir.view import Shape, View, relative
from tieops.ir.walk import scope_of, stored_values
from tieops.model import TiedModel
from tieops.passes.base import Change, Skip, unchangeable

__all__ = ["Group", "Joiner"]


@dataclass(frozen=True)
class Group:
    """Parameters to join into the first one, with the order of its axes that each is read by."""

    parameters: tuple[Parameter, ...]
    perms: tuple[Shape, ...]
    evidence: Evidence


class Joiner:
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
            # Of what has no module nothing else will tell; a module's own name is found by it.
            alone = len(readers) == 1 and scope_of(reader.slots[0].node) is None
            mine = [n for n in names if alone or n in reader.names]
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

    def _is_generated_name(self, parameter: Parameter, name: str) -> bool:
        """Return whether an exporter generated a name: torch's says what came from the module."""
        folded = self._kinds_are_known and word_of(parameter.value) is None
        return has_generated_name(parameter.value, name) or (folded and "." not in name)

    def _names(self, parameter: Parameter) -> list[str]:
        """Return the names of a tensor; if an exporter generated them, those of its slots."""
        if origin_of(parameter.value):
            # Untied before: the name it is stored under may be one that untie had to find.
            return list(recorded_names(parameter.value))
        real = [name for name in parameter.names if not self._is_generated_name(parameter, name)]
        if real:
            return real
        return [
            slot.name
            for reader in self._tied.readers(parameter).all
            for slot in reader.slots
            if (scope := scope_of(slot.node)) is not None and scope.fqn
        ]


# --- declared ties -----------------------------------------------------------------------------
