"""Shapes that a graph does not say, from ONNX's own inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir
from onnx_ir.serde import SerdeError

from tieops.ir.logs import silenced
from tieops.ir.scopes import all_graphs, all_nodes, subgraphs_of

__all__ = ["infer_in_place", "shaped"]

MAX_OPERAND_BYTES = 1000
"""Inference computes with stored tensors up to this size; of larger ones it is told the shape."""


def shaped(model: onnx_ir.Model) -> dict[onnx_ir.Value, onnx_ir.Value]:
    """Return, for values that do not say their shape, one that shape inference has given a shape.

    ONNX's own inference is run on the graph without its weights, and only if a shape is missing.
    Where it fails, shapes stay unknown.

    Args:
        model: The graph; left alone.
    """
    if all(value.shape is not None for value in _values(model)):
        return {}
    return {value: better for value, better in _inferred(model) if value.shape is None}


def infer_in_place(model: onnx_ir.Model) -> None:
    """Give values the shapes and dtypes that ONNX's own inference finds; weights are not read."""
    for value, better in list(_inferred(model)):
        if better.shape is not None:
            value.shape = better.shape
        if better.dtype is not None:
            value.dtype = better.dtype


def _inferred(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Value, onnx_ir.Value]]:
    try:
        with silenced("onnx_ir.serde"):  # it warns of a shape without a type
            proto = _without_weights(model)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, SerdeError):
        return
    yield from _told(model, proto)


def _values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    for graph in all_graphs(model):
        yield from graph.inputs
    for node in all_nodes(model):
        yield from node.outputs


def _without_weights(model: onnx_ir.Model) -> onnx.ModelProto:
    graph = model.graph
    stored = list(graph.initializers.values())
    small = [v for v in stored if v.const_value and v.const_value.nbytes <= MAX_OPERAND_BYTES]
    # A large tensor is made an input: its shape is all that is said of it.
    given = dict.fromkeys([*graph.inputs, *(value for value in stored if value.shape is not None)])
    view = onnx_ir.GraphView(
        list(given), graph.outputs, nodes=graph, initializers=small, name=graph.name
    )
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    onnx_ir.serde.serialize_graph_into(
        proto.graph,
        view,  # pyright: ignore[reportArgumentType] - its protocol asks a view for edits
        model_ir_version=model.ir_version,
    )
    for function in model.functions.values():
        onnx_ir.serde.serialize_function_into(
            proto.functions.add(), function, model_ir_version=model.ir_version
        )
    return proto


def _told(
    model: onnx_ir.Model, proto: onnx.ModelProto
) -> Iterator[tuple[onnx_ir.Value, onnx_ir.Value]]:
    """Yield values, each with one that has what was inferred for its name."""
    pending: list[tuple[onnx_ir.Graph, onnx.GraphProto | onnx.FunctionProto]] = [
        (model.graph, proto.graph)
    ]
    functions = zip(model.functions.values(), proto.functions, strict=True)
    pending += [(function.graph, inferred) for function, inferred in functions]
    while pending:
        graph, inferred = pending.pop()
        infos = {info.name: info for info in inferred.value_info}
        if isinstance(inferred, onnx.GraphProto):
            infos |= {info.name: info for info in (*inferred.input, *inferred.output)}
        for node, twin in zip(graph, inferred.node, strict=True):
            for value in node.outputs:
                yield from _better(value, infos)
            inner = list(subgraphs_of(node))
            if inner:
                pending += zip(inner, _bodies(twin), strict=True)
        for value in graph.inputs:
            yield from _better(value, infos)


def _bodies(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _better(
    value: onnx_ir.Value, infos: dict[str, onnx.ValueInfoProto]
) -> Iterator[tuple[onnx_ir.Value, onnx_ir.Value]]:
    if value.dtype is not None and value.shape is not None and value.shape.is_static():
        return  # nothing is left to be told
    info = infos.get(value.name or "")
    if info is not None:
        yield value, onnx_ir.serde.deserialize_value_info_proto(info, None)
