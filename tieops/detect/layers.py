"""From arrivals to layers: which nodes together are one layer, what it is called, what it reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from tieops.detect.trace import Arrival, Trace
from tieops.ir.functions.calls import call_title
from tieops.ir.layers import Layer
from tieops.ir.names import is_made_up, origin_of, recorded_names
from tieops.ir.operators.predicates import (
    is_addition,
    is_constant_operator,
    is_gemm,
    is_linear_product,
    is_reshape,
)
from tieops.ir.operators.roles import kind_of, role_of
from tieops.ir.parameter import Parameter, Read, Slot
from tieops.ir.scopes import Scope, all_graphs, layer_name_of, scope_of

__all__ = ["find_layers", "parameters_of"]

Path = tuple[onnx_ir.Node, ...]


@dataclass(eq=False)
class _Unit:
    """One node at one place of the call tree, with what arrives at it."""

    node: onnx_ir.Node
    path: Path
    arrivals: dict[int, list[Arrival]] = field(default_factory=dict)
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
    namer = _Namer(pinned)
    drafts: list[_Draft] = []
    latest: dict[str, _Draft] = {}
    for unit in sorted(units.values(), key=lambda u: _position(order, u.path, u.node)):
        _place(unit, drafts, latest, namer)
    views = {node for each in traced.arrivals.values() for a in each for node in a.nodes}
    taken = {node for draft in drafts for node in draft.nodes} | views
    rest = [node for node in order if _is_plain(node, taken, model)]
    rest = _absorb(rest, drafts, order)
    layers = [draft.layer() for draft in drafts] + [_plain(node, namer) for node in rest]
    # What a function holds comes where it is called, as it does once the call is inlined.
    return tuple(sorted(layers, key=lambda each: _position(order, each.path, each.nodes[0])))


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
    for value, arrivals in traced.arrivals.items():
        for arrival in arrivals:
            if not traced.learnables.is_read_by_layer(arrival, value):
                continue
            unit = units.setdefault((arrival.node, arrival.path), _Unit(arrival.node, arrival.path))
            unit.arrivals.setdefault(arrival.index, []).append(arrival)
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
        if add is None or not is_addition(add.node) or len(add.arrivals) != 1:
            continue
        index, arrivals = next(iter(add.arrivals.items()))
        if index != position and np.prod(arrivals[0].view.shape) == max(
            (*arrivals[0].view.shape, 1)
        ):
            unit.bias = add
            del units[add.node, path]


def _only_reader(node: onnx_ir.Node) -> tuple[onnx_ir.Node | None, int]:
    """Return the one node that reads a node's result, and at which input; None if it is not one."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None, 0
    return uses[0].node, uses[0].idx


@dataclass(eq=False)
class _Draft:
    name: str
    kind: str
    fqn: str | None
    nodes: list[onnx_ir.Node]
    reads: dict[str, tuple[onnx_ir.Node, int, Path, tuple[Read, ...]]]

    def layer(self) -> Layer:
        slots = tuple(
            Slot(self.name, role, node, index, reads, path)
            for role, (node, index, path, reads) in self.reads.items()
        )
        return Layer(self.name, self.kind, tuple(self.nodes), slots)


class _Namer:
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


def _inputs(unit: _Unit) -> Iterator[tuple[onnx_ir.Node, int, list[Arrival], str]]:
    for index, arrivals in sorted(unit.arrivals.items()):
        yield unit.node, index, arrivals, role_of(unit.node, index)
    if unit.bias is not None:
        for index, arrivals in unit.bias.arrivals.items():
            yield unit.bias.node, index, arrivals, "bias"


def _owned_role(scope: Scope | None, names: Sequence[str]) -> str | None:
    """Return the attribute under which the module of ``scope`` holds a parameter of these names."""
    if scope is None or not scope.fqn:
        return None
    for name in names:
        role = name.removeprefix(scope.fqn + ".")
        if role != name and "." not in role:
            return role
    return None


def _place(unit: _Unit, drafts: list[_Draft], latest: dict[str, _Draft], namer: _Namer) -> None:
    """Put a unit into the layer that its module is building, or begin a layer."""
    scope = scope_of(unit.node)
    roles: dict[str, tuple[onnx_ir.Node, int, Path, tuple[Read, ...]]] = {}
    owned = False
    for node, index, arrivals, default in _inputs(unit):
        names = [name for a in arrivals for name in a.parameter.names]
        role = _owned_role(scope, names)
        owned = owned or role is not None
        role = role or default
        while role in roles:
            role = f"{role}_{index}"
        roles[role] = (node, index, unit.path, tuple(_reads(arrivals)))
    nodes = [unit.node, *([unit.bias.node] if unit.bias else [])]
    kind = kind_of(unit.node)
    fqn = scope.fqn if scope is not None and owned else None
    if fqn is not None:
        # Roles that a module reads one after the other (a norm's weight, then its bias) are one
        # call of it; the same role once more is the next call.
        last = latest.get(fqn)
        if last is not None and kind is None:
            # A parametrization reads its tensor twice in one call, by different operators.
            for role in [role for role in roles if role in last.reads]:
                if last.reads[role][0].op_type != unit.node.op_type:
                    roles[f"{role}.{unit.node.op_type.lower()}"] = roles.pop(role)
        if last is not None and not roles.keys() & last.reads.keys():
            last.reads.update(roles)
            last.nodes.extend(nodes)
            if kind is not None:
                last.kind = kind
            return
    fallback = scope.cls if scope is not None and owned and scope.cls else unit.node.op_type
    pinned = _pinned(unit)
    is_pinned = bool(pinned) and fqn in (None, pinned, pinned.rpartition("@")[0])
    name = pinned if is_pinned else fqn or _name_of(unit, scope, kind)
    draft = _Draft(namer.unique(name, pinned), kind or fallback, fqn, nodes, roles)
    drafts.append(draft)
    if fqn is not None:
        latest[fqn] = draft


def _reads(arrivals: Sequence[Arrival]) -> Iterator[Read]:
    for arrival in arrivals:
        yield Read(arrival.parameter, arrival.view, arrival.nodes, arrival.entry)


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
    for arrivals in unit.arrivals.values():
        value = arrivals[0].parameter.value
        # A name that untie had to find is the layer's already: it says nothing about the layer.
        real = recorded_names(value) if origin_of(value) else arrivals[0].parameter.names
        for name in real:
            prefix, dot, _ = name.rpartition(".")
            if dot and kind is not None and not is_made_up(name):
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


def _plain(node: onnx_ir.Node, namer: _Namer) -> Layer:
    scope = scope_of(node)
    name = node.name or f"{node.op_type}_{_first_output(node)}"
    if scope is not None and scope.cls:
        name = f"{scope.fqn}.{scope.fx_name}" if scope.fqn else scope.fx_name
    return Layer(namer.unique(name), node.op_type, (node,), ())


def parameters_of(traced: Trace) -> Mapping[onnx_ir.Value, Parameter]:
    """Return the stored tensors that count as parameters, in the order of the graphs."""
    found: dict[onnx_ir.Value, Parameter] = {}
    for value, arrivals in traced.arrivals.items():
        parameter = arrivals[0].parameter if arrivals else Parameter(value)
        if traced.learnables.is_kept(value):
            found[value] = parameter
    return found
