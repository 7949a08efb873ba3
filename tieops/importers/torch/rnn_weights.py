"""Pack recurrent weights for ONNX: reorder torch's gates and stack the directions.

The W, R and B of an LSTM, GRU or RNN node are each one stored tensor. Where they are computed from
initializers by moving elements around, they are computed here, once, unless that would store an
element of a tied parameter twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.edit import insert_initializer, remove_initializer
from tieops.ir.metadata import keys as names
from tieops.ir.notation import brief
from tieops.ir.operators.predicates import is_concat, is_recurrent, only_moves
from tieops.ir.operators.roles import GATE_ORDERS
from tieops.ir.operators.views import moved_arrays

__all__ = ["pack_rnn_weights", "unpack"]

Array = np.ndarray[Any, Any]

_SLOTS = {"W": 1, "R": 2, "B": 3}

# Who reads a value: a node through any of its inputs (None), or through this one.
_Readers = set[tuple[onnx_ir.Node, int | None]]


# --- the stored form ---------------------------------------------------------------------------


def unpack(array: Array, op: str, slot: str, parts: Sequence[str]) -> dict[str, Array]:
    """Take a packed weight apart into torch's own: the exact inverse of the packing.

    Args:
        array: W or R, (directions, gates * hidden, input or hidden), or B,
            (directions, 2 * gates * hidden).
        op: ``LSTM``, ``GRU`` or ``RNN``.
        slot: ``W``, ``R`` or ``B``.
        parts: The names of the parts in stored order. ``tieops.packed`` holds all three.

    Returns:
        Each part under its name: (gates * hidden, columns), or (gates * hidden,) out of B.

    Raises:
        PreconditionError: The array does not divide into those parts.

    Example:
        >>> packed = np.array([[10, 13, 11, 12, 20, 23, 21, 22]])
        >>> parts = unpack(packed, "LSTM", "B", ["bias_ih", "bias_hh"])
        >>> {name: part.tolist() for name, part in parts.items()}
        {'bias_ih': [10, 11, 12, 13], 'bias_hh': [20, 21, 22, 23]}
    """
    blocks = _blocks(array, op, slot)
    if blocks is None or len(blocks) != len(set(parts)) or len(parts) != len(blocks):
        stored = onnx_ir.DataType.from_numpy(array.dtype)
        raise PreconditionError(
            f"cannot split {op} {slot} into its parts",
            {"stored": brief(stored, array.shape), "parts": ", ".join(parts)},
            "name one part a direction for W and R, two for B, each once",
        )
    return dict(zip(parts, blocks, strict=True))


def _blocks(array: Array, op: str, slot: str) -> list[Array] | None:
    """Return torch's parts in stored order, or None where the shape is not that of the slot."""
    order, halves = GATE_ORDERS.get(op), 2 if slot == "B" else 1
    if order is None or slot not in _SLOTS or array.ndim != (2 if slot == "B" else 3):
        return None
    directions, rows, *columns = array.shape
    hidden, rest = divmod(rows, halves * len(order))
    if rest:
        return None
    gates = array.reshape(directions * halves, len(order), hidden, *columns)
    restored = gates[:, np.argsort(order)]
    return list(restored.reshape(directions * halves, len(order) * hidden, *columns))


# --- one node's slot ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plan:
    """One W, R or B that could be an initializer."""

    node: onnx_ir.Node
    slot: str
    chain: tuple[onnx_ir.Node, ...]  # in the order they run
    sources: tuple[onnx_ir.Value, ...]
    cells: Array  # the numbers of the elements it holds, flat
    repeats: bool  # whether it holds one of them twice
    key: bytes
    parts: tuple[onnx_ir.Value, ...]  # in stored order

    @property
    def value(self) -> onnx_ir.Value:
        value = self.node.inputs[_SLOTS[self.slot]]
        assert value is not None
        return value


class _Numbers:
    """Numbers the elements of all source initializers, so that arrangements can be compared."""

    def __init__(self) -> None:
        self.places: dict[onnx_ir.Value, slice] = {}
        self.total = 0

    def __call__(self, source: onnx_ir.Value) -> Array:
        tensor = source.const_value
        if tensor is None:
            raise NotStaticError(f"{source.name} has no data")
        if source not in self.places:
            self.places[source] = slice(self.total, self.total + tensor.size)
            self.total += tensor.size
        place = self.places[source]
        # One number an element of all recurrent weights: four bytes each while that is enough.
        dtype = np.int32 if place.stop <= np.iinfo(np.int32).max else np.int64
        return np.arange(place.start, place.stop, dtype=dtype).reshape(tensor.shape.numpy())


def _plan(node: onnx_ir.Node, slot: str, root: onnx_ir.Graph, numbers: _Numbers) -> _Plan:
    value = node.inputs[_SLOTS[slot]]
    assert value is not None
    chain = chain_of(value)
    inputs = dict.fromkeys([*(v for step in chain for v in data_inputs(step)), value])
    sources = tuple(v for v in inputs if v.producer() is None)
    for source in sources:
        if not source.is_initializer() or source.is_graph_input():
            raise NotStaticError(f"{source.name} is fed at run time")
        if source.graph is not root:
            raise NotStaticError(f"{source.name} is stored in a subgraph")
    found = evaluate(chain, {source: numbers(source) for source in sources})
    cells = np.ascontiguousarray(found[value])
    blocks = _blocks(cells, node.op_type, slot)
    parts = [_holding(block, found) for block in blocks or ()]
    named = tuple(part for part in parts if part is not None)
    if not named or len(named) < len(parts):
        raise NotStaticError("it is not assembled the way torch's weights are")
    factors = {names.lr_factor_of(source) for source in sources}
    if len(factors) > 1:
        raise NotStaticError("its parts have different learning-rate factors")
    key = hashlib.blake2b(repr(cells.shape).encode() + cells.tobytes()).digest()
    flat = cells.reshape(-1)
    return _Plan(node, slot, chain, sources, flat, _repeats(flat), key, named)


def _repeats(cells: Array) -> bool:
    first = cells.min(initial=np.iinfo(cells.dtype).max)
    is_seen = np.zeros(max(0, int(cells.max(initial=0)) - int(first) + 1), bool)
    is_seen[cells - first] = True
    return bool(np.count_nonzero(is_seen) < cells.size)


def _holding(block: Array, found: dict[onnx_ir.Value, Array]) -> onnx_ir.Value | None:
    # Sources come first in `found`: a part has a chain's inner name only if it is cut out of one.
    for value, cells in found.items():
        if cells.shape == block.shape and np.array_equal(cells, block):
            return value
    return None


# --- the whole model ---------------------------------------------------------------------------


def pack_rnn_weights(model: onnx_ir.Model) -> list[str]:
    """Turn the W, R and B of every LSTM, GRU and RNN node into ready initializers, in place.

    A packed initializer has the name of its first part and says in ``tieops.packed`` what it is
    made of: ``op``, ``slot``, ``parts``, and in ``names`` the further names of each part that has
    some. Nodes that read the same parts in the same arrangement share one. A slot keeps its
    chain where packing would store an element of a parameter twice or lose one: a parameter that
    something else reads too, or that two slots want in different arrangements, or one slot twice.

    Args:
        model: Changed in place; function bodies are left alone, they store nothing.

    Returns:
        One line for each slot that is not an initializer afterwards: which, and why.
    """
    plans: list[_Plan] = []
    left: list[str] = []
    numbers = _Numbers()
    for node in model.graph.all_nodes():
        if not is_recurrent(node):
            continue
        for slot, index in _SLOTS.items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or onnx_ir.convenience.get_const_tensor(value) is not None:
                continue
            try:
                plans.append(_plan(node, slot, model.graph, numbers))
            except NotStaticError as reason:
                left.append(f"{node.op_type} {node.name} {slot}: {reason}")
    # A slot that stays keeps its sources alive, which may make another one stay.
    while refused := _refused(plans, numbers):
        left += [
            f"{plan.node.op_type} {plan.node.name} {plan.slot}: {reason}"
            for plan, reason in refused.items()
        ]
        plans = [plan for plan in plans if plan not in refused]
    _apply(model.graph, plans)
    return left


def _refused(plans: Sequence[_Plan], numbers: _Numbers) -> dict[_Plan, str]:
    """Return the plans that would tear a parameter apart if all were carried out, with why."""
    readers: _Readers = {(node, None) for plan in plans for node in plan.chain}
    readers |= {(plan.node, _SLOTS[plan.slot]) for plan in plans}
    distinct = {plan.key: plan for plan in plans}
    once, twice = np.zeros(numbers.total, bool), np.zeros(numbers.total, bool)
    for plan in distinct.values():
        twice[plan.cells] |= once[plan.cells]
        once[plan.cells] = True
    refused: dict[_Plan, str] = {}
    for plan in plans:
        reason = _other_reader(plan, readers) or _misfit(plan, distinct, once, twice, numbers)
        if reason:
            refused[plan] = reason
    return refused


def _other_reader(plan: _Plan, readers: _Readers) -> str | None:
    for value in (*plan.sources, *(output for node in plan.chain for output in node.outputs)):
        if value.is_graph_output():
            return f"{value.name} is also an output of the graph"
        for node, index in value.uses():
            if (node, None) not in readers and (node, index) not in readers:
                end = _end(node)
                return f"{value.name} is also read by {end.op_type} {end.name}"
    return None


def _end(node: onnx_ir.Node) -> onnx_ir.Node:
    """Follow a reader that only moves elements to the node that does something with them."""
    while only_moves(node):
        uses = next((list(output.uses()) for output in node.outputs if output.uses()), None)
        if uses is None:
            break
        node = uses[0].node
    return node


def _misfit(
    plan: _Plan, distinct: dict[bytes, _Plan], once: Array, twice: Array, numbers: _Numbers
) -> str | None:
    if plan.repeats:
        named = ", ".join(str(source.name) for source in plan.sources)
        return f"it holds elements of {named} more than once"
    for source in plan.sources:
        place = numbers.places[source]
        if not once[place].all():
            return f"nothing reads a part of {source.name}"
        if twice[place].any():
            other = next(
                each
                for each in distinct.values()
                if each.key != plan.key and source in each.sources
            )
            end = f"{other.node.op_type} {other.node.name} {other.slot}"
            return f"{source.name} is arranged in another way for {end}"
    return None


def _apply(graph: onnx_ir.Graph, plans: Sequence[_Plan]) -> None:
    packed: dict[bytes, onnx_ir.Value] = {}
    unread: list[onnx_ir.Value] = []
    for plan in plans:
        if plan.key not in packed:
            packed[plan.key] = _pack(plan)
    for plan in plans:
        unread.append(plan.value)
        plan.node.replace_input_with(_SLOTS[plan.slot], packed[plan.key])
    _remove_unread(unread)
    # Only now are the names free: a packed value takes the one of its first part.
    for value in packed.values():
        insert_initializer(graph, value)


def _pack(plan: _Plan) -> onnx_ir.Value:
    arrays = {s: s.const_value.numpy() for s in plan.sources if s.const_value is not None}
    array = np.ascontiguousarray(evaluate(plan.chain, arrays)[plan.value])
    name = plan.parts[0].name
    tensor = onnx_ir.Tensor(array, plan.sources[0].dtype, name=name)
    value = onnx_ir.Value(
        name=name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    about: dict[str, Any] = {
        "op": plan.node.op_type,
        "slot": plan.slot,
        "parts": [names.names_of(part)[0] for part in plan.parts],
    }
    known = [names.names_of(part) for part in plan.parts]
    aliases = {first: others for first, *others in known if others}
    for source in reversed(plan.sources):
        value.metadata_props.update(source.metadata_props)
    if aliases:
        about["names"] = aliases
        names.set_names(value, [name for each in aliases.values() for name in each])
    value.metadata_props[names.PACKED] = json.dumps(about)
    return value


def _remove_unread(values: list[onnx_ir.Value]) -> None:
    """Remove what computes these values, as far as nothing else needs it."""
    while values:
        value = values.pop()
        if value.uses() or value.is_graph_output():
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input():
                remove_initializer(value)
        elif node.graph is not None and not any(
            output.uses() or output.is_graph_output() for output in node.outputs
        ):
            values += [each for each in node.inputs if each is not None]
            node.graph.remove(node, safe=True)


class NotStaticError(Exception):
    """Says why a value cannot be computed now; never leaves the importer."""


def data_inputs(node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """Return the inputs whose elements a node of a chain moves."""
    inputs = node.inputs if is_concat(node) else node.inputs[:1]
    return tuple(value for value in inputs if value is not None)


def chain_of(value: onnx_ir.Value) -> tuple[onnx_ir.Node, ...]:
    """Return the nodes that compute a value, each after those that it reads."""
    order: dict[onnx_ir.Node, None] = {}
    stack = [(value, False)]
    while stack:
        current, is_ready = stack.pop()
        node = current.producer()
        if node is None or node in order:
            continue
        if is_ready:
            order[node] = None
            continue
        if not only_moves(node):
            raise NotStaticError(f"it is computed by {node.op_type} {node.name}")
        stack.append((current, True))
        stack += [(each, False) for each in reversed(data_inputs(node))]
    return tuple(order)


def evaluate(
    chain: Iterable[onnx_ir.Node], arrays: dict[onnx_ir.Value, Array]
) -> dict[onnx_ir.Value, Array]:
    """Return what a chain makes of arrays, by value; in the chain's order."""
    found = dict(arrays)
    for node in chain:
        moved = moved_arrays(node, [found[value] for value in data_inputs(node)])
        if len(moved) < len(node.outputs):
            raise NotStaticError(f"{node.op_type} {node.name} is not static")
        found.update(moved)
    return found
