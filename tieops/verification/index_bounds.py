"""Bounds of integer inputs: the sizes of the tables that they index.

The walk goes forward from each graph input, through operators that only move values, into If, Loop
and Scan bodies and model-local functions, to the operators that index rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import onnx_ir

from tieops.ir.dataflow.regions import RegionInterface
from tieops.ir.functions.calls import bound_attribute
from tieops.ir.operators.shape_rules import output_shapes
from tieops.ir.operators.sizes import NotKnownError, Resized
from tieops.ir.operators.values import keeps_sizes, passes_values_on, table_of
from tieops.ir.walk import all_nodes

__all__ = ["Size", "table_sizes"]

Size: TypeAlias = int | onnx_ir.SymbolicDim
_Calls: TypeAlias = tuple[onnx_ir.Node, ...]
_Sizes: TypeAlias = list[Size | None]


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
        elif passes_values_on(node, position):
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
        table = table_of(node, position)
        if table is None:
            return
        if table.depth is not None:
            depth = _constant(node, table.depth)
            if depth is not None and depth.size == 1:
                yield int(depth.numpy().reshape(()))
            return
        sizes = self._shape(node.inputs[table.input], calls) or []
        given = bound_attribute(node, table.axis, calls, self.functions) if table.axis else None
        first = given.as_int() if given is not None else 0
        if not table.is_nested:
            if -len(sizes) <= first < len(sizes) and (size := sizes[first]) is not None:
                yield size
            return
        width = (self._shape(node.inputs[position], calls) or [None])[-1]
        # Without a known width any axis may be meant: the smallest then bounds them all.
        last = first + width if isinstance(width, int) else len(sizes)
        yield from (size for size in sizes[first:last] if size is not None)

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
            elif keeps_sizes(node) and node.inputs:
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
            known = None if known is None else _through(known, node)
        return known


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


def _through(sizes: _Sizes, node: onnx_ir.Node) -> _Sizes | None:
    """Return the sizes after a node that keeps, permutes, drops or adds axes."""
    try:
        (found, *_) = output_shapes(node, [sizes])
    except NotKnownError:
        return None
    return [size for size in found if not isinstance(size, Resized)]
