"""Slice provenance: the tensor that a slice was cut from, and the nodes that cut it.

A transposed copy can be recognised by its content. A slice cannot: the tensor that it was cut from
has another shape, and may be gone. So the pass that cuts leaves a record on the slice
(``tieops.part``): the nodes as a small ONNX graph in JSON, with the whole as input and the slice as
output. The record nominates; bytes decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir
from google.protobuf import json_format
from onnx_ir import convenience

from tieops.ir.operators.predicates import takes_scalar_axes
from tieops.ir.view import Reshape, Slice, Transpose, View

__all__ = ["PROVENANCE", "provenance_of", "record_slice"]

PROVENANCE = "tieops.part"
MAX_RECORD_CHARS = 20_000
"""A record is a few nodes; a longer one is not one of ours."""
RECORD_IR_VERSION = 10
"""Any version from 4 on does, in which a stored operand need not be an input too."""
_INTEGERS = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32)
_NONSENSE = (
    json_format.ParseError,
    onnx.checker.ValidationError,
    onnx_ir.serde.SerdeError,
    ValueError,
    TypeError,
)


def record_slice(
    part: onnx_ir.Value,
    whole: onnx_ir.Value,
    nodes: Sequence[onnx_ir.Node],
    cut: onnx_ir.Value,
    view: View,
) -> None:
    """Record on a stored tensor which nodes cut it out of another one.

    Args:
        part: The tensor that holds the cut values now.
        whole: The tensor that the nodes read.
        nodes: A chain of nodes, in the order of reading. If it has gaps, as where a function passes
            the tensor on, nodes are recorded that do the same.
        cut: The output of the last of them.
        view: What they do. Nothing is recorded if it is more than moving elements.
    """
    tensor = whole.const_value
    assert tensor is not None
    before = {whole}
    for node in nodes:
        if node.inputs[0] not in before:
            nodes = _nodes_of(view, whole, part.name or "part")
            if not nodes:
                return
            cut = nodes[-1].outputs[0]
            break
        before = set(node.outputs)
    info = onnx.helper.make_tensor_value_info(
        whole.name or "whole", tensor.dtype, [int(size) for size in tensor.shape.numpy()]
    )
    graph = onnx.GraphProto(name="part", input=[info])
    for operand in dict.fromkeys(v for node in nodes for v in node.inputs[1:] if v is not None):
        producer = operand.producer()
        if producer is not None:
            graph.node.append(onnx_ir.to_proto(producer))
        elif operand.const_value is not None:
            values = operand.const_value.numpy()
            graph.initializer.append(onnx_ir.to_proto(onnx_ir.Tensor(values, name=operand.name)))
    graph.node.extend(onnx_ir.to_proto(node) for node in nodes)
    held = part.const_value
    assert held is not None
    graph.output.append(
        onnx.helper.make_tensor_value_info(
            cut.name or "", held.dtype, [int(size) for size in held.shape.numpy()]
        )
    )
    text = json_format.MessageToJson(graph, indent=None)
    if len(text) <= MAX_RECORD_CHARS:
        part.metadata_props[PROVENANCE] = text


def _nodes_of(view: View, whole: onnx_ir.Value, name: str) -> list[onnx_ir.Node]:
    """Return the nodes that read ``whole`` through a view; none if it does not only move it."""
    nodes: list[onnx_ir.Node] = []
    value, shape = whole, view.source
    for count, step in enumerate(view.steps):
        operands: dict[str, Sequence[int]] = {}
        attributes: dict[str, Sequence[int]] = {}
        match step:
            case Transpose(perm):
                attributes["perm"] = perm
            case Reshape(sizes) if 0 not in sizes:
                operands["shape"] = sizes
            case Slice(ranges):
                starts, ends, steps = zip(*ranges, strict=True)
                # Backwards down to 0 the end is one before it, which ONNX counts from the end.
                ends = [
                    end if end >= 0 else end - size for end, size in zip(ends, shape, strict=True)
                ]
                axes = range(len(shape))
                operands.update(starts=starts, ends=ends, axes=axes, steps=steps)
            case _:
                return []
        inputs = [value]
        for operand, numbers in operands.items():
            constant = onnx_ir.node("Constant", [], {"value_ints": list(numbers)})
            constant.outputs[0].name = f"{name}_{operand}_{count}"
            inputs.append(constant.outputs[0])
        node = onnx_ir.node(type(step).__name__, inputs, attributes)
        value, shape = node.outputs[0], step.shape(shape)
        value.name = f"{name}_{type(step).__name__.lower()}_{count}"
        nodes.append(node)
    return nodes


def provenance_of(value: onnx_ir.Value, opset: int) -> onnx_ir.Graph | None:
    """Return the nodes that cut a tensor out of another one, if it has a record that makes sense.

    Args:
        value: A stored tensor.
        opset: The version of the operators that the model uses. A file may have been converted
            since; nodes that are not valid any more make no sense.

    Returns:
        A graph of its own with one input, the whole, whose name, type and shape are known, and one
        output, the part.
    """
    text = value.metadata_props.get(PROVENANCE, "")
    if not text or len(text) > MAX_RECORD_CHARS:
        return None
    try:
        proto = json_format.Parse(text, onnx.GraphProto())
        opsets = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(proto, opset_imports=opsets, ir_version=RECORD_IR_VERSION)
        # Its full check infers shapes, and aborts the process where a file gives negative sizes.
        onnx.checker.check_model(model, full_check=False)
        graph = onnx_ir.from_proto(proto)
        is_plain = all(_has_plain_operands(node) for node in graph)
    except _NONSENSE:
        return None
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or graph.outputs[0].producer() is None:
        return None
    shape = graph.inputs[0].shape
    if shape is None or not shape.is_static() or min(shape.numpy(), default=0) < 0:
        return None
    return graph if is_plain else None


def _has_plain_operands(node: onnx_ir.Node) -> bool:
    """Return whether what a node reads beside the whole are vectors of integers of one type.

    Axes that a Squeeze takes or an Unsqueeze adds may be a scalar, which runtimes allow.

    Raises:
        ValueError: If a vector has another size than its bytes.
    """
    ranks = (0, 1) if takes_scalar_axes(node) else (1,)
    operands = [convenience.get_const_tensor(value) for value in node.inputs[1:] if value]
    return len({tensor.dtype for tensor in operands if tensor is not None}) <= 1 and all(
        tensor is not None and tensor.dtype in _INTEGERS and tensor.numpy().ndim in ranks
        for tensor in operands
    )
