"""Tie: make layers read one stored tensor where the model stores equal ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.detect.content import bit_equal, same_range
from tieops.errors import PreconditionError, TieMismatchError
from tieops.ir.brief import brief, brief_bytes
from tieops.ir.evidence import Evidence
from tieops.ir.names import add_names, is_made_up, origin_of, recorded_names, set_evidence
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.rewire import drop_unread, substitute
from tieops.ir.scopes import all_graphs, nested_graphs, scope_of
from tieops.ir.view import Shape, permuted
from tieops.passes.base import Change, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.select import Target, weight_slot
from tieops.tied_model import TiedModel

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
        A new model. Outputs are the same to the last bit, unless ``keep`` replaced values.

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
        if len(self.targets) == 1:
            raise PreconditionError(
                f"cannot tie {self.targets[0]} to nothing", None, "name two or more targets"
            )
        if self.targets:
            _declared(TiedModel(model), self.targets, self.keep)

    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Join what qualifies."""
        return tie_in_place(model, self.targets, self.keep, include_small=self.include_small)


@dataclass(frozen=True)
class _Group:
    """Parameters to join into the first one, with the order of its axes that each is read by."""

    parameters: tuple[Parameter, ...]
    perms: tuple[Shape, ...]
    evidence: Evidence


def tie_in_place(
    model: onnx_ir.Model,
    targets: Sequence[Target] = (),
    keep: bool | str = False,
    *,
    include_small: bool = False,
) -> Rewrite:
    """Do the work of ``tie`` on a graph, in place."""
    tied = TiedModel(model)
    skips: list[Skip] = []
    groups: list[_Group] = []
    if targets:
        groups.append(_declared(tied, targets, keep))
    else:
        for duplicate in tied.duplicates:
            if duplicate.held_back and not include_small:
                skips.append(Skip(duplicate.parameters[0].name, duplicate.held_back))
            else:
                groups.append(_Group(duplicate.parameters, duplicate.perms, duplicate.evidence))
    readers: dict[Parameter, list[Slot]] = {}
    for slot in tied.slots:
        for read in slot.reads:
            readers.setdefault(read.parameter, []).append(slot)
    changes: list[Change] = []
    for group in groups:
        made, declined = _join(model, group, readers)
        changes += made
        skips += declined
    return Rewrite(tuple(changes), tuple(skips))


def _declared(model: TiedModel, targets: Sequence[Target], keep: bool | str) -> _Group:
    slots = [weight_slot(model, target) for target in targets]
    if isinstance(keep, str):
        kept = weight_slot(model, keep).parameter
        if kept not in [slot.parameter for slot in slots]:
            raise PreconditionError(
                f"keep={keep!r} is none of the targets",
                {"targets": ", ".join(slot.name for slot in slots)},
                "name one of them",
            )
        slots.sort(key=lambda slot: slot.parameter is not kept)
    parameters = list(dict.fromkeys(slot.parameter for slot in slots))
    if len(parameters) == 1:
        return _Group(
            (parameters[0],), (tuple(range(len(parameters[0].shape))),), Evidence.DECLARED
        )
    first = parameters[0]
    perms = [tuple(range(len(first.shape)))]
    for other in parameters[1:]:
        why = _unshareable(other)
        if why:
            raise PreconditionError(
                f"cannot tie {other.name} to {first.name}",
                {other.name: why},
                "inline or edit it first",
            )
        perms.append(_matching_perm(first, other, anything=bool(keep)))
    return _Group(tuple(parameters), tuple(perms), Evidence.DECLARED)


def _matching_perm(first: Parameter, other: Parameter, *, anything: bool) -> Shape:
    """Return the order of ``first``'s axes that equals ``other``, the plain one before others."""
    facts: dict[str, object] = {each.name: brief(each.dtype, each.shape) for each in (first, other)}
    title = f"cannot tie {other.name} to {first.name}"
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
    if same_range(first.tensor, other.tensor):
        return perms[0]
    for perm in perms:
        if bit_equal(first.numpy().transpose(perm), other.numpy()):
            return perm
    if not anything:
        raise TieMismatchError(f"{title}: values differ", facts, "say whose values stay: keep=")
    return perms[0]


def _unshareable(parameter: Parameter) -> str:
    """Return why a stored tensor cannot give way to another one, or nothing."""
    if parameter.is_overridable:
        return "it is a graph input too, which a caller may override"
    return ""


def _join(
    model: onnx_ir.Model, group: _Group, readers: dict[Parameter, list[Slot]]
) -> tuple[list[Change], list[Skip]]:
    functions = {
        graph for function in model.functions.values() for graph in nested_graphs(function.graph)
    }
    keep = group.parameters[0]
    changes: list[Change] = []
    skips: list[Skip] = []
    if keep.value.graph in functions:
        return [], [Skip(keep.name, "it lives in a function, which sees no other tensor")]
    if _unshareable(keep):
        return [], [Skip(keep.name, _unshareable(keep))]
    names: list[str] = [keep.name, *_names(keep, readers)]
    value = keep.value
    for other, perm in zip(group.parameters[1:], group.perms[1:], strict=True):
        why = _unshareable(other)
        if other.value.graph in functions:
            why = "it lives in a function, which sees no other tensor"
        if why:
            skips.append(Skip(other.name, why))
            continue
        if value.graph is not model.graph or value.producer() is not None:
            value = _hoist(model, value)
        saved = other.nbytes
        names += [*_names(other, readers)]
        substitute(other.value, value, perm)
        drop_unread([other.value])
        how = "" if perm == tuple(range(len(perm))) else " transposed"
        changes.append(
            Change(other.name, f"reads {value.name}{how}, {brief_bytes(saved)} less stored")
        )
    if changes or group.evidence is Evidence.DECLARED:
        add_names(value, names)
        set_evidence(value, group.evidence)
    return changes, skips


def _names(parameter: Parameter, readers: dict[Parameter, list[Slot]]) -> list[str]:
    """Return the names that a tensor is known by; if an exporter made them up, its slots' names."""
    if origin_of(parameter.value):
        # Untied before: the name it is stored under may be one that untie had to find.
        return list(recorded_names(parameter.value))
    real = [name for name in parameter.names if not is_made_up(name)]
    if real:
        return real
    return [
        slot.name
        for slot in readers.get(parameter, [])
        if (scope := scope_of(slot.node)) is not None and scope.fqn
    ]


def _hoist(model: onnx_ir.Model, value: onnx_ir.Value) -> onnx_ir.Value:
    """Move a stored tensor to the main graph, where every subgraph sees it, and its readers too."""
    taken = {
        each.name
        for graph in all_graphs(model)
        for each in (
            *graph.inputs,
            *graph.initializers.values(),
            *(output for node in graph for output in node.outputs),
        )
        if each is not value
    }
    name = value.name or "weight"
    candidates = itertools.chain([name], (f"{name}_shared{i or ''}" for i in itertools.count()))
    new = onnx_ir.Value(
        name=next(each for each in candidates if each not in taken),
        const_value=value.const_value,
        type=value.type,
        shape=value.shape,
    )
    if new.const_value is not None and new.type is None:
        new.type = onnx_ir.TensorType(new.const_value.dtype)
    if new.const_value is not None and new.shape is None:
        new.shape = onnx_ir.Shape(new.const_value.shape.numpy())
    new.metadata_props.update(value.metadata_props)
    model.graph.initializers.add(new)
    # Before IR version 4 every initializer had to be a graph input.
    model.ir_version = max(model.ir_version, 4)
    substitute(value, new, tuple(range(len(new.shape or ()))))
    drop_unread([value])
    return new
