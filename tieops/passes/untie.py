"""Untie: give layers weights of their own where they share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir
import onnx_ir.passes.common as common_passes

from tieops.errors import PreconditionError
from tieops.ir.brief import printable
from tieops.ir.fresh import FreshNames
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.reach import Liveness
from tieops.ir.scopes import all_nodes, is_constant
from tieops.ir.ties import Tie
from tieops.passes.base import Change, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.passes.leave import Leaver, handle_of
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
            _leaving(TiedModel(model), self.targets)

    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Untie."""
        return untie_in_place(model, self.targets, together=self.together)


def untie_in_place(
    model: onnx_ir.Model, targets: Sequence[Target] = (), *, together: bool = False
) -> Rewrite:
    """Do the work of ``untie`` on a graph, in place."""
    liveness = Liveness(model)
    _inline_holders(model, TiedModel(model), targets)
    leaver = Leaver(model, FreshNames(model))
    changes: list[Change] = []
    skips: list[Skip] = []
    tied = TiedModel(model)
    for tie, leaving in _leaving(tied, targets, together=together):
        slots, parameter = leaving, tie.parameter
        if any(slot.is_joined for slot in leaving):
            # A slot that joins several parameters has been rewired if it left another tie already.
            slots = _again(TiedModel(model), leaving)
            parameter = Parameter(tie.parameter.value)
        why = _bound(parameter)
        if why:
            skips.append(Skip(parameter.name, why))
        elif not slots:
            skips.append(Skip(parameter.name, "its names have one reader, which keeps it"))
        else:
            changes += leaver.leave(parameter, slots, together=together)
    liveness.remove_newly_dead()
    return Rewrite(tuple(changes), tuple(skips))


def _inline_holders(model: onnx_ir.Model, tied: TiedModel, targets: Sequence[Target]) -> None:
    """Inline the functions that hold what leaves: a body has one Constant for all of its calls."""
    held = {
        slot
        for _, slots in _leaving(tied, targets)
        for slot in slots
        if slot.path and slot.reads[0].entry is None
    }
    holders = {call.op_identifier() for slot in held for call in slot.path}
    if not holders:
        return
    # Renaming a value renames its tensor, which is the argument's too; and copies of one body share
    # the tensor object where they are several tensors in the file. So: own ones, before and after.
    _own_constants(model)
    common_passes.InlinePass(criteria=lambda function: function.identifier() in holders)(model)
    _own_constants(model)


def _own_constants(model: onnx_ir.Model) -> None:
    for node in all_nodes(model):
        if is_constant(node):
            tensor = node.attributes["value"].as_tensor()
            own = onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
            node.attributes["value"] = onnx_ir.AttrTensor("value", own)
            node.outputs[0].const_value = own


def _again(model: TiedModel, slots: Sequence[Slot]) -> list[Slot]:
    places = {(slot.path, slot.node, slot.index): slot for slot in model.slots}
    return [places[slot.path, slot.node, slot.index] for slot in slots]


def _leaving(
    model: TiedModel, targets: Sequence[Target], *, together: bool = False
) -> list[tuple[Tie, list[Slot]]]:
    """Return, for each tie concerned, the slots that leave it; the rest keep the shared tensor."""
    if not targets:
        return [(tie, _all_but_one(tie)) for tie in model.ties]
    named = {slot for target in targets for slot in _tied_slots(model, target)}
    found: list[tuple[Tie, list[Slot]]] = []
    for tie in model.ties:
        mine = [slot for slot in tie.slots if slot in named]
        if not mine:
            continue
        staying = {handle_of(slot) for slot in tie.slots if slot not in named}
        stuck = [slot for slot in mine if handle_of(slot) in staying]
        if stuck:
            raise PreconditionError(
                f"cannot untie {printable(stuck[0].name)} alone: others read the same input of a "
                "function's call",
                {"with it": ", ".join(s.name for s in tie.slots if s not in named)},
                "name them too, or inline the function",
            )
        if len(mine) < len(tie.slots) and mine[0].path and mine[0].reads[0].entry is None:
            raise PreconditionError(
                f"cannot untie {printable(mine[0].name)} alone: a function holds what it reads",
                {"holds": tie.parameter, "readers": len(tie.slots)},
                "untie all of its readers, or inline the function",
            )
        if together and len(mine) == len(tie.slots):
            continue  # they are tied with each other, and with nobody else
        # Someone has to keep what is stored: if all are named, the first one does.
        found.append((tie, mine if len(mine) < len(tie.slots) else _all_but_one(tie)))
    return found


def _all_but_one(tie: Tie) -> list[Slot]:
    """Return the slots that leave when all do: the first that reads all of the tensor stays."""
    whole = tie.parameter.elements
    readers = (s for s in tie.slots if s.is_joined or s.view.elements == whole)
    first = next(readers, None)
    if first is None:
        return list(tie.slots)
    kept = handle_of(first)
    return [slot for slot in tie.slots if handle_of(slot) != kept]


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
