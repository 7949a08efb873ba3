"""Declared ties: which parameters the named targets read, and whether they can be one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from tieops.analysis.duplicates.bit_equality import bit_equal, bits
from tieops.analysis.duplicates.by_content import same_range
from tieops.errors import PreconditionError, TieMismatchError
from tieops.ir.evidence import Evidence
from tieops.ir.notation import brief, printable
from tieops.ir.operators.operands import Missing, bool_attribute
from tieops.ir.operators.predicates import is_gemm, is_matmul
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.view import Shape, permuted, relative
from tieops.model import TiedModel
from tieops.select import Target, weight_slot

__all__ = ["Group", "declared", "unshareable"]


@dataclass(frozen=True)
class Group:
    """Parameters to join into the first one, with the order of its axes that each is read by."""

    parameters: tuple[Parameter, ...]
    perms: tuple[Shape, ...]
    evidence: Evidence


def unshareable(parameter: Parameter) -> str:
    """Return why a stored tensor cannot be shared with others, or nothing."""
    if parameter.is_overridable:
        return "it is a graph input too, which a caller may override"
    return ""


def declared(model: TiedModel, targets: Sequence[Target], keep: bool | str) -> Group:
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
            "two targets name one slot",
            {"slots": ", ".join(printable(slot.name) for slot in slots)},
            "name layers that each read a weight",
        )
    if isinstance(keep, str):
        kept = weight_slot(model, keep).parameter
        if kept not in [slot.parameter for slot in slots]:
            raise PreconditionError(
                f"keep={keep!r} is none of the targets",
                {"targets": ", ".join(printable(slot.name) for slot in slots)},
                "name one of them",
            )
        slots.sort(key=lambda slot: slot.parameter is not kept)
    one_each = list({slot.parameter: slot for slot in reversed(slots)}.values())[::-1]
    first = one_each[0]
    for slot in one_each if len(one_each) > 1 else ():
        if why := unshareable(slot.parameter):
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
            "say whose values stay: keep=",
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
