"""Check attributes of a NodeProto: exactly one value, of the declared type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import AttributeProto

from tieops.errors import UnsupportedModelError
from tieops.untrusted.limits import Limits
from tieops.untrusted.onnx_tensors import check_tensor, shown
from tieops.untrusted.onnx_types import check_type

__all__ = ["check_attributes", "check_defaults", "check_metadata"]

_FIELDS = {
    AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t", AttributeProto.GRAPH: "g", AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings", AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs", AttributeProto.TYPE_PROTOS: "type_protos",
}  # fmt: skip
_MUST_BE_THERE = {AttributeProto.TENSOR, AttributeProto.GRAPH, AttributeProto.TYPE_PROTO}
_NOT_VALUES = {"name", "type", "doc_string", "ref_attr_name"}


def check_attributes(
    node: onnx.NodeProto, function: onnx.FunctionProto | None, limits: Limits
) -> dict[str, int]:
    """Refuse attributes that readers read differently; return the type of each.

    Args:
        node: The node.
        function: The function that it is in, if any: only there may attributes refer to others.
        limits: What tensors may hold.

    Raises:
        UnsupportedModelError: With the node and the attribute.
        UntrustedFileError: For a tensor whose bytes are not what its shape says.
    """
    if len(node.metadata_props) > 1:
        check_metadata(node.metadata_props, shown(node.name or node.op_type))
    found: dict[str, int] = {}
    for attribute in node.attribute:
        name = attribute.name
        if name in found:
            raise _wrong(node, f"has two attributes of one name: {shown(name)}", {})
        if not name:
            raise _wrong(node, "has an attribute without a name", {})
        found[name] = attribute.type
        _check_one(node, attribute, function)
        if attribute.type == AttributeProto.TENSOR and not attribute.ref_attr_name:
            check_tensor(attribute.t, limits)
        elif attribute.type == AttributeProto.TENSORS:
            for tensor in attribute.tensors:
                check_tensor(tensor, limits)
    return found


def check_metadata(entries: Sequence[onnx.StringStringEntryProto], name: str) -> None:
    """Refuse two values under one key; ``onnx_ir`` itself writes some entries twice.

    Raises:
        UnsupportedModelError: With the key.
    """
    found: dict[str, str] = {}
    for each in entries:
        if found.setdefault(each.key, each.value) != each.value:
            raise UnsupportedModelError(
                f"duplicate metadata key {shown(each.key)} of {name}",
                {"entries": len(entries)},
                "readers take either the first or the last: remove one",
            )


def check_defaults(function: onnx.FunctionProto, limits: Limits) -> None:
    """Refuse default values of a function's attributes that tieops cannot check like others.

    Raises:
        UnsupportedModelError: For graphs and external tensors, and what nodes may not have either.
        UntrustedFileError: For a tensor whose bytes are not what its shape says.
    """
    as_node = onnx.NodeProto(op_type=function.name, attribute=function.attribute_proto)
    found = check_attributes(as_node, None, limits)
    graphs = {AttributeProto.GRAPH, AttributeProto.GRAPHS} & set(found.values())
    tensors = [t for each in as_node.attribute for t in (each.t, *each.tensors)]
    if graphs or any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors):
        raise UnsupportedModelError(
            f"function {shown(function.name)} has a graph or external data as a default",
            None,
            "give it at the calls of the function, or store it in the function's body",
        )


def _check_one(
    node: onnx.NodeProto, attribute: AttributeProto, function: onnx.FunctionProto | None
) -> None:
    name = shown(attribute.name)
    own = _FIELDS.get(attribute.type)
    if own is None:
        kinds = AttributeProto.AttributeType
        kind = attribute.type
        listed = kinds.Name(kind) if kind in kinds.values() else str(kind)
        raise _wrong(node, f"has an attribute {name} of a type that tieops cannot keep",
                     {"type": listed})  # fmt: skip
    values = {field.name for field, _ in attribute.ListFields()} - _NOT_VALUES
    if attribute.ref_attr_name:
        known = () if function is None else (
            *function.attribute, *(each.name for each in function.attribute_proto)
        )  # fmt: skip
        if values or attribute.ref_attr_name not in known:
            refers = {"refers to": shown(attribute.ref_attr_name)}
            raise _wrong(node, f"has an attribute {name} that refers to none", refers)
        return
    if values - {own}:
        facts = {"type": own, "holds": ", ".join(sorted(values))}
        raise _wrong(node, f"has an attribute {name} that holds another type than it says", facts)
    if own not in values and attribute.type in _MUST_BE_THERE:
        raise _wrong(node, f"has an attribute {name} without a value", {"type": own})
    if attribute.type == AttributeProto.TYPE_PROTO:
        check_type(attribute.tp, name)
    for each in attribute.type_protos:
        check_type(each, name)
    if attribute.type == AttributeProto.STRINGS:
        _check_texts(node, attribute)


def _check_texts(node: onnx.NodeProto, attribute: AttributeProto) -> None:
    for text in attribute.strings:
        try:
            str(text, "utf-8")
        except UnicodeDecodeError as error:
            what = f"has an attribute {shown(attribute.name)} that is not UTF-8"
            raise _wrong(node, what, {"byte": error.start}) from error


def _wrong(node: onnx.NodeProto, what: str, facts: Mapping[str, object]) -> UnsupportedModelError:
    title = f"{shown(node.op_type)} {shown(node.name or (node.output[0] if node.output else ''))}"
    return UnsupportedModelError(f"{title.strip()} {what}", facts, "export the model again")
