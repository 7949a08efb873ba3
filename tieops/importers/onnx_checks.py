"""What a ModelProto must not hold, because readers drop it or disagree about it."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir

from tieops.errors import UnsupportedModelError, UntrustedFileError
from tieops.ir.brief import brief, printable
from tieops.ir.scopes import all_graphs, all_nodes

__all__ = ["check_external", "check_graphs", "check_model", "put_in_order"]


def check_model(proto: onnx.ModelProto) -> None:
    """Refuse, by name, what would be lost or read in two ways.

    Raises:
        UnsupportedModelError: For training info, sparse initializers, initializers without a name,
            two of one name, two opsets of one domain, two functions of one name.
        UntrustedFileError: For a tensor whose bytes are not what its shape and dtype say.
    """
    if not proto.HasField("graph"):
        raise UntrustedFileError("the file holds no graph", None, "write or copy it again")
    if not proto.opset_import:
        raise UnsupportedModelError("the model imports no opset", None, "export it again")
    if proto.training_info:
        raise UnsupportedModelError(
            "the model has training_info, which tieops would lose",
            {"entries": len(proto.training_info)},
            "remove it: del proto.training_info[:]",
        )
    _refuse_repeats("opset import", (o.domain or "ai.onnx" for o in proto.opset_import))
    _refuse_repeats("function", (f"{f.domain}::{f.name}:{f.overload}" for f in proto.functions))
    for graph in _graphs(proto.graph):
        _check_graph(graph)
    for function in proto.functions:
        for node in function.node:
            for graph in _node_graphs(node):
                for nested in _graphs(graph):
                    _check_graph(nested)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            stack.extend(_node_graphs(node))


def _node_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_graph(graph: onnx.GraphProto) -> None:
    name = printable(graph.name) or "the graph"
    if graph.sparse_initializer:
        first = graph.sparse_initializer[0].values.name
        raise UnsupportedModelError(
            f"{name} has sparse initializers, which tieops would lose",
            {"sparse": len(graph.sparse_initializer), "first": printable(first)},
            "store them dense",
        )
    nameless = sum(1 for tensor in graph.initializer if not tensor.name)
    if nameless:
        raise UnsupportedModelError(
            f"{name} has initializers without a name, which nothing can read",
            {"nameless": nameless},
            "name or remove them",
        )
    _refuse_repeats(f"initializer of {name}", (tensor.name for tensor in graph.initializer))
    _refuse_repeats(f"input of {name}", (value.name for value in graph.input))
    _refuse_repeats(f"output of {name}", (value.name for value in graph.output))
    for tensor in graph.initializer:
        check_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                check_tensor(attribute.t)


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UnsupportedModelError(
            f"two of one name: {what} {printable(repeated[0])}",
            {"repeated": len(repeated)},
            "readers take either the first or the last: rename or remove one",
        )


_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_FIELD_OF = {
    "FLOAT": "float_data", "COMPLEX64": "float_data", "DOUBLE": "double_data",
    "COMPLEX128": "double_data", "INT64": "int64_data", "UINT32": "uint64_data",
    "UINT64": "uint64_data",
}  # fmt: skip
"""The field of a TensorProto for values of each dtype, by onnx.proto; int32_data for all others."""


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Refuse a tensor whose bytes are not exactly what its shape and dtype need.

    Raises:
        UntrustedFileError: With the tensor's name and both sizes.
    """
    name = printable(tensor.name) or "a tensor"
    try:
        dtype = onnx_ir.DataType(tensor.data_type)
    except ValueError as error:
        raise UntrustedFileError(f"{name} has the unknown data type {tensor.data_type}") from error
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape) or tensor.HasField("segment"):
        raise UntrustedFileError(f"{name} has no valid shape", {"dims": list(shape)[:8]})
    if dtype in (onnx_ir.DataType.STRING, onnx_ir.DataType.UNDEFINED):
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_entries(tensor, name)
        return
    elements = math.prod(shape)
    need = -(-elements * dtype.bitwidth // 8)
    facts = {name: brief(dtype, shape)}
    fields = [field for field in _FIELDS if len(getattr(tensor, field))]
    fields += ["raw_data"] if tensor.HasField("raw_data") else []
    if len(fields) > 1:
        have = {**facts, "fields": ", ".join(fields)}
        raise UntrustedFileError(f"{name} has its values in two fields, which may differ", have)
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != need:
            have = {**facts, "bytes stored": len(tensor.raw_data), "bytes needed": need}
            raise UntrustedFileError(f"{name} holds other data than its shape says", have)
        return
    own = _FIELD_OF.get(dtype.name, "int32_data")
    if fields and fields != [own]:
        have = {**facts, "stored as": fields[0], "belongs in": own}
        raise UntrustedFileError(f"{name} has its values in another dtype's field", have)
    stored = len(getattr(tensor, own))
    per_value = {2: 4, 4: 2}.get(dtype.bitwidth, 1)
    wanted = -(-elements // per_value)
    if dtype in (onnx_ir.DataType.COMPLEX64, onnx_ir.DataType.COMPLEX128):
        wanted *= 2
    if stored != wanted:
        have = {**facts, "values stored": stored, "values needed": wanted}
        raise UntrustedFileError(f"{name} holds other data than its shape says", have)


def _check_entries(tensor: onnx.TensorProto, name: str) -> None:
    if tensor.HasField("raw_data"):
        raise UntrustedFileError(f"{name} has both external and inline data")
    keys = Counter(entry.key for entry in tensor.external_data)
    for key in ("location", "offset", "length"):
        if keys[key] > 1:
            raise UntrustedFileError(f"{name} says its external {key} twice")
    for entry in tensor.external_data:
        number = entry.key in ("offset", "length")
        strict = entry.value.isascii() and entry.value.isdigit() and len(entry.value) <= 19
        if number and not strict:
            raise UntrustedFileError(
                f"{name} has no valid external {entry.key}",
                {entry.key: printable(entry.value[:40])},
            )
        if entry.key == "location" and (
            not entry.value or "\0" in entry.value or "\\" in entry.value or len(entry.value) > 4096
        ):
            raise UntrustedFileError(
                f"{name} has no valid external location", {"location": printable(entry.value[:80])}
            )
    if not keys["location"]:
        raise UntrustedFileError(f"{name} is external data without a location")


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


def put_in_order(model: onnx_ir.Model) -> None:
    """Sort nodes that come before what they read: ONNX Runtime runs such files, others cannot.

    Raises:
        UnsupportedModelError: If nodes read each other in a circle.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            if not _is_in_order(graph):
                graph.sort()
        except ValueError as error:
            raise UnsupportedModelError(
                "nodes read each other in a circle",
                {"graph": printable(graph.name or "")},
                "export the model again",
            ) from error


def _is_in_order(graph: onnx_ir.Graph) -> bool:
    before: set[onnx_ir.Node | None] = {None}
    for node in graph.all_nodes():
        if any(value is not None and value.producer() not in before for value in node.inputs):
            return False
        before.add(node)
    return True


def check_external(tensor: onnx_ir.ExternalTensor, sizes: dict[str, int]) -> None:
    """Refuse external data that is missing, too short, no regular file, or outside its folder.

    Args:
        tensor: The tensor, its ``base_dir`` set.
        sizes: File sizes seen so far, by path: each file is looked at once.

    Raises:
        UntrustedFileError: With the tensor's name, the file and both sizes.
    """
    name, path = printable(tensor.name or "a tensor"), tensor.path
    if path not in sizes:
        sizes[path] = _file_size(tensor, name)
    need, offset = int(tensor.nbytes), tensor.offset or 0
    if tensor.length is not None and tensor.length != need:
        raise UntrustedFileError(
            f"{name} says another external length than its shape needs",
            {"length": tensor.length, name: f"{brief(tensor.dtype, tensor.shape)}, {need} bytes"},
        )
    if offset + need > sizes[path]:
        raise UntrustedFileError(
            f"{name} lies past the end of its external data",
            {"range": f"{offset}..{offset + need}", "file": f"{path}, {sizes[path]} bytes"},
            "copy the data file again",
        )


def _file_size(tensor: onnx_ir.ExternalTensor, name: str) -> int:
    base = os.path.realpath(os.fspath(tensor.base_dir))
    real = os.path.realpath(tensor.path)
    if os.path.isabs(tensor.location) or os.path.commonpath([base, real]) != base:
        raise UntrustedFileError(
            f"{name} lies outside of the model's folder",
            {"location": printable(str(tensor.location)), "folder": base},
            "copy the data beside the model",
        )
    try:
        status = os.stat(real)
    except OSError as error:
        raise UntrustedFileError(
            f"the external data of {name} is missing",
            {"file": real, "the system says": error.strerror},
            "copy the data file beside the model",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(f"the external data of {name} is no regular file", {"file": real})
    if status.st_nlink > 1:
        raise UntrustedFileError(
            f"the external data of {name} has other names elsewhere (hard links)",
            {"file": real, "links": status.st_nlink},
            "copy the file, so that nobody can change it from outside of the folder",
        )
    return status.st_size
