"""Check declared types of a ModelProto: types that can be kept and that match the graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import onnx
import onnx_ir

from tieops.errors import UnsupportedModelError
from tieops.ir.notation import brief, brief_dtype
from tieops.untrusted.onnx_tensors import shown

__all__ = ["check_declared", "check_type", "element_type", "settle_declarations"]

_KNOWN = {int(each) for each in onnx_ir.DataType}


def element_type(value: onnx.ValueInfoProto) -> int:
    """Return the element type of a value that is a tensor; 0 where none is declared."""
    return value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0


def check_type(declared: onnx.TypeProto, name: str) -> None:
    """Refuse a type that onnx_ir has none for.

    Raises:
        UnsupportedModelError: For maps, unknown element types, and sequences of nothing.
    """
    kind = declared.WhichOneof("value")
    depth = 0
    while kind in ("sequence_type", "optional_type"):
        inner = getattr(declared, kind)
        depth += 1
        if not inner.HasField("elem_type") or depth > 8:
            raise _unknown(name, f"a {kind} of nothing" if depth <= 8 else "too many sequences")
        declared = inner.elem_type
        kind = declared.WhichOneof("value")
    if depth and kind is None:
        raise _unknown(name, "a sequence of nothing")
    if kind in ("tensor_type", "sparse_tensor_type"):
        if getattr(declared, kind).elem_type not in _KNOWN:
            raise _unknown(name, f"data type {getattr(declared, kind).elem_type}")
    elif kind is not None:
        raise _unknown(name, kind.removesuffix("_type"))


def check_declared(body: onnx.GraphProto | onnx.FunctionProto, types: dict[str, int]) -> None:
    """Refuse declarations that contradict each other, a stored tensor, or the operators.

    Refused is what ONNX Runtime refuses: another element type of what a node computes, and an input
    whose stored value has another type or shape. What it does not look at is let through: the
    ``value_info`` of a stored tensor (optimizers that fuse nodes leave stale ones), of an input and
    of an output, and the output of a stored tensor. `settle_declarations` fixes these.

    Args:
        body: A graph or a function.
        types: The element types that follow from inputs, stored tensors and operators.

    Raises:
        UnsupportedModelError: With the value and both types.
    """
    stored: dict[str, onnx.TensorProto] = {}
    ports: set[str] = set()
    if isinstance(body, onnx.GraphProto):
        stored = {tensor.name: tensor for tensor in body.initializer}
        ports = {value.name for value in (*body.input, *body.output)}
    infos: dict[str, onnx.ValueInfoProto] = {}
    for value in body.value_info:
        check_type(value.type, shown(value.name))
        if value.name in stored or value.name in ports:
            continue
        known = infos.setdefault(value.name, value)
        if known is not value and known != value:
            raise UnsupportedModelError(
                f"{shown(value.name)} has two conflicting declarations",
                None,
                "readers take either the first or the last: remove one",
            )
        _check_element(value, types)
    if isinstance(body, onnx.FunctionProto):
        return
    inputs = {value.name for value in body.input}
    for value in (*body.input, *body.output):
        check_type(value.type, shown(value.name))
        if value.name not in stored:
            _check_element(value, types)
        elif value.name in inputs and value.type.HasField("tensor_type"):
            _check_stored(stored[value.name], value)
    _check_annotations(body, types)


def settle_declarations(graph: onnx_ir.Graph) -> None:
    """Declare values as ONNX Runtime takes them: stored tensors as what they are.

    An input with a stored value keeps what it declares, which may have sizes that vary. A negative
    size, as some exporters write it, is one that is not known.

    Raises:
        UnsupportedModelError: For an input whose stored value is another tensor than it declares.
    """
    made = (output for node in graph for output in node.outputs)
    for value in chain(graph.inputs, graph.outputs, made):
        if value.shape is not None and any(map(_is_negative, value.shape)):
            sizes = (None if _is_negative(size) else size for size in value.shape)
            value.shape = onnx_ir.Shape(sizes)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if not value.is_graph_input():
            value.shape = onnx_ir.Shape(tensor.shape.numpy())
        if not value.is_graph_input() or value.dtype is None:
            value.type = onnx_ir.TensorType(tensor.dtype)
        elif value.dtype != tensor.dtype or not _fits(tensor.shape.numpy(), value.shape):
            raise _contradiction(
                value.name or "", brief(value.dtype, value.shape), brief(tensor.dtype, tensor.shape)
            )


def _is_negative(size: int | onnx_ir.SymbolicDim) -> bool:
    return isinstance(size, int) and size < 0


def _fits(stored: Sequence[int], declared: onnx_ir.Shape | None) -> bool:
    if declared is None:
        return True
    sizes = (size if isinstance(size, int) else None for size in declared)
    return len(stored) == len(declared) and all(
        wanted in (None, size) for size, wanted in zip(stored, sizes, strict=True)
    )


def _check_element(value: onnx.ValueInfoProto, types: dict[str, int]) -> None:
    says, is_ = element_type(value), types.get(value.name, 0)
    if says and is_ and says != is_:
        raise UnsupportedModelError(
            f"{shown(value.name)} is declared with a type that the graph does not give it",
            {
                "declared": brief_dtype(onnx_ir.DataType(says)),
                "given": brief_dtype(onnx_ir.DataType(is_)),
            },
            "export the model again",
        )


def _check_stored(tensor: onnx.TensorProto, value: onnx.ValueInfoProto) -> None:
    declared = value.type.tensor_type
    agrees = declared.elem_type in (0, tensor.data_type)
    if agrees and declared.HasField("shape"):
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
        sizes = [None if size is not None and size < 0 else size for size in sizes]
        agrees = len(sizes) == len(tensor.dims) and all(
            size in (None, stored) for size, stored in zip(sizes, tensor.dims, strict=True)
        )
    if not agrees:
        shape = [d.dim_value if d.HasField("dim_value") else "?" for d in declared.shape.dim]
        raise _contradiction(
            tensor.name,
            brief(onnx_ir.DataType(declared.elem_type), shape),
            brief(onnx_ir.DataType(tensor.data_type), tensor.dims),
        )


def _contradiction(name: str, declared: str, stored: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the input {shown(name)} is declared with a type or shape that its "
        "stored tensor does not have",
        {"declared": declared, "stored": stored},
        "export the model again, or remove the input: its stored value is a weight then",
    )


def _check_annotations(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    made = {name for node in graph.node for name in node.output} if (
        graph.quantization_annotation) else set[str]()  # fmt: skip
    seen: set[str] = set()
    for each in graph.quantization_annotation:
        if each.tensor_name in seen or not (each.tensor_name in types or each.tensor_name in made):
            raise UnsupportedModelError(
                f"the annotation of {shown(each.tensor_name)} would be lost: there is another one "
                "or no such tensor",
                {"annotations": len(graph.quantization_annotation)},
                "remove it: del graph.quantization_annotation[:]",
            )
        seen.add(each.tensor_name)


def _unknown(name: str, kind: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} has a type that tieops cannot keep", {"type": kind}, "export the model again"
    )
