"""Export an LSTM with a projection as a Scan, because ONNX's LSTM has no projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir
import onnxscript.evaluator
from onnxscript import opset18

__all__ = ["projected_layer"]

# Traced, its methods take Python lists and whatever the exporter's values are.
op: Any = opset18


def projected_layer(
    data: Any,
    states: Sequence[Any],
    widths: Sequence[int],
    weights: Sequence[Any],
    bias: bool,
    directions: int,
    batch_first: bool,
) -> tuple[Any, ...]:
    """Write one layer of an LSTM with a projection as a Scan for each direction.

    What does not depend on the step before is computed outside of the Scan, for all steps at once.

    Args:
        data: (sequence, batch, input).
        states: h (directions, batch, projection) and c (directions, batch, hidden); none for
            zeros.
        widths: The last sizes of h and c.
        weights: torch's own, one direction after the other.
        bias: Whether there are two biases a direction.
        directions: 1 or 2.
        batch_first: Whether the output begins with the batch.

    Returns:
        The output, (sequence, batch, directions * projection) or batch first, and the last h and c.
    """
    each = len(weights) // directions
    outputs: list[Any] = []
    last: list[tuple[Any, Any]] = []
    for direction in range(directions):
        parts = weights[direction * each : (direction + 1) * each]
        start = [op.Squeeze(_direction(s, direction, directions), [0]) for s in states]
        start = start or [_zeros(data, width) for width in widths]
        *ends, output = _scan(data, start, parts, bias, is_reverse=direction == 1)
        outputs.append(output)
        last.append((ends[0], ends[1]))
    joined = op.Concat(*outputs, axis=-1) if directions > 1 else outputs[0]
    if batch_first:
        joined = op.Transpose(joined, perm=[1, 0, 2])
    hidden, cell = zip(*last, strict=True)
    return joined, _stacked(hidden), _stacked(cell)


def _zeros(data: Any, width: int) -> Any:
    sizes = op.Concat(op.Shape(data, start=1, end=2), op.Constant(value_ints=[width]), axis=0)
    return op.Expand(op.CastLike(op.Constant(value_floats=[0.0]), data), sizes)


def _direction(state: Any, direction: int, directions: int) -> Any:
    return state if directions == 1 else op.Slice(state, [direction], [direction + 1], [0])


def _stacked(states: Sequence[Any]) -> Any:
    parts = [op.Unsqueeze(state, [0]) for state in states]
    return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]


def _scan(
    data: Any, start: Sequence[Any], weights: Sequence[Any], bias: bool, *, is_reverse: bool
) -> Sequence[Any]:
    """Return the last h and c, and h of every step."""
    w, r, *biases, projection = weights
    gates = op.MatMul(data, op.Transpose(w, perm=[1, 0]))
    for each in biases if bias else ():
        gates = op.Add(gates, each)
    body = _body(
        op.Transpose(r, perm=[1, 0]), op.Transpose(projection, perm=[1, 0]), projection.dtype
    )
    node = onnx_ir.node(
        "Scan",
        [*start, gates],
        {
            "body": body,
            "num_scan_inputs": 1,
            "scan_input_directions": [int(is_reverse)],
            "scan_output_directions": [int(is_reverse)],
        },
        num_outputs=3,
        version=op.version,
    )
    # An operator with any number of outputs cannot be called through the opset: onnxscript takes
    # the number from the schema.  While a translation runs, its evaluator is torch's recorder.
    recorder: Any = onnxscript.evaluator.default()
    recorder.nodes.append(node)
    return node.outputs


def _body(recurrent: Any, projection: Any, dtype: Any) -> onnx_ir.Graph:
    """Return one step: h and c and the gates' share of the input to h and c, and h again."""
    hidden, cell, gates = (
        onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype)) for name in ("h", "c", "gates")
    )
    nodes: list[onnx_ir.Node] = []

    def call(op_type: str, *inputs: onnx_ir.Value, outputs: int = 1, **attributes: Any) -> Any:
        node = onnx_ir.node(op_type, inputs, attributes, num_outputs=outputs, version=op.version)
        nodes.append(node)
        return node.outputs if outputs > 1 else node.outputs[0]

    summed = call("Add", gates, call("MatMul", hidden, recurrent))
    i, f, g, o = call("Split", summed, outputs=4, axis=-1, num_outputs=4)
    kept = call("Mul", call("Sigmoid", f), cell)
    new_cell = call("Add", kept, call("Mul", call("Sigmoid", i), call("Tanh", g)))
    exposed = call("Mul", call("Sigmoid", o), call("Tanh", new_cell))
    new_hidden = call("MatMul", exposed, projection)
    step = call("Identity", new_hidden)
    return onnx_ir.Graph(
        [hidden, cell, gates], [new_hidden, new_cell, step], nodes=nodes, name="lstm_step"
    )
