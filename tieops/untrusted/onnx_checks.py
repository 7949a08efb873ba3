"""Refuse what readers of a ModelProto would drop or disagree about."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

import onnx
import onnx.defs
import onnx_ir
from google.protobuf.unknown_fields import UnknownFieldSet

from tieops.errors import UnsupportedModelError, UntrustedFileError
from tieops.ir.dataflow.captures import branch_captures, is_in_order
from tieops.ir.notation import printable
from tieops.ir.operators.identity import domain_of, domain_title
from tieops.ir.walk import all_graphs, all_nodes, attribute_tensors, stored_values
from tieops.untrusted.limits import Limits
from tieops.untrusted.onnx_attributes import check_defaults, check_metadata
from tieops.untrusted.onnx_calls import check_calls, function_key
from tieops.untrusted.onnx_graphs import GraphChecks, refuse_repeats
from tieops.untrusted.onnx_tensors import check_tensor, shown

__all__ = ["check_branches", "check_graphs", "check_model", "check_stored", "put_in_order"]

NEWEST_OPSET = onnx.defs.onnx_opset_version()


def check_model(proto: onnx.ModelProto, limits: Limits, *, operators: bool = True) -> None:
    """Refuse, by name, what would be lost or read in two ways.

    Args:
        proto: The model.
        limits: What it may hold.
        operators: Whether nodes are held to ONNX's schemas, which take 8 MB of a process.

    Raises:
        UnsupportedModelError: For what tieops cannot keep, what readers read differently, and what
            is more than a limit.
        UntrustedFileError: For a tensor whose bytes are not what its shape and dtype say.
    """
    if not proto.HasField("graph"):
        raise UntrustedFileError("the file has no graph", None, "write or copy it again")
    _check_version(proto)
    opsets = _opsets(proto.opset_import, "the model")
    if not proto.opset_import:
        raise UnsupportedModelError("the model imports no opset", None, "export it again")
    if proto.training_info:
        raise UnsupportedModelError(
            "the model has training_info, which tieops would lose",
            {"entries": len(proto.training_info)},
            "remove it: del proto.training_info[:]",
        )
    if len(UnknownFieldSet(proto)) or len(UnknownFieldSet(proto.graph)):
        raise UnsupportedModelError(
            f"the model has fields unknown to onnx {onnx.__version__}, which would be lost",
            None,
            "upgrade onnx",
        )
    check_metadata(proto.metadata_props, "the model")
    refuse_repeats("device configuration", (each.name for each in proto.configuration))
    _check_functions(proto.functions)
    check_calls(proto, limits)
    functions = {function_key(function): function for function in proto.functions}
    checks = GraphChecks(functions, limits, operators=operators)
    checks.run(proto.graph, opsets, None)
    for function in proto.functions:
        check_defaults(function, limits)
        name = f"function {shown(function.name)}"
        checks.run(function, _opsets(function.opset_import, name), function)


def _check_version(proto: onnx.ModelProto) -> None:
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"unsupported ir_version {proto.ir_version}",
            {"known": f"1 to {onnx.IR_VERSION}"},
            "upgrade onnx" if proto.ir_version > 0 else "export the model again",
        )


def _opsets(imports: Sequence[onnx.OperatorSetIdProto], what: str) -> dict[str, int]:
    refuse_repeats(
        "opset import" if what == "the model" else f"opset import of {what}",
        (domain_title(each.domain) for each in imports),
    )
    for each in imports:
        domain = domain_of(each.domain)
        newest = NEWEST_OPSET if not domain else 2**31 - 1
        if not 1 <= each.version <= newest:
            raise UnsupportedModelError(
                f"{what} imports opset {each.version} of {shown(domain_title(domain))}",
                {"known": f"1 to {newest}"},
                "upgrade onnx" if each.version > 0 else "export the model again",
            )
    return {domain_of(each.domain): each.version for each in imports}


def _check_functions(functions: Sequence[onnx.FunctionProto]) -> None:
    refuse_repeats("function", ("{}::{}:{}".format(*function_key(each)) for each in functions))
    for function in functions:
        name, domain = shown(function.name), domain_of(function.domain)
        if not domain or not function.name:
            raise UnsupportedModelError(
                f"function {name or '?'} is in the domain of ONNX's own operators",
                {"domain": shown(function.domain) or "''"},
                "readers run either the operator or the function: give it a domain of its own",
            )
        refuse_repeats(f"input of function {name}", function.input)
        refuse_repeats(f"output of function {name}", function.output)
        attributes = [*function.attribute, *(each.name for each in function.attribute_proto)]
        refuse_repeats(f"attribute of function {name}", attributes)


def check_graphs(model: onnx_ir.Model) -> None:
    """Refuse a graph that reads what nothing defines, or returns what nothing in it defines.

    Raises:
        UnsupportedModelError: With the value and the node that reads it, or the graph.
    """
    inputs = {value for graph in all_graphs(model) for value in graph.inputs}
    inputs |= {value for function in model.functions.values() for value in function.inputs}
    for graph in all_graphs(model):
        stored = set(graph.initializers.values())
        inputs |= stored
    for graph in all_graphs(model):
        for output in graph.outputs:
            if output.graph is graph and (output.producer() is not None or output in inputs):
                continue
            raise UnsupportedModelError(
                f"nothing in {printable(graph.name or 'the graph')} defines its output "
                f"{printable(output.name or '?')}",
                None,
                "export the model again; to return an outer value, return an Identity of it",
            )
    for node in all_nodes(model):
        for value in node.inputs:
            if value is None or value.producer() is not None or value in inputs:
                continue
            raise UnsupportedModelError(
                f"nothing defines {printable(value.name or '?')}",
                {"read by": f"{node.op_type} {printable(node.name or '')}".strip()},
                "export the model again: an initializer or a node is missing",
            )


def check_branches(model: onnx_ir.Model) -> None:
    """Refuse a tensor stored in one branch under the name of an outer value that another reads.

    ONNX Runtime hands what any branch of a node reads of outer graphs to all of its branches, by
    name, and it takes the place of what is stored there; with some optimizations it does not.

    Raises:
        UnsupportedModelError: With the tensor and the branch.
    """
    for branches, captured in branch_captures(model):
        for branch in branches:
            read = {name for other in branches if other is not branch for name in captured[other]}
            for name, value in branch.initializers.items():
                if name not in read or not (value.uses() or value.is_graph_output()):
                    continue
                raise UnsupportedModelError(
                    f"the tensor {shown(name)} that is stored in the branch "
                    f"{shown(branch.name or '')} has the name of an outer value, which another "
                    "branch of the same node reads",
                    None,
                    "ONNX Runtime reads the outer value in both: rename the tensor",
                )


def check_stored(model: onnx_ir.Model, limits: Limits) -> None:
    """Refuse tensors that ``onnx_ir`` took from a file as they were.

    Raises:
        UntrustedFileError: For a tensor whose bytes are not what its shape and dtype say.
    """
    stored = (value.const_value for value in stored_values(model))
    for tensor in chain(stored, attribute_tensors(model)):
        if isinstance(tensor, onnx_ir.serde.TensorProtoTensor):
            check_tensor(tensor.raw, limits)


def put_in_order(model: onnx_ir.Model) -> None:
    """Sort nodes that come before what they read: ONNX Runtime runs such files, others cannot.

    Raises:
        UnsupportedModelError: If the graph has a cycle.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        if is_in_order(graph):
            continue
        with suppress(ValueError):  # a circle that onnx_ir sees
            graph.sort()
        if not is_in_order(graph):
            raise UnsupportedModelError(
                "the graph has a cycle",
                {"graph": shown(graph.name or "")},
                "export the model again",
            )
