"""Detach a reader from a tie: give it its own tensor, and the nodes that lead to it.

Moves at the beginning of a view (transposes, slices) are applied to the values. Later steps (a
reshape, a cast, a dequantization, a concat) are copied node by node, so that tying the tensors
again restores the original graph.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
import onnx_ir

from tieops.ir.edit import NameAuthority, add_initializer, copy_nodes, rename_initializer
from tieops.ir.learnables.accidental import title_of
from tieops.ir.metadata.keys import (
    PACKED,
    aliases_of,
    forget_evidence,
    keep_packed_names,
    lr_factor_of,
    origin_of,
    recorded_names,
    set_axes,
    set_computed_with,
    set_lr_factor,
    set_names,
    set_origin,
)
from tieops.ir.metadata.torch_kinds import copy_kind, has_generated_name, narrow_kind
from tieops.ir.notation import brief_bytes
from tieops.ir.operators.predicates import is_cut, is_identity, is_permutation, is_view, only_moves
from tieops.ir.operators.views import ViewTransfer
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.readers.forms import form_of, keep_forms, set_forms
from tieops.ir.readers.readers import Reader, Readers
from tieops.ir.slices import record_slice
from tieops.ir.view import Shape, View, relative
from tieops.passes.base import Change

__all__ = ["Untier", "give_up_names", "handle_of", "handles_of"]

Array: TypeAlias = np.ndarray[Any, Any]


def handle_of(slot: Slot) -> object:
    """Return what has to be changed to give a slot another weight.

    Slots that are reached through one input of one function call have one handle.
    """
    entry = slot.reads[0].entry
    if entry is not None:
        return slot.path[0], entry.index
    return slot.path, slot.node, slot.index


def handles_of(slot: Slot, model: onnx_ir.Model) -> set[object]:
    """Return the handles that a slot reads through: its own, and of calls that return it."""
    entry = slot.reads[0].entry
    node, index = (slot.node, slot.index) if entry is None else (slot.path[0], entry.index)
    found: set[object] = {handle_of(slot)}
    value = node.inputs[index]
    while value is not None and (producer := value.producer()) is not None:
        place = 0
        if producer.op_identifier() in model.functions:
            returned = _returned(producer, value, model)
            if returned is None:
                break
            place = returned
            found.add((producer, place))
        elif not is_view(producer):
            break
        value = producer.inputs[place]
    return found


def _returned(call: onnx_ir.Node, output: onnx_ir.Value, model: onnx_ir.Model) -> int | None:
    """Return which input of a call an output of it is, or views; None if it is neither."""
    function = model.functions[call.op_identifier()]
    value: onnx_ir.Value | None = function.outputs[call.outputs.index(output)]
    while value is not None and (producer := value.producer()) is not None:
        place: int | None = 0 if is_view(producer) else None
        if producer.op_identifier() in model.functions:
            place = _returned(producer, value, model)
        if place is None:
            return None
        value = producer.inputs[place]
    place = function.inputs.index(value) if value in function.inputs else None
    return place if place is not None and place < len(call.inputs) else None


def _cutting(nodes: Sequence[onnx_ir.Node]) -> int:
    """Return how many nodes at the beginning of a chain cut something off, with those before."""
    moves = takewhile(lambda node: is_view(node) and only_moves(node), nodes)
    return max((at for at, node in enumerate(moves, 1) if is_cut(node)), default=0)


def _moving(nodes: Sequence[onnx_ir.Node]) -> int:
    """Return how many nodes at the beginning of a chain are applied to the values.

    All up to the last that cuts something off, which is not stored then; and who permutes axes. A
    reshape alone is copied as a node: whoever joins the tensors again finds them by their shape.
    """
    count = _cutting(nodes)
    return count + sum(1 for _ in takewhile(is_permutation, nodes[count:]))


def _is_whole(slot: Slot) -> bool:
    """Return whether a slot reads in several ways, so that it takes all of the tensor along."""
    return slot.is_joined and not (slot.is_computed and len(slot.reads) == 1)


def _groups(
    readers: Readers, slots: Sequence[Slot], *, together: bool, by_name: bool
) -> list[list[Reader]]:
    """Return the readers that leave, those in one list that get one tensor."""
    leaving = set(slots)
    groups: dict[object, list[Reader]] = {}
    homes: dict[object, object] = {}
    for reader in readers.all:
        if not leaving & set(reader.slots):
            continue
        # What is reached through one input of a call cannot be told apart; see handle_of.
        marks: list[object] = [handle_of(slot) for slot in reader.slots if slot in leaving]
        marks += [reader.names] if by_name and reader.names else []
        marks += ["together"] if together else []
        found = list(dict.fromkeys(homes[mark] for mark in marks if mark in homes))
        home = found[0] if found else reader
        for other in found[1:]:
            groups[home] += groups.pop(other)
            homes.update({mark: home for mark, at in homes.items() if at is other})
        groups.setdefault(home, []).append(reader)
        homes.update(dict.fromkeys(marks, home))
    return list(groups.values())


def _title(reader: Reader, held: Container[str]) -> str:
    return reader.slots[0].name if reader.title in held else reader.title


def give_up_names(
    parameter: Parameter,
    readers: Readers,
    gone: Sequence[str],
    staying: Sequence[Reader],
    names: NameAuthority,
) -> None:
    """Take names off a tensor whose readers leave, and store it under another one if it had one.

    Args:
        parameter: The tensor.
        readers: All of its readers.
        gone: The names that leave.
        staying: The readers that keep it.
        names: Where a new name is taken from.
    """
    value, known = parameter.value, aliases_of(parameter.value)
    kept = [name for name in known if name not in gone]
    packed = [name for reader in staying for name in reader.names]
    if PACKED in value.metadata_props:
        keep_packed_names(value, set(packed))
    else:
        set_names(value, kept)
        keep_forms(value, kept)
    if len(kept) <= 1:
        forget_evidence(value)
    if parameter.name not in gone or not staying:
        return
    wanted = [*packed, *(kept if PACKED not in value.metadata_props else ()), staying[0].title]
    new = next((name for name in wanted if name not in gone), staying[0].slots[0].name)
    if value.is_graph_input() or value.is_graph_output():
        return
    if value.is_initializer():
        rename_initializer(value, new, names)
    else:
        names.release(parameter.name)
        value.name = names.claim(new)
    if PACKED not in value.metadata_props:
        set_names(value, [name for name in kept if name != new] if new not in kept else kept)


class Untier:
    """Gives slots tensors of their own, in place.

    Args:
        model: The graph.
        names: Where new values and nodes get their names.
    """

    def __init__(self, model: onnx_ir.Model, names: NameAuthority) -> None:
        self._model = model
        self._names = names
        self._copies: dict[onnx_ir.Node, onnx_ir.Node] = {}
        self._bodies = {
            node for function in model.functions.values() for node in function.all_nodes()
        }

    def detach(
        self,
        parameter: Parameter,
        readers: Readers,
        slots: Sequence[Slot],
        *,
        together: bool,
        by_name: bool = False,
        remember: bool = True,
    ) -> list[Change]:
        """Give each reader what it reads of a parameter as a tensor of its own, with its names.

        Args:
            parameter: What the slots share with another reader, which keeps it.
            readers: All readers of the parameter.
            slots: The slots that leave; all those of a reader.
            together: One new tensor for all of them.
            by_name: One new tensor for readers of one name, which are calls of one module.
            remember: Record that they were one, so that ``tie`` joins them again unasked.
        """
        origin = origin_of(parameter.value) or parameter.name
        if remember:
            set_origin(parameter.value, origin)
        is_computed = any(slot.is_computed for reader in readers.all for slot in reader.slots)
        if is_computed:
            set_computed_with(parameter.value)
        leaving = set(slots)
        staying = [reader for reader in readers.all if not leaving.issuperset(reader.slots)]
        groups = _groups(readers, slots, together=together, by_name=by_name)
        held = {name for reader in staying for name in reader.names}
        packing = parameter.value.metadata_props.get(PACKED)
        owned = [[n for r in group for n in r.names if n not in held] for group in groups]
        forms = [
            form_of(parameter.value, mine[0]) if mine and packing is None else None
            for mine in owned
        ]
        give_up_names(parameter, readers, [n for mine in owned for n in mine], staying, self._names)
        changes: list[Change] = []
        for group, mine, form in zip(groups, owned, forms, strict=True):
            members = [slot for reader in group for slot in reader.slots if slot in leaving]
            handles: dict[object, Slot] = {}
            for slot in members:
                handles.setdefault(handle_of(slot), slot)
            title = mine[0] if mine else _title(group[0], held)
            if not remember:
                title = self._freed_title(members)
            value = self._own(parameter, list(handles.values()), title, form)
            if remember:
                set_origin(value, origin)
            copy_kind(value, parameter.value)
            narrow_kind(value, mine)
            set_names(value, dict.fromkeys(mine))
            if is_computed:
                set_computed_with(value)
            if packing is not None and Parameter(value).shape == parameter.shape:
                value.metadata_props[PACKED] = packing
                keep_packed_names(value, set(mine))
            if (factor := lr_factor_of(parameter.value)) != 1.0:
                set_lr_factor(value, factor)
            stored = Parameter(value)
            owner = ", ".join(slot.name for slot in members)
            changes.append(Change(owner, f"owns {stored}, {brief_bytes(stored.nbytes)}"))
        narrow_kind(parameter.value, aliases_of(parameter.value))
        return changes

    def name_copies(self) -> None:
        """Call copies of nodes as their originals were called, where these are gone."""
        for node, copy in self._copies.items():
            if node.graph is not None or copy.graph is None:
                continue
            copy.name = node.name
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.name = old.name

    def _freed_title(self, slots: Sequence[Slot]) -> str:
        """Return what a module calls its own parameter; the Identity that has the name gives it up.

        An exporter leaves an Identity in the place of what it merged, which goes with its readers.
        """
        title = title_of(slots)
        begin = next((node for node in slots[0].reads[0].nodes[:1] if is_identity(node)), None)
        if begin is not None and begin.outputs[0].name == title:
            self._names.release(title)
            begin.outputs[0].name = self._names.take(f"{title}_merged")
        return title

    def name_module(self, parameter: Parameter, slots: Sequence[Slot]) -> None:
        """Call what a module keeps as the module does, where its name was the exporter's."""
        value, graph = parameter.value, parameter.value.graph
        if not has_generated_name(value, parameter.name) or not isinstance(graph, onnx_ir.Graph):
            return
        if not value.is_initializer() or value.is_graph_input():
            return
        set_names(value, [name for name in recorded_names(value) if name != value.name])
        rename_initializer(value, title_of(slots), self._names)

    def _own(
        self, parameter: Parameter, slots: Sequence[Slot], name: str, form: View | None
    ) -> onnx_ir.Value:
        """Store what the slots read, each with a handle of its own, once; make them read it.

        Args:
            parameter: What they read.
            slots: The slots.
            name: What the new tensor is called.
            form: What of the parameter a name stands for that the slots take along, if they do:
                what is stored under it has all of that, whatever part of it they read.
        """
        whole = View(parameter.shape)
        prefixes = [self._prefix(parameter, slot, form) for slot in slots]
        moves, _ = prefixes[0]
        if any(other != moves for other, _ in prefixes):
            # Readers through different views: the whole tensor, each with all of its view.
            moves, prefixes = whole, [(whole, 0)] * len(slots)
        title = self._names.claim(name)
        value = add_initializer(self._model, title, moves.apply(parameter.numpy()))
        if form is None or form.permutation is not None:
            natural = whole.permutation if form is None else form.permutation
            assert natural is not None
            if moves.permutation is not None and moves.permutation != natural:
                set_axes(value, relative(natural, moves.permutation))
        elif moves != form:
            set_forms(value, {title: form})
        if moves.permutation is None:
            self._record_cut(value, parameter, slots[0], *prefixes[0])
        for slot, (_, skipped) in zip(slots, prefixes, strict=True):
            self._attach(parameter, slot, value, skipped)
        return value

    def _record_cut(
        self, value: onnx_ir.Value, parameter: Parameter, slot: Slot, moves: View, count: int
    ) -> None:
        """Record which nodes cut out what a slot took along, so that it can be put back."""
        entry = slot.reads[0].entry
        nodes = slot.reads[0].nodes if entry is None else entry.nodes
        reader, index = (slot.node, slot.index) if entry is None else (slot.path[0], entry.index)
        cut = self._followed(nodes[:count], nodes[count:], reader, index)
        record_slice(value, parameter.value, nodes[:count], cut, moves)

    def _prefix(self, parameter: Parameter, slot: Slot, form: View | None) -> tuple[View, int]:
        """Return the moves to apply to the values, and how many of the view's nodes they are."""
        read = slot.reads[0]
        nodes = read.nodes if read.entry is None else read.entry.nodes
        view = read.view if read.entry is None else read.entry.view
        if any(node in self._bodies for node in nodes):
            return view, len(nodes)  # through a function that returns it: nothing to copy
        if _is_whole(slot) and read.entry is None:
            return View(parameter.shape), 0
        moving = nodes[: len(nodes) - len(view.computed)]
        reader = slot.node if read.entry is None else slot.path[0]
        if form is None:
            count = _moving(moving)
        elif form.permutation is not None:
            count = sum(1 for _ in takewhile(is_permutation, moving))
        else:
            views = (self._view_of(view.source, nodes, at, reader) for at in range(len(moving) + 1))
            count = next((at for at, each in enumerate(views) if each == form), 0)
        return self._view_of(view.source, nodes, count, reader), count

    @staticmethod
    def _view_of(
        source: Shape, nodes: Sequence[onnx_ir.Node], count: int, reader: onnx_ir.Node
    ) -> View:
        """Return the view that the first nodes of a chain are."""
        view, transfer = View(source), ViewTransfer()
        for node, following in zip(nodes[:count], [*nodes[1:], reader], strict=False):
            onward = transfer.through(node, 0, view) or []
            view = next((seen for value, seen in onward if value in following.inputs), view)
        return view

    def _attach(self, parameter: Parameter, slot: Slot, value: onnx_ir.Value, skipped: int) -> None:
        """Make a slot read a new value through copies of the nodes of its view after the first."""
        entry = slot.reads[0].entry
        node, index = (slot.node, slot.index) if entry is None else (slot.path[0], entry.index)
        nodes = slot.reads[0].nodes if entry is None else entry.nodes
        chains = [nodes[skipped:]]
        root = parameter.value
        if _is_whole(slot) and entry is None:
            chains = [read.nodes for read in slot.reads if read.parameter.value is root]
        elif skipped:
            root = self._followed(nodes[:skipped], nodes[skipped:], node, index)
        replaced = copy_nodes(self._model, chains, {root: value}, self._names)
        for each in dict.fromkeys(each for chain in chains for each in chain):
            copy = replaced[each.outputs[0]].producer()
            assert copy is not None
            self._copies.setdefault(each, copy)
        old = node.inputs[index]
        assert old is not None
        node.replace_input_with(index, replaced.get(old, value))

    @staticmethod
    def _followed(
        before: Sequence[onnx_ir.Node],
        after: Sequence[onnx_ir.Node],
        node: onnx_ir.Node,
        index: int,
    ) -> onnx_ir.Value:
        """Return the value that the skipped nodes compute and the rest of the view goes on from."""
        reads = after[0].inputs if after else [node.inputs[index]]
        return next((v for v in before[-1].outputs if v in reads), before[-1].outputs[0])
