"""Find operators that make an output random, so that it cannot be compared."""

from __future__ import annotations

import onnx_ir

from tieops.ir.dataflow.liveness import live_nodes
from tieops.ir.operators.predicates import is_random

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
    return tuple(
        sorted(
            {
                f"{node.name or node.outputs[0].name} ({node.op_type})"
                for node in live_nodes(model)
                if is_random(node) and node.op_identifier() not in model.functions
            }
        )
    )
