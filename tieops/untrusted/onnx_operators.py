"""Check nodes against ONNX's schemas (inputs, attributes, types), and sizes of their operands.

Sizes are checked where native code has trusted them: out of bounds, or a division by zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import onnx
import onnx.defs
import onnx_ir

from tieops.errors import UnsupportedModelError
from tieops.ir.operators.operand_checks import (
    Contradiction,
    ShapesByName,
    check_for,
    may_contradict,
)
from tieops.ir.operators.predicates import is_constant_operator
from tieops.untrusted.onnx_tensors import shown

__all__ = ["check_against", "check_operands", "operator_of", "result_types", "sizes_of"]


@dataclass(frozen=True)
class Operator:
    """An operator of one version, as its schema has it.

    Args:
        inputs: The least and the greatest number of inputs.
        outputs: The same of outputs.
        needed: For each of the least inputs, whether its name may not be empty.
        required: Attributes that must be there.
        types: The type of each attribute, as in ``AttributeProto``.
        results: For each output its element type, or the input that has the same one as
            ``-1 - index``; None where neither is known.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    needed: tuple[bool, ...]
    required: frozenset[str]
    types: dict[str, int]
    results: tuple[int | None, ...]


_ELEMENTS = {
    f"tensor({name.lower()})": number for name, number in onnx.TensorProto.DataType.items()
}

_TYPES: dict[object, int] = {
    getattr(onnx.defs.OpSchema.AttrType, name): number
    for name, number in onnx.AttributeProto.AttributeType.items()
    if hasattr(onnx.defs.OpSchema.AttrType, name)
}


_KNOWN = {int(each) for each in onnx_ir.DataType}
_NAME_A_TYPE = ("to", "dtype", "output_dtype")


@lru_cache(maxsize=4096)
def operator_of(domain: str, op_type: str, version: int) -> Operator | None:
    """Return what is known of an operator; None where onnx has no schema of it, or an old one."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    if schema.deprecated:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    sources = {each.type_str: -1 - place for place, each in reversed([*enumerate(schema.inputs)])
               if each.is_homogeneous}  # fmt: skip
    only = dict(_ELEMENTS)  # a type variable that allows one type is that type
    for each in schema.type_constraints:
        if len(each.allowed_type_strs) == 1 and each.allowed_type_strs[0] in _ELEMENTS:
            only[each.type_param_str] = _ELEMENTS[each.allowed_type_strs[0]]
    return Operator(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(each.option == single for each in schema.inputs[: schema.min_input]),
        frozenset(name for name, each in schema.attributes.items() if each.required),
        {name: _TYPES.get(each.type, 0) for name, each in schema.attributes.items()},
        tuple(
            only.get(each.type_str, sources.get(each.type_str)) if each.is_homogeneous else None
            for each in schema.outputs
        ),
    )


def check_against(operator: Operator, node: onnx.NodeProto, attributes: dict[str, int]) -> None:
    """Refuse a node that no reader could run: what walks the graph later relies on its inputs.

    Args:
        operator: What the schema says.
        node: The node.
        attributes: The type of each of its attributes.

    Raises:
        UnsupportedModelError: With the node, and what it lacks.
    """
    count = len(node.input)
    while count and not node.input[count - 1]:
        count -= 1
    least, most = operator.inputs
    outputs = len(node.output)
    if not least <= count <= most:
        _refuse(node, "inputs", count, least, most)
    if not operator.outputs[0] <= outputs <= operator.outputs[1]:
        _refuse(node, "outputs", outputs, *operator.outputs)
    for name, needed in zip(node.input, operator.needed, strict=False):
        if needed and not name:
            raise _wrong(node, "lacks an input that it needs", {"inputs": count})
    _check_attributes(operator, node, attributes)


def _check_attributes(operator: Operator, node: onnx.NodeProto, attributes: dict[str, int]) -> None:
    if operator.required and not operator.required <= attributes.keys():
        missing = sorted(operator.required - attributes.keys())
        raise _wrong(node, f"has no attribute {missing[0]}", {"missing": ", ".join(missing)})
    for name, kind in attributes.items():
        wanted = operator.types.get(name)
        if wanted is not None and kind != wanted:
            names = onnx.AttributeProto.AttributeType.Name
            facts = {"found": names(kind), "needed": names(wanted)}
            raise _wrong(node, f"has an attribute {shown(name)} of another type", facts)
        if name in _NAME_A_TYPE:
            _check_named_type(node, name)
    if is_constant_operator(node) and len(attributes) != 1:
        raise _wrong(node, "has not exactly one value", {"attributes": len(attributes)})


def _check_named_type(node: onnx.NodeProto, name: str) -> None:
    for attribute in node.attribute:
        if attribute.name == name and not attribute.ref_attr_name and attribute.i not in _KNOWN:
            raise _wrong(node, "names an unknown data type", {name: attribute.i})


def result_types(
    operator: Operator, node: onnx.NodeProto, known: dict[str, int]
) -> list[tuple[str, int]]:
    """Return the element type of each output that the schema and the inputs tell.

    Args:
        operator: What the schema says.
        node: The node.
        known: Element types of values, by name.
    """
    found: list[tuple[str, int]] = []
    for name, rule in zip(node.output, operator.results, strict=False):
        if rule is None or not name:
            continue
        if rule >= 0:
            found.append((name, rule))
        elif -1 - rule < len(node.input) and (kind := known.get(node.input[-1 - rule])):
            found.append((name, kind))
    return found


def _refuse(node: onnx.NodeProto, what: str, count: int, least: int, most: int) -> None:
    needed = str(least) if least == most else f"{least} to {most}" if most < 2**31 - 1 else (
        f"{least} or more"
    )  # fmt: skip
    raise _wrong(node, f"has the wrong number of {what}", {what: count, "needed": needed})


def _wrong(node: onnx.NodeProto, what: str, facts: Mapping[str, object]) -> UnsupportedModelError:
    title = f"{shown(node.op_type)} {shown(node.name or (node.output[0] if node.output else ''))}"
    return UnsupportedModelError(f"{title.strip()} {what}", facts, "export the model again")


def sizes_of(graph: onnx.GraphProto) -> ShapesByName:
    """Return the shapes that a graph's inputs declare and its stored tensors have."""
    found: dict[str, tuple[int | None, ...]] = {}
    for value in graph.input:
        declared = value.type.tensor_type
        if declared.HasField("shape"):
            found[value.name] = tuple(
                size.dim_value if size.HasField("dim_value") else None
                for size in declared.shape.dim
            )
    found.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
    return found


def check_operands(node: onnx.NodeProto, sizes: Callable[[], ShapesByName]) -> None:
    """Refuse operands that contradict their operator, of those that have crashed readers.

    Args:
        node: The node.
        sizes: Tells the shapes that are known; asked only for operators that are looked at.

    Raises:
        UnsupportedModelError: With the node, the operand and both sizes.
    """
    if not may_contradict(node):
        return
    try:
        check_for(node, sizes())
    except Contradiction as error:
        raise _contradicts(node, error.index, error.facts) from None


def _contradicts(
    node: onnx.NodeProto, index: int, facts: Mapping[str, object]
) -> UnsupportedModelError:
    name = node.input[index] if index < len(node.input) else node.name
    return UnsupportedModelError(
        f"{shown(node.op_type)} {shown(node.name)}".strip() + f" cannot read {shown(name)}",
        facts,
        "export the model again",
    )
