"""Infer shapes that a graph does not declare, with ONNX's own inference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import onnx
import onnx_ir
from google.protobuf.message import DecodeError, EncodeError
from onnx_ir.serde import SerdeError

from tieops.ir.edit import copy_model
from tieops.ir.walk import all_graphs, all_nodes, attribute_tensors, replace_tensors, subgraphs_of
from tieops.system.library_logs import suppress_logging

__all__ = ["derived", "infer_in_place", "shaped"]

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
    return dict(_inferred(model, lambda value: value.shape is None))


def derived(
    model: onnx_ir.Model, values: Collection[onnx_ir.Value]
) -> dict[onnx_ir.Value, onnx_ir.Shape | None]:
    """Return the shapes that follow from the model's inputs and weights alone.

    What a file says of the values between is not checked by those who run it: ONNX Runtime warns
    and goes on. So it must not decide what is computed.

    Args:
        model: The graph; left alone.
        values: What to tell the shapes of; one that does not follow is left out, or None.
    """
    if not values:
        return {}
    found = _inferred(model, lambda value: value in values, trusting=False)
    return {value: better.shape for value, better in found}


def infer_in_place(model: onnx_ir.Model) -> None:
    """Give values the shapes and dtypes that ONNX's own inference finds; weights are not read."""
    for value, better in list(_inferred(model, _is_unsaid)):
        if value.type is None:
            value.type = better.type
        if better.shape is not None:
            value.shape = better.shape


def _is_unsaid(value: onnx_ir.Value) -> bool:
    return value.type is None or value.shape is None or not value.shape.is_static()


def _inferred(
    model: onnx_ir.Model, is_wanted: Callable[[onnx_ir.Value], bool], *, trusting: bool = True
) -> Iterator[tuple[onnx_ir.Value, onnx_ir.Value]]:
    """Yield values that are wanted, each with one that has what was inferred for its name."""
    try:
        with suppress_logging("onnx_ir.serde"):  # it warns of a shape without a type
            proto = _without_weights(model)
        if not trusting:
            _forget_what_is_said(proto)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    except (
        onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError,
        ValueError, SerdeError, EncodeError, DecodeError,
    ):  # fmt: skip
        return  # also of a model with more than 10,000 functions, which onnx refuses
    yield from _told(model, proto, is_wanted)


def _values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    for graph in all_graphs(model):
        yield from graph.inputs
    for node in all_nodes(model):
        yield from node.outputs


def _without_weights(model: onnx_ir.Model) -> onnx.ModelProto:
    if any(tensor.nbytes > MAX_OPERAND_BYTES for tensor in attribute_tensors(model)):
        model = copy_model(model)
        replace_tensors(model, _stub)
    graph = model.graph
    stored = list(graph.initializers.values())
    # What is a graph input too, a caller may override: inference would compute with its values.
    small = [
        v
        for v in stored
        if v.const_value and v.const_value.nbytes <= MAX_OPERAND_BYTES and not v.is_graph_input()
    ]
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


def _stub(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    """Return a large tensor as one in a file that nobody opens: its dtype and shape."""
    if tensor.nbytes <= MAX_OPERAND_BYTES:
        return tensor
    shape = onnx_ir.Shape(tensor.shape.numpy())
    return onnx_ir.ExternalTensor(
        "none", 0, int(tensor.nbytes), tensor.dtype, shape=shape, name=tensor.name or ""
    )


def _forget_what_is_said(proto: onnx.ModelProto) -> None:
    """Remove the shapes of all values but the model's inputs."""
    for function in proto.functions:
        del function.value_info[:]
    nodes = [node for function in proto.functions for node in function.node]
    pending = [proto.graph, *(body for node in nodes for body in _bodies(node))]
    while pending:
        graph = pending.pop()
        del graph.value_info[:]
        edges = [*graph.output, *([] if graph is proto.graph else graph.input)]
        for info in edges:
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.ClearField("shape")
        pending += [body for node in graph.node for body in _bodies(node)]


def _told(
    model: onnx_ir.Model, proto: onnx.ModelProto, is_wanted: Callable[[onnx_ir.Value], bool]
) -> Iterator[tuple[onnx_ir.Value, onnx_ir.Value]]:
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
            for value in filter(is_wanted, node.outputs):
                yield from _better(value, infos)
            inner = list(subgraphs_of(node))
            if inner:
                pending += zip(inner, _bodies(twin), strict=True)
        for value in filter(is_wanted, graph.inputs):
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
    info = infos.get(value.name or "")
    if info is not None:
        yield value, onnx_ir.serde.deserialize_value_info_proto(info, None)
