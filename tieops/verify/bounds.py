"""How far integer inputs may reach: the sizes of the tables that they index.

From each graph input forward, through operators that only move values, into If, Loop and Scan
bodies and model-local functions, to the operators that look rows up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import onnx_ir

from tieops.ir.dataflow.regions import RegionInterface
from tieops.ir.scopes import all_nodes

__all__ = ["Size", "table_sizes"]

Size: TypeAlias = int | onnx_ir.SymbolicDim
_Calls: TypeAlias = tuple[onnx_ir.Node, ...]
_Sizes: TypeAlias = list[Size | None]

# Which inputs an operator passes on with their values; an empty tuple means all of them.
_MOVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Identity", "Cast", "CastLike", "Reshape", "Unsqueeze", "Squeeze"), (0,)),
    **dict.fromkeys(("Flatten", "Transpose", "Slice", "Expand", "Tile", "Clip", "Split"), (0,)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Dropout", "Pad"), (0,)),
    **dict.fromkeys(("ReverseSequence", "DepthToSpace", "SpaceToDepth", "Trilu"), (0,)),
    **dict.fromkeys(("ScatterND", "ScatterElements"), (0, 2)),
    "Where": (1, 2),
    **dict.fromkeys(("Concat", "Max", "Min"), ()),
}
# Operator and the position of its indices -> position of the table, its axis (or its attribute).
_LOOKUPS: dict[tuple[str, str, int], tuple[int, str]] = {
    ("", "Gather", 1): (0, "axis"),
    ("", "GatherElements", 1): (0, "axis"),
    ("", "ScatterElements", 1): (0, "axis"),
    ("com.microsoft", "GatherBlockQuantized", 1): (0, "gather_axis"),
    ("com.microsoft", "EmbedLayerNormalization", 0): (2, ""),
    ("com.microsoft", "EmbedLayerNormalization", 1): (4, ""),
}
_SAME_SHAPE = ("Identity", "Cast", "CastLike", "DequantizeLinear", "QuantizeLinear")


def table_sizes(model: onnx_ir.Model) -> dict[str, tuple[Size, ...]]:
    """Return, for each graph input, the sizes of all tables that its values index.

    Args:
        model: The model, its main graph's inputs named.

    Returns:
        Sizes by input name; a size is a number, or a symbol that the input shapes may bind. An
        input whose values index nothing of known size has none. Values that arithmetic changed on
        the way (``ids + 2``) are not followed.

    Example:
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (int64[n] x) => (float[n, 2] y)'
        >>> text += " <float[3, 2] w = {0, 1, 2, 3, 4, 5}> { y = Gather(w, x) }"
        >>> table_sizes(onnx_ir.from_onnx_text(text))
        {'x': (3,)}
    """
    flow = _Flow(model)
    return {
        value.name or "": tuple(dict.fromkeys(flow.tables(value)))
        for value in model.graph.inputs
        if not value.is_initializer()
    }


def _is_standard(node: onnx_ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


class _Flow:
    """Where values go, with the function calls that a value is inside of kept apart."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self.functions = model.functions
        self.passed: dict[onnx_ir.Value, list[onnx_ir.Value]] = {}
        for node in all_nodes(model):
            if node.op_identifier() in model.functions:
                continue
            for sources, targets in RegionInterface.of(node, model.functions).passed_on():
                for source in sources:
                    self.passed.setdefault(source, []).extend(targets)
        self.formals = {
            id(value): position
            for function in model.functions.values()
            for position, value in enumerate(function.inputs)
        }

    def tables(self, start: onnx_ir.Value) -> Iterator[Size]:
        """Yield the size of every table that the value reaches as an index."""
        seen: set[tuple[int, tuple[int, ...]]] = set()
        work: list[tuple[onnx_ir.Value, _Calls]] = [(start, ())]
        while work:
            value, calls = work.pop()
            key = (id(value), tuple(map(id, calls)))
            if key in seen:
                continue
            seen.add(key)
            for node, position in value.uses():
                yield from self._looked_up(node, position, calls)
                work.extend(self._passed_on(node, position, calls))
            work.extend((target, calls) for target in self.passed.get(value, ()))
            work.extend(self._returned(value, calls))

    def _passed_on(
        self, node: onnx_ir.Node, position: int, calls: _Calls
    ) -> Iterator[tuple[onnx_ir.Value, _Calls]]:
        function = self.functions.get(node.op_identifier())
        if function is not None:
            if node not in calls and position < len(function.inputs):
                yield function.inputs[position], (*calls, node)
        elif not _is_standard(node):
            return
        elif node.op_type in _MOVES and (
            not _MOVES[node.op_type] or position in _MOVES[node.op_type]
        ):
            yield from ((output, calls) for output in node.outputs)

    def _returned(
        self, value: onnx_ir.Value, calls: _Calls
    ) -> Iterator[tuple[onnx_ir.Value, _Calls]]:
        function = self.functions.get(calls[-1].op_identifier()) if calls else None
        if function is not None:
            for inside, outside in zip(function.outputs, calls[-1].outputs, strict=False):
                if inside is value:
                    yield outside, calls[:-1]

    def _looked_up(self, node: onnx_ir.Node, position: int, calls: _Calls) -> Iterator[Size]:
        if node.op_identifier() in self.functions:
            return
        domain = "" if _is_standard(node) else node.domain
        found = _LOOKUPS.get((domain, node.op_type, position))
        if found is not None:
            table, attribute = found
            sizes = self._shape(node.inputs[table], calls) or []
            axis = self._number(node, attribute, 0, calls) if attribute else 0
            if -len(sizes) <= axis < len(sizes) and (size := sizes[axis]) is not None:
                yield size
        elif domain == "" and node.op_type in ("GatherND", "ScatterND") and position == 1:
            sizes = self._shape(node.inputs[0], calls) or []
            first = self._number(node, "batch_dims", 0, calls)
            width = (self._shape(node.inputs[1], calls) or [None])[-1]
            # Without a known width any axis may be meant: the smallest then bounds them all.
            last = first + width if isinstance(width, int) else len(sizes)
            yield from (size for size in sizes[first:last] if size is not None)
        elif domain == "" and node.op_type == "OneHot" and position == 0:
            depth = _constant(node, 1)
            if depth is not None and depth.size == 1:
                yield int(depth.numpy().reshape(()))

    def _shape(self, value: onnx_ir.Value | None, calls: _Calls) -> _Sizes | None:
        """Return a value's sizes as far as they are known, or None for an unknown rank."""
        steps: list[onnx_ir.Node] = []
        while value is not None and _own_shape(value) is None:
            node = value.producer()
            if node is None:
                position = self.formals.get(id(value))
                if position is None or not calls or position >= len(calls[-1].inputs):
                    break
                value, calls = calls[-1].inputs[position], calls[:-1]
            elif node.op_type in (*_SAME_SHAPE, "Transpose", "Squeeze", "Unsqueeze") and (
                _is_standard(node) and node.inputs
            ):
                steps.append(node)
                value = node.inputs[0]
            else:
                break
        if value is None:
            return None
        known = _own_shape(value)
        if known is None and value.shape is not None:
            known = _sizes(value.shape)
        for node in reversed(steps):
            known = None if known is None else _moved(known, node)
        return known

    def _number(self, node: onnx_ir.Node, name: str, default: int, calls: _Calls) -> int:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            # Inside a function an attribute may be the caller's.
            outer = calls[-1].attributes.get(attribute.ref_attr_name or "") if calls else None
            attribute = outer
        return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _sizes(shape: onnx_ir.Shape) -> _Sizes:
    return [
        size if isinstance(size, int) else size if size.value is not None else None
        for size in shape
    ]


def _constant(node: onnx_ir.Node, position: int) -> onnx_ir.TensorProtocol | None:
    """Return what a node's input is known to be: an initializer, or a Constant node's value."""
    value = node.inputs[position] if position < len(node.inputs) else None
    return None if value is None else onnx_ir.convenience.get_const_tensor(value)


def _own_shape(value: onnx_ir.Value) -> _Sizes | None:
    """Return the sizes that the value itself states, if they are all numbers."""
    known = onnx_ir.convenience.get_const_tensor(value)
    if known is not None:
        return [int(size) for size in known.shape.numpy()]
    if value.shape is not None and all(isinstance(size, int) for size in value.shape):
        return _sizes(value.shape)
    return None


def _moved(sizes: _Sizes, node: onnx_ir.Node) -> _Sizes | None:
    """Return the sizes after a node that keeps, permutes, drops or adds axes."""
    if node.op_type in _SAME_SHAPE:
        return sizes
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = list(perm.as_ints()) if perm is not None else list(range(len(sizes)))[::-1]
        return [sizes[axis] for axis in order] if sorted(order) == list(range(len(sizes))) else None
    axes = _axes(node)
    if axes is None:
        return [size for size in sizes if size != 1] if node.op_type == "Squeeze" else None
    rank = len(sizes) + (len(axes) if node.op_type == "Unsqueeze" else 0)
    places = {axis % rank for axis in axes} if rank else set[int]()
    if node.op_type == "Squeeze":
        return [size for axis, size in enumerate(sizes) if axis not in places]
    rest = iter(sizes)
    return [1 if axis in places else next(rest, None) for axis in range(rank)]


def _axes(node: onnx_ir.Node) -> list[int] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None and not attribute.is_ref():
        return list(attribute.as_ints())
    given = _constant(node, 1)
    return None if given is None else [int(axis) for axis in given.numpy().reshape(-1)]
