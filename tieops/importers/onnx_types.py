"""Types that a ModelProto declares: ones that can be kept, and that do not contradict the graph."""

from __future__ import annotations

import onnx
import onnx_ir

from tieops.errors import UnsupportedModelError
from tieops.importers.onnx_tensors import shown
from tieops.ir.brief import brief, brief_dtype

__all__ = ["check_declared", "check_type", "element_type"]

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

    Args:
        body: A graph or a function.
        types: The element types that follow from inputs, stored tensors and operators.

    Raises:
        UnsupportedModelError: With the value and both types.
    """
    infos: dict[str, onnx.ValueInfoProto] = {}
    for value in body.value_info:
        check_type(value.type, shown(value.name))
        known = infos.setdefault(value.name, value)
        if known is not value and known != value:
            raise UnsupportedModelError(
                f"{shown(value.name)} is declared twice, in two ways",
                None,
                "readers take either the first or the last: remove one",
            )
        _check_element(value, types)
    if isinstance(body, onnx.FunctionProto):
        return
    for value in (*body.input, *body.output):
        check_type(value.type, shown(value.name))
        _check_element(value, types)
    declared = {**infos, **{value.name: value for value in (*body.input, *body.output)}}
    for tensor in body.initializer:
        value = declared.get(tensor.name)
        if value is not None and value.type.HasField("tensor_type"):
            _check_stored(tensor, value)
    _check_annotations(body, types)


def _check_element(value: onnx.ValueInfoProto, types: dict[str, int]) -> None:
    says, is_ = element_type(value), types.get(value.name, 0)
    if says and is_ and says != is_:
        raise UnsupportedModelError(
            f"{shown(value.name)} is declared as another type than the graph gives it",
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
        agrees = len(sizes) == len(tensor.dims) and all(
            size in (None, stored) for size, stored in zip(sizes, tensor.dims, strict=True)
        )
    if not agrees:
        shape = [d.dim_value if d.HasField("dim_value") else "?" for d in declared.shape.dim]
        raise UnsupportedModelError(
            f"{shown(tensor.name)} is declared as another tensor than is stored",
            {
                "declared": brief(onnx_ir.DataType(declared.elem_type), shape),
                "stored": brief(onnx_ir.DataType(tensor.data_type), tensor.dims),
            },
            "export the model again, or remove the declaration",
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
