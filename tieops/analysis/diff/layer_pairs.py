"""Pair the layers of two models, and compare what each reads and computes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir

from tieops.analysis.diff.difference import Difference, Subject
from tieops.analysis.diff.parameter_pairs import Pairs
from tieops.ir.layer import Layer
from tieops.ir.operators.identity import operator_name
from tieops.ir.parameter import Parameter, Slot

__all__ = ["layer_changes", "layer_pairs"]

MAX_OPERAND = 8
"""Stored operands of this many elements are told; of larger ones, a digest."""
LayerPairs = Mapping[Layer, Layer]


def layer_pairs(old: Sequence[Layer], new: Sequence[Layer], pairs: Pairs) -> LayerPairs:
    """Return which layer is which: of one name and sort, or of one kind reading the same."""
    by_name = {(each.name, each.is_learnable): each for each in new}
    found: dict[Layer, Layer] = {}
    for each in old:
        if (key := (each.name, each.is_learnable)) in by_name:
            found[each] = by_name.pop(key)
    by_reads: dict[Hashable, list[Layer]] = defaultdict(list)
    for each in by_name.values():
        by_reads[_reads(each, {})].append(each)
    for each in old:
        alike = by_reads[_reads(each, pairs)] if each not in found and each.is_learnable else None
        if alike:
            found[each] = alike.pop(0)
    return found


def _reads(layer: Layer, pairs: Pairs) -> Hashable:
    slots = tuple((slot.role, _parameters(slot, pairs)) for slot in layer.slots)
    return layer.kind, slots


def _parameters(slot: Slot, pairs: Pairs) -> tuple[Parameter, ...]:
    return tuple(pairs.get(read.parameter, read.parameter) for read in slot.reads)


def layer_changes(
    old: Sequence[Layer], new: Sequence[Layer], pairs: Pairs, layers: LayerPairs
) -> Iterator[Difference]:
    """Yield what became of each layer and operator."""
    sources = _Sources(old), _Sources(new)
    names = {each.name: layers[each].name for each in old if each in layers}
    for each in old:
        if each not in layers:
            yield Difference(_subject(each), each.name, "removed", each.kind)
            continue
        other = layers[each]
        subject = _subject(other)
        if each.name != other.name:
            yield Difference(subject, other.name, "renamed", each.name, other.name)
        if each.kind != other.kind:
            yield Difference(subject, other.name, "of another kind", each.kind, other.kind)
        yield from _slot_changes(each, other, pairs)
        yield from _node_changes(each, other, subject)
        fed = [names.get(name, name) for name in sources[0].of(each)], sources[1].of(other)
        if fed[0] != fed[1]:
            texts = (", ".join(side) or "nothing" for side in fed)
            yield Difference(subject, other.name, "fed by", *texts)
    known = {*layers.values()}
    for each in new:
        if each not in known:
            yield Difference(_subject(each), each.name, "added", "", each.kind)


def _subject(layer: Layer) -> Subject:
    return "layer" if layer.is_learnable else "operator"


def _slot_changes(old: Layer, new: Layer, pairs: Pairs) -> Iterator[Difference]:
    before, after = ({slot.role: slot for slot in layer.slots} for layer in (old, new))
    for role in dict.fromkeys((*before, *after)):
        one, other = before.get(role), after.get(role)
        if one is None or other is None:
            change = f"{role} added" if one is None else f"{role} removed"
            yield Difference("layer", new.name, change, _told(one), _told(other))
            continue
        same_views = [str(r.view) for r in one.reads] == [str(r.view) for r in other.reads]
        if _parameters(one, pairs) != _parameters(other, {}) or not same_views:
            yield Difference("layer", new.name, f"{role} reads", _told(one), _told(other))


def _told(slot: Slot | None) -> str:
    if slot is None:
        return ""
    view = f" ({slot.view})" if not slot.view.is_identity else ""
    return f"{slot.parameter.name}{view}"


def _node_changes(old: Layer, new: Layer, subject: Subject) -> Iterator[Difference]:
    before, after = (_nodes(layer) for layer in (old, new))
    if before != after:
        texts = [", ".join(side) for side in (before, after)]
        yield Difference(subject, new.name, "computed by", *texts)


def _nodes(layer: Layer) -> list[str]:
    """Return the operators of a layer with their attributes and stored operands, short."""
    weights = {(slot.node, slot.index) for slot in layer.slots}
    found: list[str] = []
    for node in layer.nodes:
        told = sorted(f"{name}={_value(attr)}" for name, attr in node.attributes.items())
        for index, value in enumerate(node.inputs):
            if value is None or (node, index) in weights or value.is_graph_input():
                continue
            tensor = onnx_ir.convenience.get_const_tensor(value)
            told += [] if tensor is None else [f"{index}: {_tensor(tensor)}"]
        found.append(operator_name(node) + (f"<{', '.join(told)}>" if told else ""))
    return found


def _tensor(tensor: onnx_ir.TensorProtocol) -> str:
    """Return a stored operand as text, a large one by its digest."""
    if tensor.dtype.is_string():
        # Strings are objects, which have no bytes of one length to digest.
        texts = [bytes(each) for each in tensor.numpy().reshape(-1)]
        if tensor.size <= MAX_OPERAND:
            return str([each.decode("utf-8", "backslashreplace") for each in texts])
        data = b"".join(len(each).to_bytes(8, "little") + each for each in texts)
        return hashlib.sha256(data).hexdigest()[:8]
    if tensor.size <= MAX_OPERAND:
        return str(tensor.numpy().tolist())
    return hashlib.sha256(tensor.tobytes()).hexdigest()[:8]


def _value(attr: onnx_ir.Attr) -> str:
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type == onnx_ir.AttributeType.TENSOR:
        return _tensor(attr.as_tensor())
    if attr.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS):
        return "…"  # what is inside is compared as layers
    if attr.type == onnx_ir.AttributeType.FLOAT:
        return str(np.float32(attr.as_float()))  # which a file holds
    if attr.type == onnx_ir.AttributeType.FLOATS:
        return str([float(np.float32(each)) for each in attr.as_floats()])
    return str(attr.value)


class _Sources:
    """Tells what feeds a layer: the names of layers and of graph inputs."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._home = {node: layer for layer in layers for node in layer.nodes}

    def of(self, layer: Layer) -> list[str]:
        found: dict[str, None] = {}
        weights = {(slot.node, slot.index) for slot in layer.slots}
        for node in layer.nodes:
            for index, value in enumerate(node.inputs):
                if value is None or (node, index) in weights or value.is_initializer():
                    continue
                producer = value.producer()
                home = None if producer is None else self._home.get(producer)
                if home is not layer:
                    name = home.name if home else ("" if producer else value.name or "")
                    found[name] = None
        return [name for name in found if name]
