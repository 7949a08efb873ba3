"""Find weights that are computed before use, such as a norm times a direction.

Nodes that depend on stored tensors and constants alone belong to the layer that uses their result.
So a layer that touches its weight several times before it multiplies reads the weight once, and two
layers that share one normalized weight in the exported graph both read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.ir.operators.predicates import is_random
from tieops.ir.operators.roles import is_learnable_role, kind_of
from tieops.ir.walk import scope_of, subgraphs_of

__all__ = ["Computations", "ComputedUse", "owns_outright", "uses_itself"]

MAX_NODES = 256
"""How many nodes may compute a weight; tens are usual, and more is a program of its own."""
Path = tuple[onnx_ir.Node, ...]


def uses_itself(node: onnx_ir.Node, index: int) -> bool:
    """Return whether a node is a layer that reads its weight there, whatever its data depends on.

    Looking up rows of a table at constant places is one, normalizing learned positions another. A
    product is not: the greatest singular value of a weight is computed by products.
    """
    return is_learnable_role(node, index) and kind_of(node) != "Linear"


@dataclass(frozen=True, eq=False)
class ComputedUse:
    """Where a computed weight is used, together with what depends on a graph input."""

    node: onnx_ir.Node | None
    """None where a function returns it."""
    index: int
    value: onnx_ir.Value
    nodes: tuple[onnx_ir.Node, ...]
    """What computes it, in an order in which it can be computed."""


class Computations:
    """What a model computes from stored tensors and constants alone.

    Args:
        model: The model.
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        self._functions = model.functions
        self._inputs: Mapping[onnx_ir.Value, tuple[onnx_ir.Function, int]] = {
            value: (function, place)
            for function in model.functions.values()
            for place, value in enumerate(function.inputs)
        }
        self._fixed: dict[tuple[onnx_ir.Value, Path], bool] = {}

    def is_fixed(self, node: onnx_ir.Node, path: Path) -> bool:
        """Return whether all that a node computes is decided by what the model stores.

        Args:
            node: Any node.
            path: The function calls that lead to it.
        """
        return self._can_be_fixed(node) and all(
            value is None or self._is_fixed(value, path) for value in node.inputs
        )

    def _can_be_fixed(self, node: onnx_ir.Node) -> bool:
        return (
            node.op_identifier() not in self._functions
            and not is_random(node)
            and not any(True for _ in subgraphs_of(node))
        )

    def _is_fixed(self, value: onnx_ir.Value, path: Path) -> bool:
        """Decide it for a value without recursion: a file says how deep its graphs are."""
        stack = [(value, path)]
        while stack:
            at = stack[-1]
            if at in self._fixed:
                stack.pop()
                continue
            before = self._before(*at)
            if before is None:
                self._fixed[at] = False
                stack.pop()
                continue
            unknown = [each for each in before if each not in self._fixed]
            if any(self._fixed.get(each) is False for each in before):
                self._fixed[at] = False
            elif not unknown:
                self._fixed[at] = True
            else:
                stack.append(unknown[0])
        return self._fixed[value, path]

    def _before(self, value: onnx_ir.Value, path: Path) -> list[tuple[onnx_ir.Value, Path]] | None:
        """Return what a value is decided by; None where the caller's feeds may decide."""
        if value in self._inputs:
            function, place = self._inputs[value]
            if not path or path[-1].op_identifier() != function.identifier():
                return None
            given = path[-1].inputs[place] if place < len(path[-1].inputs) else None
            return [] if given is None else [(given, path[:-1])]
        if value.is_graph_input():
            return None
        if value.const_value is not None:
            return []
        node = value.producer()
        function = None if node is None else self._functions.get(node.op_identifier())
        if node is not None and function is not None:
            place = node.outputs.index(value)
            return [(function.outputs[place], (*path, node))]
        if node is None or not self._can_be_fixed(node):
            return None
        return [(each, path) for each in node.inputs if each is not None]

    def uses(
        self, start: onnx_ir.Value, first: Sequence[onnx_ir.Node], path: Path
    ) -> list[ComputedUse]:
        """Return where what is computed from a value is used with what is not fixed.

        Args:
            start: A stored tensor, or a view of one.
            first: Those of its readers that compute.
            path: The function calls that lead to them.

        Returns:
            The uses; none where more is computed than ``MAX_NODES`` nodes do.
        """
        reached = dict.fromkeys(first)
        stack = list(first)
        ends: list[tuple[onnx_ir.Node | None, int, onnx_ir.Value]] = []
        while stack:
            for value in stack.pop().outputs:
                if path and value.is_graph_output():
                    ends.append((None, 0, value))
                for node, index in value.uses():
                    if node in reached:
                        continue
                    if self.is_fixed(node, path) and not uses_itself(node, index):
                        reached[node] = None
                        stack.append(node)
                    else:
                        ends.append((node, index, value))
            if len(reached) > MAX_NODES:
                return []
        ways = {value: _between(start, value, reached) for _, _, value in ends}
        return [ComputedUse(node, index, value, ways[value]) for node, index, value in ends]


def _between(
    start: onnx_ir.Value, end: onnx_ir.Value, reached: Mapping[onnx_ir.Node, None]
) -> tuple[onnx_ir.Node, ...]:
    """Return the nodes that lead from one value to another, producers first."""
    found: dict[onnx_ir.Node, None] = {}
    last = end.producer()
    assert last is not None
    stack: list[tuple[onnx_ir.Node, bool]] = [(last, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            found.setdefault(node)
        elif node not in found:
            stack.append((node, True))
            producers = [v.producer() for v in node.inputs if v is not None and v is not start]
            stack += [(each, False) for each in producers if each is not None and each in reached]
    return tuple(found)


def owns_outright(node: onnx_ir.Node, names: Sequence[str], uses: Sequence[ComputedUse]) -> bool:
    """Return whether a product is a layer by itself, though all that it multiplies is stored.

    It is where its module has the tensor for its weight and another module uses the product: the
    queries that are projected from learned positions. A layer computes with its own weight inside.

    Args:
        node: The product.
        names: What the tensor is called.
        uses: Where the product is used.
    """
    scope = scope_of(node)
    if scope is None or not any(f"{path}.weight" in names for path in scope.paths if path):
        return False
    ends = [scope_of(use.node) for use in uses if use.node is not None]
    return all(end is None or end.fqn != scope.fqn for end in ends)
