"""Putting slices back: tensors that were cut out of another one, and still equal what was cut.

``untie`` gives a slot that reads a slice just that slice, and records how it was cut
(`tieops.ir.slices`). Here the record is followed the other way: the slice's readers read the whole
again, through the same nodes. Where the whole is gone it is put together from its slices.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from tieops.analysis.duplicates.bit_equality import bit_equal
from tieops.ir.edit import NameAuthority, add_initializer, drop_unread, move_to_main_graph
from tieops.ir.evidence import Evidence
from tieops.ir.functions.calls import function_graphs
from tieops.ir.metadata.keys import add_names, origin_of, recorded_names, set_evidence, set_origin
from tieops.ir.metadata.torch_kinds import copy_kind, join_kinds
from tieops.ir.notation import brief_bytes
from tieops.ir.operators.identity import opset_version
from tieops.ir.operators.operands import known_ints
from tieops.ir.operators.predicates import is_constant_operator
from tieops.ir.operators.views import ViewTransfer
from tieops.ir.readers.forms import after, form_of, set_forms
from tieops.ir.slices import PROVENANCE, provenance_of
from tieops.ir.view import View
from tieops.ir.walk import stored_values
from tieops.passes.base import Change, Skip

__all__ = ["RecordedSlice", "recorded_slices", "retie_slices"]


@dataclass(frozen=True, eq=False)
class _Retied:
    """What was put back.

    Args:
        wholes: The tensors that have readers again.
        changes: What was done.
        skips: What could not be put back, and why.
    """

    wholes: tuple[onnx_ir.Value, ...]
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


@dataclass(frozen=True, eq=False)
class RecordedSlice:
    """A tensor that was cut out of another one.

    Args:
        value: The tensor.
        cut: The nodes that cut it, as they were recorded.
        view: What they do.
    """

    value: onnx_ir.Value
    cut: onnx_ir.Graph
    view: View

    @property
    def values(self) -> np.ndarray:
        """What it holds."""
        assert self.value.const_value is not None
        return self.value.const_value.numpy()

    def is_part_of(self, whole: onnx_ir.Value) -> bool:
        """Return whether it still equals, bit for bit, what would be cut out of a tensor."""
        tensor = whole.const_value
        assert tensor is not None
        return bit_equal(self.view.apply(tensor.numpy()), self.values)


def retie_slices(
    model: onnx_ir.Model, slices: Mapping[str, Sequence[RecordedSlice]], names: NameAuthority
) -> _Retied:
    """Make the readers of slices read what these were cut out of, in place.

    Args:
        model: The graph.
        slices: Its recorded slices.
        names: Where new values and nodes get their names.
    """
    changes: list[Change] = []
    skips: list[Skip] = []
    wholes: list[onnx_ir.Value] = []
    in_functions = function_graphs(model)
    stored: dict[str, list[onnx_ir.Value]] = {}
    for value in stored_values(model):
        if value.graph not in in_functions:
            stored.setdefault(origin_of(value), []).append(value)
    for origin, parts in slices.items():
        mine = [value for value in stored.get(origin, ()) if PROVENANCE not in value.metadata_props]
        copies: Counter[object] = Counter()
        if not any(_is_whole(value, parts[0]) for value in mine):
            mine += _assembled(model, origin, parts, names)
        for part in parts:
            name = part.value.name or ""
            known = [value for value in mine if _is_whole(value, part)]
            # A transposed copy that was untied too may have the same shape: the bytes decide.
            whole = next((value for value in known if part.is_part_of(value)), None)
            if whole is None:
                copies = copies or Counter(_digest(each) for each in parts)
                skips.append(Skip(name, _why_apart(part, origin, copies, known)))
                continue
            if whole.graph is not model.graph or whole.producer() is not None:
                mine.remove(whole)
                whole = move_to_main_graph(model, whole, names)
                mine.append(whole)
            _read_again(model, whole, part, names)
            text = f"reads {whole.name} ({part.view}), {brief_bytes(part.values.nbytes)} less"
            changes.append(Change(name, f"{text} stored"))
            wholes.append(whole)
    return _Retied(tuple(dict.fromkeys(wholes)), tuple(changes), tuple(skips))


def recorded_slices(model: onnx_ir.Model) -> dict[str, list[RecordedSlice]]:
    """Return the slices there are, by the name of what they were cut out of."""
    found: dict[str, list[RecordedSlice]] = {}
    for value in model.graph.initializers.values():
        cut = provenance_of(value, opset_version(model.opset_imports))
        if cut is None or value.is_graph_output() or value.is_graph_input():
            continue
        view = _view_of(cut)
        tensor = value.const_value
        if view is None or tensor is None or tuple(tensor.shape.numpy()) != view.shape:
            continue
        if tensor.dtype == cut.inputs[0].dtype:
            found.setdefault(origin_of(value), []).append(RecordedSlice(value, cut, view))
    found.pop("", None)
    return found


def _view_of(cut: onnx_ir.Graph) -> View | None:
    """Return the view that recorded nodes are; None if they do more than move elements."""
    shape = cut.inputs[0].shape
    assert shape is not None
    value, view = cut.inputs[0], View(tuple(int(size) for size in shape.numpy()))
    transfer = ViewTransfer()
    for node in _chain(cut):
        is_next = bool(node.inputs) and node.inputs[0] is value
        views = dict(transfer.through(node, 0, view) or ()) if is_next else {}
        following = next((out for out in node.outputs if out in views and _leads(out, cut)), None)
        if following is None:
            return None
        value, view = following, views[following]
    return view if value is cut.outputs[0] else None


def _leads(value: onnx_ir.Value, cut: onnx_ir.Graph) -> bool:
    return bool(value.uses()) or value is cut.outputs[0]


def _chain(cut: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    return (node for node in cut if not is_constant_operator(node))


def _why_apart(
    part: RecordedSlice, origin: str, copies: Counter[object], known: Sequence[onnx_ir.Value]
) -> str:
    if known:
        return f"it no longer equals its part of {known[0].name}"
    several = copies[_digest(part)] > 1
    more = ", so equal parts are tied under a name of theirs" if several else ""
    return f"what else {origin} held is gone{more}"


def _digest(part: RecordedSlice) -> object:
    """Return what parts of equal content have in common."""
    values = part.values
    return values.dtype, values.shape, hashlib.sha256(values.tobytes()).digest()


def _is_whole(value: onnx_ir.Value, part: RecordedSlice) -> bool:
    """Return whether a tensor of a part's origin may be the one that it was cut out of."""
    tensor = value.const_value
    return (
        tensor is not None
        and tuple(tensor.shape.numpy()) == part.view.source
        and tensor.dtype == part.cut.inputs[0].dtype
    )


def _assembled(
    model: onnx_ir.Model, origin: str, parts: Sequence[RecordedSlice], names: NameAuthority
) -> list[onnx_ir.Value]:
    """Return a tensor put together from its parts; nothing if they are not all of it."""
    shape, dtype = parts[0].view.source, parts[0].values.dtype
    if sum(part.view.elements for part in parts) < math.prod(shape):
        return []  # before a record that asks for any size is given it
    covered, values = np.zeros(shape, np.bool_), np.zeros(shape, dtype)
    for part in parts:
        place, mark = part.view.footprint(values), part.view.footprint(covered)
        if part.view.source != shape or place is None or mark is None:
            return []
        place[...], mark[...] = part.values, True
    if not covered.all():
        return []
    whole = add_initializer(model, names.take(origin), values)
    set_origin(whole, origin)
    copy_kind(whole, parts[0].value)
    return [whole]


def _read_again(
    model: onnx_ir.Model, whole: onnx_ir.Value, part: RecordedSlice, names: NameAuthority
) -> None:
    """Make the readers of a part read the whole through copies of the recorded nodes."""
    graph = model.graph
    replaced: dict[onnx_ir.Value, onnx_ir.Value] = {part.cut.inputs[0]: whole}
    for operand in part.cut.initializers.values():
        replaced[operand] = _operand(model, operand, names)
    nodes: list[onnx_ir.Node] = []
    for node in part.cut:
        known = _same_constant(graph, node) if is_constant_operator(node) else None
        if known is not None:
            # Every reader of it, old or new, comes after the beginning.
            graph.remove(known)
            nodes.append(known)
            replaced[node.outputs[0]] = known.outputs[0]
            continue
        copy = onnx_ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else replaced.get(value) for value in node.inputs],
            list(node.attributes.values()),
            name=names.take(node.name or node.op_type),
            num_outputs=len(node.outputs),
        )
        copy.metadata_props.update(node.metadata_props)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = names.take(old.name or node.op_type)
            replaced[old] = new
        nodes.append(copy)
    last = replaced[part.cut.outputs[0]]
    last.type, last.shape = part.value.type, part.value.shape
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    part.value.replace_all_uses_with(last)
    join_kinds(whole, [part.value])
    add_names(whole, recorded_names(part.value))
    names_of_part = recorded_names(part.value)
    set_forms(whole, {each: after(part.view, form_of(part.value, each)) for each in names_of_part})
    set_evidence(whole, Evidence.CONTENT)
    drop_unread([part.value])


def _operand(model: onnx_ir.Model, operand: onnx_ir.Value, names: NameAuthority) -> onnx_ir.Value:
    """Return the stored operand of this name and content, or store it again."""
    assert operand.const_value is not None
    values = operand.const_value.numpy()
    known = model.graph.initializers.get(operand.name or "")
    if (
        known is not None
        and known.const_value is not None
        and not known.is_graph_input()
        and bit_equal(known.const_value.numpy(), values)
    ):
        return known
    return add_initializer(model, names.take(operand.name or "operand"), values)


def _same_constant(graph: onnx_ir.Graph, wanted: onnx_ir.Node) -> onnx_ir.Node | None:
    """Return the Constant of the graph that holds the same operand under the same name."""
    held, name = known_ints(wanted.outputs[0]), wanted.outputs[0].name
    for node in graph:
        if is_constant_operator(node) and node.outputs[0].name == name:
            return node if held is not None and known_ints(node.outputs[0]) == held else None
    return None
