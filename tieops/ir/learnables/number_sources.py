"""Trace where numbers come from and where they go: data, positions, or constants alone.

A bias and a row of a mask can agree in dtype, shape and operator. They differ in what they are
added to, and in where the sum goes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import onnx_ir

from tieops.ir.operators.roles import kind_of, role_of
from tieops.ir.operators.traits import (
    counts_positions,
    factors_of,
    is_elementwise,
    is_multiplication,
    is_negation,
    is_product,
    is_pure,
    is_quantizer,
    is_sinusoid,
    is_subtraction,
    is_sum,
)
from tieops.ir.operators.values import moves_values
from tieops.ir.walk import subgraphs_of

__all__ = ["Provenance", "Source"]

MAX_STEPS = 64
"""How far a pattern is looked for; those of exporters are a dozen nodes."""
_WEIGHT_ROLES = ("weight", "recurrent_weight")


class Source(enum.IntEnum):
    """What a value depends on, the strongest last."""

    STORED = 0
    """Stored tensors alone: the same on every run."""
    POSITIONS = 1
    """Sizes and positions too: integers that were never looked up or multiplied."""
    DATA = 2
    """What a caller computes with: float inputs, looked-up rows, what layers made."""


class Provenance:
    """Answers for the values of one model; what was found is kept."""

    def __init__(self) -> None:
        self._sources: dict[onnx_ir.Value, Source] = {}
        self._sinusoids: dict[onnx_ir.Value, bool] = {}

    def source_of(self, value: onnx_ir.Value | None) -> Source:
        """Return what a value depends on. Iterative, because a file decides how deep it goes."""
        if value is None:
            return Source.STORED
        known = self._sources
        stack = [value]
        while stack:
            at = stack[-1]
            if at in known:
                stack.pop()
                continue
            node = at.producer()
            if node is None or at.const_value is not None:
                known[at] = _begin(at)
                continue
            missing = [v for v in node.inputs if v is not None and v not in known]
            if missing:
                stack += missing
                continue
            found = self._made(node)
            for output in node.outputs:
                known[output] = found
        return known[value]

    def _made(self, node: onnx_ir.Node) -> Source:
        if counts_positions(node):
            return Source.POSITIONS
        if next(subgraphs_of(node), None) is not None or not is_pure(node):
            return Source.DATA  # a body may read anything
        sources = [self._sources[v] for v in node.inputs if v is not None]
        strongest = max(sources, default=Source.DATA if node.inputs == () else Source.STORED)
        if strongest is Source.POSITIONS and self._is_layer(node):
            return Source.POSITIONS if self.becomes_sinusoid(node.outputs[0]) else Source.DATA
        return strongest

    def _is_layer(self, node: onnx_ir.Node) -> bool:
        """Return whether a node reads something stored as the weight of a layer."""
        if kind_of(node) is None and not is_product(node):
            return False
        return any(
            value is not None
            and self._sources[value] is Source.STORED
            and (is_product(node) or role_of(node, index) in _WEIGHT_ROLES)
            for index, value in enumerate(node.inputs)
        )

    def becomes_sinusoid(self, value: onnx_ir.Value) -> bool:
        """Return whether sines and cosines are all that is made of a value."""
        if value not in self._sinusoids:
            ends = list(self._ends(value))
            self._sinusoids[value] = bool(ends) and all(
                node is not None and is_sinusoid(node) for node in ends
            )
        return self._sinusoids[value]

    def becomes_rotation(self, value: onnx_ir.Value) -> bool:
        """Return whether a value's numbers are the cosines or sines that rotate other values."""
        return any(
            node is not None and is_multiplication(node) and self.rotates(node, at)
            for node, at in self._arrivals(value, scaling=False)
        )

    def rotates(self, node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
        """Return whether a product is a term of ``x cos + rotated(x) sin``.

        Args:
            node: A Mul.
            value: Which of its inputs is taken for the cosines or sines.
        """
        other = _other(node, value)
        if other is None or not is_multiplication(node):
            return False
        for total in self._sums(node.outputs[0]):
            terms = [_product_behind(v) for v in total.inputs if v is not None]
            partners = [term for term in terms if term is not None and term is not node]
            for partner in partners:
                mine = _is_partly_negated(other)
                theirs = [_is_partly_negated(v) for v in partner.inputs if v is not None]
                if mine or any(theirs):
                    return True
                if is_subtraction(total) and _are_parts_of_one(other, partner):
                    return True
        return False

    def is_score(self, value: onnx_ir.Value) -> bool:
        """Return whether a value is a product of two computed ones, scaled or masked: attention."""
        at: onnx_ir.Value | None = value
        for _ in range(MAX_STEPS):
            node = at.producer() if at is not None else None
            if node is None:
                return False
            factors = factors_of(node)
            if factors:
                return all(self.source_of(each) is Source.DATA for each in factors)
            if not (moves_values(node) or is_elementwise(node) or is_quantizer(node)):
                return False
            at = max(node.inputs, key=self.source_of)
        return False

    def readers_of(self, value: onnx_ir.Value) -> Iterator[onnx_ir.Node]:
        """Yield the nodes that do more with a value than pass it on."""
        yield from (node for node, _ in self._arrivals(value, scaling=False) if node is not None)

    def _sums(self, value: onnx_ir.Value) -> Iterator[onnx_ir.Node]:
        for node, _ in self._arrivals(value, scaling=False):
            if node is not None and is_sum(node):
                yield node

    def _ends(self, value: onnx_ir.Value) -> Iterator[onnx_ir.Node | None]:
        for node, _ in self._arrivals(value, scaling=True):
            yield node

    def _arrivals(
        self, value: onnx_ir.Value, *, scaling: bool
    ) -> Iterator[tuple[onnx_ir.Node | None, onnx_ir.Value]]:
        """Yield the nodes that do more with a value than pass it on; None for an output.

        Args:
            value: Where to begin.
            scaling: Whether sums and products pass it on too.
        """
        seen = {value}
        stack = [value]
        while stack and len(seen) <= MAX_STEPS:
            at = stack.pop()
            if at.is_graph_output():
                yield None, at
            for node, _ in at.uses():
                if moves_values(node) or (scaling and is_elementwise(node)):
                    fresh = [out for out in node.outputs if out not in seen]
                    seen.update(fresh)
                    stack += fresh
                elif not counts_positions(node):
                    yield node, at


def _begin(value: onnx_ir.Value) -> Source:
    if value.const_value is not None or value.is_initializer():
        return Source.STORED
    node = value.producer()
    if node is not None:
        return Source.STORED
    dtype = value.dtype
    if dtype is None or dtype.is_floating_point():
        return Source.DATA
    return Source.POSITIONS


def _other(node: onnx_ir.Node, value: onnx_ir.Value) -> onnx_ir.Value | None:
    return next((v for v in node.inputs if v is not None and v is not value), None)


def _backwards(value: onnx_ir.Value) -> Iterator[tuple[onnx_ir.Value, onnx_ir.Node | None]]:
    """Yield the values whose numbers a value holds as they are, each with its producer."""
    seen = {value}
    stack = [value]
    while stack and len(seen) <= MAX_STEPS:
        at = stack.pop()
        node = at.producer()
        yield at, node
        if node is not None and moves_values(node):
            fresh = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(fresh)
            stack += fresh


def _is_partly_negated(value: onnx_ir.Value) -> bool:
    """Return whether a part of a value is another part of something with its sign changed."""
    return any(node is not None and is_negation(node) for _, node in _backwards(value))


def _product_behind(value: onnx_ir.Value) -> onnx_ir.Node | None:
    for _, node in _backwards(value):
        if node is not None and is_multiplication(node):
            return node
    return None


def _are_parts_of_one(value: onnx_ir.Value, partner: onnx_ir.Node) -> bool:
    """Return whether a product's other operand and one of a partner's are parts of one value."""
    mine = [at for at, _ in _backwards(value)]
    for each in partner.inputs:
        if each is None or each is value:
            continue
        theirs: Sequence[onnx_ir.Value] = [at for at, _ in _backwards(each)]
        if any(at in mine and at.const_value is None for at in theirs):
            return True
    return False
