"""Find accidental ties: parameters that started out equal, and that an exporter stored once.

Fresh norms have gains of ones and fresh layers may have biases of zeros. Exporters store equal
tensors once, although no module shares them. Training one parameter in the place of three changes
what the model learns, so these ties are kept apart from intended ones. The same holds for a fresh
BatchNorm's bias, which starts at zero like its running mean: one is trained, the other never.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tieops.ir.metadata.keys import aliases_of, evidence_of, is_generated_name
from tieops.ir.operators.predicates import is_identity
from tieops.ir.operators.roles import is_statistic, learnable_role
from tieops.ir.operators.traits import vector_role
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.storage.value_samples import is_uniform
from tieops.ir.walk import Scope, scope_of

__all__ = ["modules_apart", "title_of"]


def modules_apart(parameter: Parameter, slots: Sequence[Slot]) -> tuple[tuple[Slot, ...], ...]:
    """Split the readers of one tensor by module, if it is by accident that modules share it.

    It is one if every element of the tensor is equal, its readers are in different modules by
    their scopes, or one reads statistics and another what is trained, and nothing records that
    the module shares it.

    Args:
        parameter: A learnable.
        slots: Its readers.

    Returns:
        The readers of each module, in order; nothing if the tie is meant or nobody can tell.
    """
    if evidence_of(parameter.value) is not None or len(aliases_of(parameter.value)) > 1:
        return ()
    scopes = [_scope_of(slot) for slot in slots]
    named = {scope.fqn for scope in scopes if scope is not None}
    # Without a scope of every reader nobody can tell their modules; statistics can be told.
    told = None not in scopes
    kinds = {
        (scope.fqn if told and scope is not None else "", _is_statistic(slot))
        for slot, scope in zip(slots, scopes, strict=True)
    }
    if len(kinds) < 2 or not is_uniform(parameter.value):
        return ()
    groups: dict[tuple[str, bool], list[Slot]] = {}
    for slot, scope in zip(slots, scopes, strict=True):
        module = _module_of(slot, scope, named) if told and scope is not None else ""
        groups.setdefault((module, _is_statistic(slot)), []).append(slot)
    return tuple(map(tuple, groups.values())) if len(groups) > 1 else ()


def title_of(slots: Sequence[Slot]) -> str:
    """Return what a module calls a parameter of its own that an exporter merged with others.

    The older exporter leaves an Identity of that name; elsewhere it is the module's path and the
    role. Without either it is the first slot's name.

    Args:
        slots: The module's readers.
    """
    first = slots[0]
    for node in first.reads[0].nodes[:1]:
        name = node.outputs[0].name or ""
        alone = all(slot.reads[0].nodes[:1] == (node,) for slot in slots)
        if (
            is_identity(node)
            and alone
            and not is_generated_name(name)
            and not node.outputs[0].is_graph_output()
        ):
            return name
    scope = _scope_of(first)
    role = vector_role(first.node) or first.role
    if _is_statistic(first):
        role = learnable_role(first.node, first.index)
    return f"{scope.fqn}.{role}" if scope is not None and scope.fqn else first.name


def _is_statistic(slot: Slot) -> bool:
    return is_statistic(slot.node, slot.index)


def _scope_of(slot: Slot) -> Scope | None:
    for node in (slot.node, *reversed(slot.path)):
        scope = scope_of(node)
        if scope is not None:
            return scope
    return None


def _module_of(slot: Slot, scope: Scope, named: set[str]) -> str:
    """Return the module of a scope, which is not the scope's name at the second call of a module.

    PyTorch's older exporter writes the second call of ``norm`` as ``norm_1``, as it writes the
    first call of a module of that name. That one reads a tensor named after it, through the
    Identity that the exporter leaves in the place of what it merged.
    """
    if scope.cls:
        return scope.fqn
    first = re.sub(r"_\d+$", "", scope.fqn)
    if first == scope.fqn or first not in named:
        return scope.fqn
    nodes = slot.reads[0].nodes
    read = [slot.reads[0].parameter.name, *(out.name or "" for n in nodes[:1] for out in n.outputs)]
    return scope.fqn if any(name.startswith(f"{scope.fqn}.") for name in read) else first
