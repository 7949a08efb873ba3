"""Untie: give layers weights of their own where they share one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir

from tieops.detect.moves import Moves
from tieops.errors import PreconditionError
from tieops.ir.brief import brief_bytes, printable
from tieops.ir.copies import call_own_copy, remove_dead_views, store
from tieops.ir.fresh import FreshNames
from tieops.ir.names import (
    PACKED,
    aliases_of,
    forget_evidence,
    lr_factor_of,
    origin_of,
    set_axes,
    set_lr_factor,
    set_names,
    set_origin,
)
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.ties import Tie
from tieops.ir.view import Cast, Dequantize, Step, View
from tieops.passes.base import Change, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.select import Target, slots_of
from tieops.tied_model import TiedModel

Array = np.ndarray[Any, Any]
_CHANGE_VALUES = ("Cast", "DequantizeLinear")
__all__ = ["UntiePass", "untie", "untie_slots"]


def untie(model: TiedModel, *targets: Target, together: bool = False) -> TiedModel:
    """Give layers weights of their own: all that share one, or the ones named.

    Each slot that leaves gets an initializer of its own, with what it read of the shared one (a
    transpose is applied to the values), under its own old name where it has one. The first slot of
    a tie keeps the shared tensor, its name and its values, unless it is named and another is not.

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
            _leaving(TiedModel(model), self.targets)

    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Untie."""
        tied = TiedModel(model)
        names = FreshNames(model)
        changes: list[Change] = []
        skips: list[Skip] = []
        for tie, slots in _leaving(tied, self.targets):
            why = _bound(tie.parameter)
            if why:
                skips.append(Skip(tie.parameter.name, why))
                continue
            if not slots:
                skips.append(Skip(tie.parameter.name, "its names have one reader, which keeps it"))
                continue
            changes += untie_slots(model, tie.parameter, slots, names, together=self.together)
        return Rewrite(tuple(changes), tuple(skips))


def _leaving(model: TiedModel, targets: Sequence[Target]) -> list[tuple[Tie, list[Slot]]]:
    """Return, for each tie concerned, the slots that leave it; the rest keep the shared tensor."""
    if not targets:
        return [(tie, _after_first(tie.slots)) for tie in model.ties]
    named = {slot for target in targets for slot in _tied_slots(model, target)}
    found: list[tuple[Tie, list[Slot]]] = []
    for tie in model.ties:
        mine = [slot for slot in tie.slots if slot in named]
        if mine:
            # Someone has to keep what is stored: if all are named, the first one does.
            found.append((tie, mine if len(mine) < len(tie.slots) else _after_first(tie.slots)))
    return found


def _after_first(slots: Sequence[Slot]) -> list[Slot]:
    # Slots that are reached through one function call's input cannot be told apart by it.
    first = _handle(slots[0])
    return [slot for slot in slots[1:] if _handle(slot) != first]


def _handle(slot: Slot) -> object:
    """Return what has to be changed to give a slot another weight."""
    entry = slot.reads[0].entry
    if entry is not None:
        return slot.path[0], entry.index
    return slot.path, slot.node, slot.index


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


def untie_slots(
    model: onnx_ir.Model,
    parameter: Parameter,
    slots: Sequence[Slot],
    names: FreshNames,
    *,
    together: bool = False,
) -> list[Change]:
    """Give each of the slots what it reads of a parameter as an initializer of its own, in place.

    Args:
        model: The graph.
        parameter: What the slots share.
        slots: The slots that leave; another reader keeps the parameter.
        names: Where new tensors get their names.
        together: One new initializer for all of them.
    """
    changes: list[Change] = []
    groups: dict[object, list[Slot]] = {}
    for slot in slots:
        groups.setdefault("all" if together else _handle(slot), []).append(slot)
    gone: set[str] = set()
    origin = origin_of(parameter.value) or parameter.name
    set_origin(parameter.value, origin)
    known = aliases_of(parameter.value)
    for group in groups.values():
        value = _leave(model, group, names)
        set_origin(value, origin)
        mine = [slot.name for slot in group]
        gone.update(name for name in mine if name in known)
        set_names(value, [name for name in mine if name in known])
        if (factor := lr_factor_of(parameter.value)) != 1.0:
            set_lr_factor(value, factor)
        stored = Parameter(value)
        owner = ", ".join(mine)
        changes.append(Change(owner, f"owns {stored}, {brief_bytes(stored.nbytes)}"))
    kept = [name for name in known if name not in gone]
    if PACKED not in parameter.value.metadata_props:
        set_names(parameter.value, kept)
    if len(kept) == 1:
        forget_evidence(parameter.value)
    return changes


def _leave(model: onnx_ir.Model, group: Sequence[Slot], names: FreshNames) -> onnx_ir.Value:
    """Store what a group of slots reads anew and make them read it; return the new value."""
    first = group[0]
    read = first.reads[0]
    if first.path and read.entry is None:
        return call_own_copy(model, first.path, read.parameter.value)
    if first.is_joined:
        return _own(model, first, _joined(first), first.node, first.index, names)
    if read.entry is not None:
        array = read.entry.view.apply(read.parameter.numpy())
        entry = read.entry
        return _own(model, first, array, first.path[0], entry.index, names, entry.nodes)
    views = {slot.view for slot in group}
    if len(views) > 1:
        return _share_anew(model, group, names)
    moves, rest = _split(read.view)
    value = store(model, names.take(first.name), moves.apply(read.parameter.numpy()), read)
    _note_axes(value, moves)
    for slot in group:
        _read_from(slot, value, slot.reads[0].nodes, len(rest), names)
    return value


def _share_anew(model: onnx_ir.Model, group: Sequence[Slot], names: FreshNames) -> onnx_ir.Value:
    """Store the whole parameter once more for slots that read it through different views."""
    read = group[0].reads[0]
    value = store(model, names.take(group[0].name), read.parameter.numpy(), read)
    for slot in group:
        _read_from(slot, value, slot.reads[0].nodes, len(slot.reads[0].nodes), names)
    return value


def _own(
    model: onnx_ir.Model,
    slot: Slot,
    array: Array,
    node: onnx_ir.Node,
    index: int,
    names: FreshNames,
    nodes: Sequence[onnx_ir.Node] | None = None,
) -> onnx_ir.Value:
    read = slot.reads[0]
    value = store(model, names.take(slot.name), array, read)
    node.replace_input_with(index, value)
    for each in slot.reads if nodes is None else [read]:
        remove_dead_views(each.nodes if nodes is None else nodes)
    return value


def _split(view: View) -> tuple[View, tuple[Step, ...]]:
    """Split a view into the moves, which are applied to the values, and what changes values."""
    steps = view.steps
    cut = next((i for i, s in enumerate(steps) if isinstance(s, Cast | Dequantize)), len(steps))
    return View(view.source, steps[:cut]), steps[cut:]


def _read_from(
    slot: Slot,
    value: onnx_ir.Value,
    nodes: Sequence[onnx_ir.Node],
    keep: int,
    names: FreshNames,
) -> None:
    """Make a slot read ``value`` through copies of the last nodes of its view that count."""
    changing = list(nodes)
    if keep < len(nodes):
        values = (i for i, node in enumerate(nodes) if node.op_type in _CHANGE_VALUES)
        changing = list(nodes[next(values, len(nodes)) :])
    at = value
    for node in changing:
        copy = onnx_ir.Node(
            node.domain,
            node.op_type,
            [at, *node.inputs[1:]],
            list(node.attributes.values()),
            name=f"{node.name}_{value.name}",
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = names.take(f"{old.name}_{value.name}")
            new.type, new.shape = old.type, old.shape
        graph = node.graph
        assert graph is not None
        graph.insert_after(node, copy)
        at = copy.outputs[_followed(node, nodes, slot)]
    slot.node.replace_input_with(slot.index, at)
    remove_dead_views(nodes)


def _followed(node: onnx_ir.Node, nodes: Sequence[onnx_ir.Node], slot: Slot) -> int:
    """Return which output of a view's node goes on along the view; a Split has several."""
    following = itertools.chain(nodes[list(nodes).index(node) + 1 :], [slot.node])
    reader = next(iter(following))
    return next(i for i, output in enumerate(node.outputs) if output in reader.inputs)


def _note_axes(value: onnx_ir.Value, moves: View) -> None:
    perm = moves.permutation
    if perm is not None and not moves.is_identity:
        set_axes(value, perm)


def _joined(slot: Slot) -> Array:
    """Return the value that a slot reads through a static Concat of parts."""
    value = slot.node.inputs[slot.index]
    assert value is not None
    return Moves().static_value(value)
