"""Group nodes into layers: the nodes, the name and the slots of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir

from tieops.analysis.trace import Trace, Use
from tieops.ir.functions.calls import call_title
from tieops.ir.layer import Layer
from tieops.ir.metadata.keys import is_generated_name, origin_of, recorded_names
from tieops.ir.operators.identity import operator_name
from tieops.ir.operators.predicates import (
    is_addition,
    is_constant_operator,
    is_gemm,
    is_linear_product,
    is_reshape,
)
from tieops.ir.operators.roles import kind_of, role_of
from tieops.ir.parameter import Parameter, Read, Slot
from tieops.ir.readers.module_calls import ModuleCalls
from tieops.ir.readers.readers import owned_role
from tieops.ir.walk import Scope, all_graphs, layer_name_of, scope_of

__all__ = ["find_layers", "parameters_of"]

Path = tuple[onnx_ir.Node, ...]
_Call = tuple[str, int | None, Path]
"""A module, the number of its call where that is known, and the function calls it lies in."""


@dataclass(eq=False)
class _Unit:
    """One node at one place of the call tree, with what arrives at it."""

    node: onnx_ir.Node
    path: Path
    uses: dict[int, list[Use]] = field(default_factory=dict)
    bias: _Unit | None = None
    """The Add that gives this MatMul its bias."""


def find_layers(model: onnx_ir.Model, traced: Trace) -> tuple[Layer, ...]:
    """Return the model's layers in the order of its graphs: learnable ones and plain operators.

    Args:
        model: The model.
        traced: What ``trace`` found in it.

    Returns:
        Layers with stable, unique names. Nodes that only move parameters belong to no layer.
    """
    units = _units(traced)
    _fuse_biases(units)
    order = _order(model)
    pinned = {name for unit in units.values() if (name := _pinned(unit))}
    namer = _LayerNames(pinned)
    drafts: list[_Draft] = []
    latest: dict[_Call, _Draft] = {}
    calls = ModuleCalls(model)
    for unit in sorted(units.values(), key=lambda u: _position(order, u.path, u.node)):
        _place(unit, calls.of(unit.node), drafts, latest, namer)
    uses = [a for each in traced.uses.values() for a in each]
    _give_computations(uses, drafts, order)
    computed = {node for a in uses for node in a.view.computed}
    views = {node for a in uses for node in a.nodes if node not in computed}
    taken = {node for draft in drafts for node in draft.nodes} | views
    rest = [node for node in order if _is_plain(node, taken, model)]
    rest = _absorb(rest, drafts, order)
    layers = [draft.layer() for draft in drafts] + [_plain(node, namer) for node in rest]
    # What a function holds comes where it is called, as it does once the call is inlined.
    # What computes a weight may stand anywhere before: it says nothing about the place.
    first = {
        each: next((n for n in each.nodes if n not in computed), each.nodes[0]) for each in layers
    }
    return tuple(sorted(layers, key=lambda each: _position(order, each.path, first[each])))


def _give_computations(
    uses: Sequence[Use], drafts: Sequence[_Draft], order: Mapping[onnx_ir.Node, int]
) -> None:
    """Give the nodes that compute a weight to the layer that uses it, or the first of several."""
    homes = {node: draft for draft in drafts for node in draft.nodes}
    for use in sorted(uses, key=lambda a: order.get(a.node, 0)):
        home = homes.get(use.node)
        for node in use.view.computed:
            if home is not None and node not in homes and node in order:
                homes[node] = home
                home.nodes.append(node)


def _absorb(
    nodes: Sequence[onnx_ir.Node], drafts: Sequence[_Draft], order: Mapping[onnx_ir.Node, int]
) -> list[onnx_ir.Node]:
    """Give the other nodes of a module's call to its layer; return those that belong to none.

    A norm that was written out as arithmetic is one layer, not the two nodes that read parameters.
    """
    calls: dict[str, list[_Draft]] = {}
    for draft in drafts:
        if draft.fqn is not None:
            calls.setdefault(draft.fqn, []).append(draft)
    ends = {draft: max(order[node] for node in draft.nodes) for draft in drafts}
    left: list[onnx_ir.Node] = []
    for node in nodes:
        scope = scope_of(node) if calls else None
        mine = calls.get(scope.fqn, []) if scope is not None else []
        if not mine:
            left.append(node)
            continue
        # Calls come one after the other: a node belongs to the first that ends after it.
        home = next((draft for draft in mine if order[node] <= ends[draft]), mine[-1])
        home.nodes.append(node)
    for draft in drafts:
        draft.nodes.sort(key=lambda node: order[node])
    return left


def _position(order: Mapping[onnx_ir.Node, int], path: Path, node: onnx_ir.Node) -> tuple[int, ...]:
    return tuple(order.get(each, 0) for each in (*path, node))


def _order(model: onnx_ir.Model) -> dict[onnx_ir.Node, int]:
    nodes = (node for graph in all_graphs(model) for node in graph)
    return {node: position for position, node in enumerate(nodes)}


def _units(traced: Trace) -> dict[tuple[onnx_ir.Node, Path], _Unit]:
    units: dict[tuple[onnx_ir.Node, Path], _Unit] = {}
    for value, uses in traced.uses.items():
        for use in uses:
            if not traced.learnables.is_read_by_layer(use, value):
                continue
            unit = units.setdefault((use.node, use.path), _Unit(use.node, use.path))
            unit.uses.setdefault(use.index, []).append(use)
    return units


def _fuse_biases(units: dict[tuple[onnx_ir.Node, Path], _Unit]) -> None:
    """Give each product the Add of a stored vector that follows it and nothing else reads."""
    for (node, path), unit in list(units.items()):
        if not is_linear_product(node):
            continue
        follower, position = _only_reader(node)
        if follower is not None and is_gemm(node) and is_reshape(follower):
            # The rows of a Gemm are put back into their leading axes.
            follower, position = _only_reader(follower)
        add = units.get((follower, path)) if follower is not None else None
        if add is None or not is_addition(add.node) or len(add.uses) != 1:
            continue
        if _pinned(add) not in ("", _pinned(unit)):
            continue  # it was a layer by itself before its call was inlined
        index, uses = next(iter(add.uses.items()))
        if index != position and np.prod(uses[0].view.shape) == max((*uses[0].view.shape, 1)):
            unit.bias = add
            del units[add.node, path]


def _only_reader(node: onnx_ir.Node) -> tuple[onnx_ir.Node | None, int]:
    """Return the one node that reads a node's result, and at which input; None if it is not one."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None, 0
    return uses[0].node, uses[0].idx


@dataclass(frozen=True, eq=False)
class _Input:
    """An input of a node that a layer reads a learnable through."""

    node: onnx_ir.Node
    index: int
    path: Path
    reads: tuple[Read, ...]
    first_role: str = ""


@dataclass(eq=False)
class _Draft:
    name: str
    kind: str
    fqn: str | None
    nodes: list[onnx_ir.Node]
    reads: dict[str, _Input]

    def layer(self) -> Layer:
        slots = tuple(
            Slot(self.name, role, at.node, at.index, at.reads, at.path, at.first_role)
            for role, at in self.reads.items()
        )
        return Layer(self.name, self.kind, tuple(self.nodes), slots)


def _inputs(unit: _Unit) -> Iterator[tuple[onnx_ir.Node, int, list[Use], str]]:
    for index, uses in sorted(unit.uses.items()):
        role = role_of(unit.node, index)
        for each in _by_slot(uses):
            yield unit.node, index, each, role
    if unit.bias is not None:
        for index, uses in unit.bias.uses.items():
            for each in _by_slot(uses):
                yield unit.bias.node, index, each, "bias"


def _by_slot(uses: list[Use]) -> Iterator[list[Use]]:
    """Split what arrives at an input: one slot for parts joined, one a tensor for a computation."""
    if not any(a.view.computed for a in uses):
        yield uses
        return
    found: dict[onnx_ir.Value, list[Use]] = {}
    for use in uses:
        found.setdefault(use.parameter.value, []).append(use)
    yield from sorted(found.values(), key=lambda each: -each[0].parameter.elements)


def _place(
    unit: _Unit,
    call: int | None,
    drafts: list[_Draft],
    latest: dict[_Call, _Draft],
    namer: _LayerNames,
) -> None:
    """Put a unit into the layer that its module is building, or begin a layer."""
    scope = scope_of(unit.node)
    roles, owned = _roles(unit)
    nodes = [unit.node, *([unit.bias.node] if unit.bias else [])]
    kind = kind_of(unit.node)
    fqn = scope.fqn if scope is not None and (owned or _is_torch_layer(scope, kind)) else None
    fqn = fqn or None
    builder = fqn
    if fqn is None and kind is None and scope is not None and (scope.fqn or call is not None):
        builder = f"{scope.fqn}."  # which reads another module's tensor
    # A body that is called again is another call, whichever number it has within the body.
    path = () if call is None else unit.path
    home = None if builder is None else latest.get((builder, call, path))
    if home is not None:
        in_call = call is not None
        roles, goes_on = _continued(unit, home, roles, owns=fqn is not None, in_call=in_call)
        home = home if goes_on else None
    if home is not None:
        home.reads.update(roles)
        home.nodes.extend(nodes)
        if kind is not None:
            home.kind = kind
    else:
        owner = scope.cls if scope is not None and owned else ""
        pinned = _pinned(unit)
        is_pinned = bool(pinned) and fqn in (None, pinned, pinned.rpartition("@")[0])
        name = pinned if is_pinned else fqn or _name_of(unit, scope, kind)
        home = _Draft(
            namer.unique(name, pinned), kind or owner or operator_name(unit.node), fqn, nodes, roles
        )
        drafts.append(home)
    if builder is not None:
        latest[builder, call, path] = home


def _roles(unit: _Unit) -> tuple[dict[str, _Input], bool]:
    """Return what a unit reads by role, and whether any of it is its module's own."""
    roles: dict[str, _Input] = {}
    owned = False
    for node, index, uses, default in _inputs(unit):
        names = [name for a in uses for name in a.parameter.names]
        computed = any(a.view.computed for a in uses)
        role = owned_role(node, index, names, inner=computed)
        owned = owned or role is not None
        role = role or default
        while role in roles:
            role = f"{role}_{index}"
        roles[role] = _Input(node, index, unit.path, tuple(_reads(uses)))
    return roles, owned


def _continued(
    unit: _Unit, last: _Draft, roles: dict[str, _Input], *, owns: bool, in_call: bool
) -> tuple[dict[str, _Input], bool]:
    """Return the roles of a unit after its module's last layer, and whether it continues that.

    Roles that a module reads one after the other (a norm's weight, then its bias) are one call of
    it; the same role once more is the next call.

    Args:
        unit: The unit.
        last: The layer that its module built last, in the same call of the module.
        roles: What the unit reads.
        owns: Whether that is the module's own; else it is another module's tensor.
        in_call: Whether it is known which call of the module it is.
    """
    if owns:
        if kind_of(unit.node) is None:
            # A parametrization reads its tensor twice in one call, by different operators.
            roles = _again(roles, last, unit.node, within=in_call)
        return roles, not roles.keys() & last.reads.keys()
    if not all(_same_tensors(at, last) for at in roles.values()):
        return roles, False
    # The older exporter has a name of its own for each call.
    again = _again(roles, last, unit.node, within=in_call)
    is_next = not again.keys() & last.reads.keys()
    return (again if is_next else roles), is_next


def _is_torch_layer(scope: Scope, kind: str | None) -> bool:
    return scope.is_torch and kind is not None and scope.cls.startswith(kind)


def _again(
    roles: dict[str, _Input], home: _Draft, node: onnx_ir.Node, *, within: bool
) -> dict[str, _Input]:
    """Rename the roles under which a layer has read the same before, in the same call.

    Args:
        roles: What is read now.
        home: The layer.
        node: Who reads.
        within: Whether it is known to be the same call. If it is not, reading by the same operator
            once more is taken for the next call.
    """
    found: dict[str, _Input] = {}
    for role, at in roles.items():
        first = role if role in home.reads else (_same_tensors(at, home) if within else "")
        before = home.reads.get(first)
        if before is None or (not within and operator_name(before.node) == operator_name(node)):
            found[role] = at
            continue
        again = f"{role}.{node.op_type.lower()}"
        while again in home.reads or again in found:
            again += "_again"
        found[again] = replace(at, first_role=before.first_role or first)
    return found


def _same_tensors(at: _Input, home: _Draft) -> str:
    """Return the role under which a layer reads the same tensors already; else nothing."""
    mine = {read.parameter.value for read in at.reads}
    same = (r for r, each in home.reads.items() if {x.parameter.value for x in each.reads} == mine)
    return next(same, "")


def _reads(uses: Sequence[Use]) -> Iterator[Read]:
    for use in uses:
        yield Read(use.parameter, use.view, use.nodes, use.entry)


def _name_of(unit: _Unit, scope: Scope | None, kind: str | None) -> str:
    """Return a name for a layer whose module does not hold its parameters under its own name."""
    call = f"{call_title(unit.path[-1])}/" if unit.path else ""
    if scope is not None and scope.fqn:
        # The older exporter loses a transposed copy's name and keeps the module's; with module
        # classes at hand, a module that reads a weight of another one gets a name beside its own.
        beside = scope.cls != "" or kind is None
        return call + (f"{scope.fqn}.{scope.fx_name}" if beside else scope.fqn)
    if scope is not None and scope.cls:
        return call + scope.fx_name
    for uses in unit.uses.values():
        value = uses[0].parameter.value
        # A name that untie had to find is the layer's already: it says nothing about the layer.
        real = recorded_names(value) if origin_of(value) else uses[0].parameter.names
        for name in real:
            prefix, dot, _ = name.rpartition(".")
            if dot and kind is not None and not is_generated_name(name):
                return call + prefix
    return call + (unit.node.name or f"{unit.node.op_type}_{_first_output(unit.node)}")


def _pinned(unit: _Unit) -> str:
    """Return what the unit's layer was called before its call was inlined, if it was."""
    return "" if unit.path else layer_name_of(unit.node)


def _first_output(node: onnx_ir.Node) -> str:
    return next((value.name or "" for value in node.outputs), "")


def _is_plain(node: onnx_ir.Node, taken: set[onnx_ir.Node], model: onnx_ir.Model) -> bool:
    if node in taken or is_constant_operator(node):
        return False
    return node.op_identifier() not in model.functions


def _plain(node: onnx_ir.Node, namer: _LayerNames) -> Layer:
    scope = scope_of(node)
    name = node.name or f"{node.op_type}_{_first_output(node)}"
    if scope is not None and scope.cls:
        name = f"{scope.fqn}.{scope.fx_name}" if scope.fqn else scope.fx_name
    return Layer(namer.unique(name), operator_name(node), (node,), ())


def parameters_of(traced: Trace) -> Mapping[onnx_ir.Value, Parameter]:
    """Return the stored tensors that count as parameters, in the order of the graphs."""
    found: dict[onnx_ir.Value, Parameter] = {}
    for value, uses in traced.uses.items():
        parameter = uses[0].parameter if uses else Parameter(value)
        if traced.learnables.is_kept(value):
            found[value] = parameter
    return found


class _LayerNames:
    """Hands out names: a module's FQN, then "fqn@1", "fqn@2" for its further calls."""

    def __init__(self, pinned: Collection[str]) -> None:
        self._used: set[str] = set()
        self._pinned = pinned
        self._next: dict[str, int] = {}

    def unique(self, name: str, pinned: str = "") -> str:
        """Return a name that no other layer has, or is going to have by a record in the file."""
        if name not in self._used and (name == pinned or name not in self._pinned):
            self._used.add(name)
            return name
        while True:
            count = self._next.get(name, 0) + 1
            self._next[name] = count
            candidate = f"{name}@{count}"
            if candidate not in self._used and candidate not in self._pinned:
                self._used.add(candidate)
                return candidate
