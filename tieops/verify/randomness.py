"""Operators that draw random numbers on the way to an output: what they make cannot be compared."""

from __future__ import annotations

import onnx_ir

from tieops.ir.operators.randomness import is_random
from tieops.ir.scopes import subgraphs_of

__all__ = ["random_nodes"]


def random_nodes(model: onnx_ir.Model) -> tuple[str, ...]:
    """Return the random operators that an output depends on, in subgraphs and functions too.

    A Dropout is one of them unless its training mode is known to be off.

    Args:
        model: The model.

    Returns:
        A text for each: its name (its first output's, if it has none) and its operator.

    Example:
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[2] x) => (float[2] y)'
        >>> text += " { r = RandomNormalLike(x) y = Add(x, r) unused = RandomUniformLike(x) }"
        >>> random_nodes(onnx_ir.from_onnx_text(text))
        ('r (RandomNormalLike)',)
    """
    found: dict[str, None] = {}
    seen: set[int] = set()
    work: list[onnx_ir.Value] = list(model.graph.outputs)
    while work:
        node = work.pop().producer()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        work.extend(value for value in node.inputs if value is not None)
        # A body's formal inputs are its node's inputs, and what it captures is the value itself.
        for body in subgraphs_of(node):
            work.extend(body.outputs)
        function = model.functions.get(node.op_identifier())
        if function is not None:
            work.extend(function.outputs)
        elif is_random(node):
            found[f"{node.name or node.outputs[0].name} ({node.op_type})"] = None
    return tuple(sorted(found))
