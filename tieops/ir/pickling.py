"""Convert a graph to plain data, to pickle it or send it to another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir

from tieops.ir.edit import copy_model
from tieops.ir.walk import all_graphs

__all__ = ["content_of", "model_of"]

Array = np.ndarray[Any, Any]


def content_of(model: onnx_ir.Model) -> tuple[bytes, list[Array]]:
    """Return a graph without its stored tensors, and the bytes of these.

    What lies in a data file, in a mapping or behind a URL is read: the content is complete, and
    nothing has to be where it was when a graph is made of it again. A tensor that several values
    share is there once. The graph alone stays below protobuf's limit of two gigabytes.

    Args:
        model: The graph; left alone.
    """
    twin = copy_model(model)
    arrays: list[Array] = []
    places: dict[int, int] = {}
    pairs = zip(all_graphs(model), all_graphs(twin), strict=True)
    for ours, theirs in pairs:
        for name, value in ours.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype.is_string():
                continue
            if id(tensor) not in places:
                places[id(tensor)] = len(arrays)
                arrays.append(np.frombuffer(tensor.tobytes(), np.uint8))
            theirs.initializers[name].const_value = onnx_ir.ExternalTensor(
                str(places[id(tensor)]),
                None,
                int(tensor.nbytes),
                tensor.dtype,
                shape=onnx_ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )
    return onnx_ir.to_proto(twin).SerializeToString(), arrays


def model_of(graph: bytes, arrays: Sequence[Array]) -> onnx_ir.Model:
    """Return the graph of a content: the inverse of ``content_of``.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }''')
        >>> again = model_of(*content_of(graph))
        >>> again.graph.initializers["w"].const_value.numpy().tolist()
        [1.0, 2.0]
    """
    model = onnx_ir.from_proto(onnx.ModelProto.FromString(graph))
    made: dict[str, onnx_ir.TensorProtocol] = {}
    for each in all_graphs(model):
        for value in each.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, onnx_ir.ExternalTensor):
                continue
            place = str(tensor.location)
            if place not in made:
                made[place] = _tensor(tensor, arrays[int(place)])
            value.const_value = made[place]
    return model


def _tensor(about: onnx_ir.ExternalTensor, data: Array) -> onnx_ir.TensorProtocol:
    shape = about.shape.numpy()
    if about.dtype.bitwidth < 8:
        return onnx_ir.PackedTensor(data, about.dtype, shape=shape, name=about.name)
    values = data.view(about.dtype.numpy()).reshape(shape)
    return onnx_ir.Tensor(values, about.dtype, name=about.name)
