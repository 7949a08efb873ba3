"""Copy a graph so that the copy owns everything that an edit can change.

``onnx_ir`` shares tensors, types and attributes between a graph and its clones, and a tensor of a
``ModelProto`` writes its name through to the proto. Renaming a value renames its tensor, so an edit
of a clone would show in the model that it was made from, and in the caller's proto. A graph that
is edited therefore owns all of these; what it shares is the bytes of its weights.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.walk import all_graphs

__all__ = ["BorrowedTensor", "copy_model", "own_tensors", "snapshot"]

Array = np.ndarray[Any, Any]
_PLAIN = (
    onnx_ir.Tensor,
    onnx_ir.ExternalTensor,
    onnx_ir.StringTensor,
    onnx_ir.LazyTensor,
    onnx_ir.PackedTensor,
)
"""Tensors whose name is an attribute of their own."""


class BorrowedTensor(onnx_ir.LazyTensor):
    """A tensor that reads its values from another one, and has a name of its own.

    Args:
        lender: What holds the values: a tensor of a proto, or of a class that is not known.
    """

    __slots__ = ("lender",)

    def __init__(self, lender: onnx_ir.TensorProtocol) -> None:
        super().__init__(
            lambda: lender,
            lender.dtype,
            onnx_ir.Shape(lender.shape.numpy(), frozen=True),
            name=lender.name,
            doc_string=lender.doc_string,
            metadata_props=dict(lender.metadata_props),
        )
        self.lender = lender

    def __reduce__(self) -> tuple[Any, ...]:
        return _borrowed, (self.lender, self.name, self.doc_string, dict(self.metadata_props))


def _borrowed(
    lender: onnx_ir.TensorProtocol, name: str, doc_string: str | None, metadata: dict[str, str]
) -> BorrowedTensor:
    tensor = BorrowedTensor(lender)
    tensor.name, tensor.doc_string = name, doc_string
    tensor.metadata_props.clear()
    tensor.metadata_props.update(metadata)
    return tensor


def copy_model(model: onnx_ir.Model) -> onnx_ir.Model:
    """Return a copy of a graph that shares nothing with it but the bytes of its weights.

    Raises:
        RuntimeError: If the graph is not in order, or reads what nothing defines.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }''')
        >>> twin = copy_model(graph)
        >>> twin.graph.initializers["w"].name = "v"
        >>> graph.graph.initializers["w"].const_value.name
        'w'
    """
    twin = model.clone()
    _own(twin, _owned)
    return twin


def own_tensors(model: onnx_ir.Model) -> None:
    """Give a graph that is about to be edited tensors, types and attributes of its own, in place.

    Its weights stay where they are.
    """
    _own(model, _owned)


def snapshot(model: onnx_ir.Model) -> None:
    """As ``own_tensors``, and copy what somebody else could still write to, in place.

    That is what lies in a proto, in an array that can be written, or in a torch tensor. Arrays that
    are read-only, data files and tensors that are computed when they are read stay shared.
    """
    _own(model, _copied)


_Owned = Callable[[onnx_ir.TensorProtocol], onnx_ir.TensorProtocol]
"""Returns the tensor that a copy owns in the place of another."""


def _own(model: onnx_ir.Model, new: _Owned) -> None:
    # One tensor of two values stays one: that is what says that they are one range of bytes.
    made: dict[int, tuple[onnx_ir.TensorProtocol, onnx_ir.TensorProtocol]] = {}

    def owned(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
        known = made.get(id(tensor))
        if known is None:  # the old tensor is held, so that its id is not given again
            known = made[id(tensor)] = tensor, new(tensor)
        return known[1]

    for function in model.functions.values():
        _own_attributes(function.attributes, owned)
    for graph in all_graphs(model):
        for value in _values(graph):
            _own_value(value, owned)
        for node in graph:
            _own_attributes(node.attributes, owned)


def _own_value(value: onnx_ir.Value, owned: _Owned) -> None:
    value.type = _own_type(value.type)
    for key, held in list(value.meta.items()):
        if isinstance(held, dict):  # of a quantization annotation, which is written
            value.meta[key] = dict(held)
    if value.const_value is not None:
        value.const_value = owned(value.const_value)


def _own_attributes(attributes: MutableMapping[str, onnx_ir.Attr], owned: _Owned) -> None:
    for name, attr in list(attributes.items()):
        attributes[name] = _own_attribute(attr, owned)


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    for value in graph.initializers.values():
        if not value.is_graph_input():
            yield value
    for node in graph:
        yield from node.outputs


def _own_type(kind: onnx_ir.TypeProtocol | None) -> onnx_ir.TypeProtocol | None:
    if type(kind) is onnx_ir.TensorType:  # nearly all are, and a deep copy takes its time
        return onnx_ir.TensorType(kind.dtype, denotation=kind.denotation)
    return copy.deepcopy(kind)


def _own_attribute(attr: onnx_ir.Attr, owned: _Owned) -> onnx_ir.Attr:
    value: Any = attr.value
    if not attr.is_ref():
        match attr.type:
            case onnx_ir.AttributeType.TENSOR:
                value = owned(attr.as_tensor())
            case onnx_ir.AttributeType.TENSORS:
                value = [owned(each) for each in attr.as_tensors()]
            case onnx_ir.AttributeType.TYPE_PROTO | onnx_ir.AttributeType.TYPE_PROTOS:
                value = copy.deepcopy(value)
            case _:
                pass
    return onnx_ir.Attr(attr.name, attr.type, value, attr.ref_attr_name, doc_string=attr.doc_string)


def _owned(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    if not isinstance(tensor, _PLAIN):
        return BorrowedTensor(tensor)
    twin = copy.copy(tensor)
    if tensor.metadata_props:
        # There is no public way to give a tensor another dict.
        twin._metadata_props = dict(tensor.metadata_props)  # pyright: ignore[reportPrivateUsage]
    return twin


def _copied(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    about: dict[str, Any] = {
        "name": tensor.name,
        "doc_string": tensor.doc_string or None,
        "metadata_props": dict(tensor.metadata_props),
    }
    shape = onnx_ir.Shape(tensor.shape.numpy())
    if isinstance(tensor, onnx_ir.serde.TensorProtoTensor):
        return _out_of_proto(tensor, shape, about)
    if isinstance(tensor, onnx_ir.StringTensor):
        return onnx_ir.StringTensor([*tensor.string_data()], shape=shape, **about)
    if isinstance(tensor, onnx_ir.PackedTensor):
        packed = tensor.numpy_packed()
        if not _is_read_only(packed):
            return onnx_ir.PackedTensor(packed.copy(), tensor.dtype, shape=shape, **about)
    elif isinstance(tensor, onnx_ir.Tensor):
        try:
            array = tensor.numpy()
        except NotImplementedError:  # of torch's meta device, which has no values
            return _owned(tensor)
        if not (_is_read_only(array) and isinstance(tensor.raw, np.ndarray)):
            return onnx_ir.Tensor(array.copy(), tensor.dtype, shape=shape, **about)
    elif not isinstance(tensor, _PLAIN):
        return onnx_ir.Tensor(tensor.numpy().copy(), tensor.dtype, shape=shape, **about)
    return _owned(tensor)


def _out_of_proto(
    tensor: onnx_ir.serde.TensorProtoTensor, shape: onnx_ir.Shape, about: dict[str, Any]
) -> onnx_ir.TensorProtocol:
    if tensor.dtype.bitwidth < 8 and tensor.raw.HasField("raw_data"):
        packed = np.frombuffer(tensor.raw.raw_data, np.uint8)
        return onnx_ir.PackedTensor(packed, tensor.dtype, shape=shape, **about)
    # A proto gives its bytes as a copy, so that this is the only one.
    return onnx_ir.Tensor(tensor.numpy(), tensor.dtype, shape=shape, **about)


def _is_read_only(array: Array) -> bool:
    """Return whether nobody can write to an array, or its owner has said that nobody should."""
    at: Any = array  # numpy's stub knows arrays alone for the base of one
    while isinstance(at, np.ndarray):
        if at.flags.writeable:
            return False
        at = at.base
    while isinstance(at, memoryview):
        if not at.readonly:
            return False
        at = at.obj
    return at is None or isinstance(at, bytes | mmap.mmap)
