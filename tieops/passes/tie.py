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
    merge_views,
)
from tieops.ir.evidence import Evidence
from tieops.ir.notation import brief, printable
from tieops.ir.operators.operands import Missing, bool_attribute
from tieops.ir.operators.predicates import is_gemm, is_matmul
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.view import Shape, permuted, relative
from tieops.model import Model, TiedModel
from tieops.passes.base import (
    Plan,
    Preserves,
    Rewrite,
    Skip,
    SurgeryPass,
    run,
    unchangeable,
)
from tieops.passes.join import Group, Joiner
from tieops.passes.retie_slices import RecordedSlice, recorded_slices, retie_slices
from tieops.select import Target, weight_slot

__all__ = ["TiePass", "TiePlan", "tie"]


def tie(
    model: Model,
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
        model: The model, or what ``from_onnx`` imports; left alone.
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
        joiner = Joiner(model, tied)
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
