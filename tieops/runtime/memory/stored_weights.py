"""Find the weights in a model's data files and their readers, from the protobuf message alone.

A session needs no more than that to prepare its memory. The IR would tell more, and cost a session
of a small transformer several megabytes and most of the time in which it is made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir

from tieops.ir.operators.predicates import is_cast, is_permutation, is_reshaping, is_transpose
from tieops.ir.operators.roles import learnable_role
from tieops.untrusted.external_data import DataFolder
from tieops.untrusted.onnx_calls import Key, function_key, node_key

__all__ = ["StoredWeight", "folded_ties", "stored_weights", "subgraphs"]


@dataclass
class Readers:
    """Who reads an initializer of the main graph.

    Attributes:
        readers: How many inputs of nodes read it, directly or through views.
        is_transposed: Whether one of them reads it through a ``Transpose``.
        is_scale: Whether one of them reads it as the scale of a quantized weight.
    """

    readers: int = 0
    is_transposed: bool = False
    is_scale: bool = False


@dataclass
class StoredWeight(Readers):
    """An initializer of the main graph that lies in a data file.

    Attributes:
        tensor: What is stored.
    """

    tensor: onnx_ir.ExternalTensor = field(kw_only=True)

    @property
    def is_quantized(self) -> bool:
        """Integers and their scales: kernels that read them are slow unless they are constants."""
        return self.tensor.dtype.is_integer() or self.is_scale


def stored_weights(
    proto: onnx.ModelProto, folder: DataFolder, inside: str = ""
) -> dict[str, StoredWeight]:
    """Return the weights of the main graph that lie in data files, by name.

    Args:
        proto: The model, checked.
        folder: Checks what lies in data files.
        inside: The location that tensors inside of the model itself say, if they were left out.

    Returns:
        All of them but those that are graph inputs too, which may be fed.

    Raises:
        UntrustedFileError: If external data is missing, too short, or not a file of the folder,
            that of subgraphs and of functions included.
    """
    fed = {value.name for value in proto.graph.input}
    found: dict[str, StoredWeight] = {}
    for tensor in proto.graph.initializer:
        if _is_in_data_file(tensor, inside):
            weight = StoredWeight(tensor=_external(tensor, folder))
            if tensor.name not in fed:
                found[tensor.name] = weight
    for tensor in _inner_tensors(proto):
        if _is_in_data_file(tensor, inside):
            _external(tensor, folder)
    _count_readers(proto, found)
    return found


def _is_in_data_file(tensor: onnx.TensorProto, inside: str) -> bool:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return False
    return not inside or all(entry.value != inside for entry in tensor.external_data)


def folded_ties(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the bytes of the weights that ONNX Runtime would hold a second, transposed copy of.

    Args:
        proto: The model, checked; where its weights lie does not matter.

    Returns:
        By name, the main graph's initializers that several nodes read, one through a ``Transpose``.
    """
    found = {tensor.name: Readers() for tensor in proto.graph.initializer}
    _count_readers(proto, found)
    sizes: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        reads = found[tensor.name]
        if reads.readers > 1 and reads.is_transposed:
            bits = onnx_ir.DataType(tensor.data_type).bitwidth
            sizes[tensor.name] = math.prod(tensor.dims) * bits // 8
    return sizes


def _count_readers(proto: onnx.ModelProto, weights: Mapping[str, Readers]) -> None:
    functions = {function_key(each): each for each in proto.functions}
    _count(proto.graph.node, {name: (name, False) for name in weights}, weights, functions)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _external(tensor: onnx.TensorProto, folder: DataFolder) -> onnx_ir.ExternalTensor:
    with warnings.catch_warnings():
        # The packed copies that ONNX Runtime keeps beside a weight are not needed.
        warnings.filterwarnings("ignore", "Ignoring unknown external data key")
        checked = folder.checked(onnx_ir.serde.deserialize_tensor(tensor))
    assert isinstance(checked, onnx_ir.ExternalTensor)
    return checked


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model but the main graph's initializers."""
    lists = [proto.graph.node, *(function.node for function in proto.functions)]
    while lists:
        for node in lists.pop():
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
            for graph in subgraphs(node):
                yield from graph.initializer
                lists.append(graph.node)


def _count(
    nodes: Iterable[onnx.NodeProto],
    known: dict[str, tuple[str, bool]],
    weights: Mapping[str, Readers],
    functions: Mapping[Key, onnx.FunctionProto],
) -> None:
    """Note on each weight who reads it.

    Args:
        nodes: Of one graph or function.
        known: The weight behind each name that holds one, and whether it is transposed there; gets
            the names of views.
        weights: The weights.
        functions: The model's functions; what is handed to a call is read in the body.
    """
    for node in nodes:
        called = functions.get(node_key(node))
        handed: dict[str, tuple[str, bool]] = {}
        for index, name in enumerate(node.input):
            if name not in known:
                continue
            weight, transposed = known[name]
            if called is not None:
                if index < len(called.input):
                    handed[called.input[index]] = known[name]
            elif index == 0 and _hands_on(node) and node.output:
                known[node.output[0]] = weight, transposed or is_transpose(node)
            else:
                weights[weight].readers += 1
                weights[weight].is_transposed |= transposed
                weights[weight].is_scale |= "scale" in (learnable_role(node, index) or "")
        if called is not None and handed:
            _count(called.node, handed, weights, functions)
        for graph in subgraphs(node):
            _count(graph.node, known, weights, functions)


def _hands_on(node: onnx.NodeProto) -> bool:
    """Return whether whoever reads a node's output reads all of its first input."""
    return is_permutation(node) or is_reshaping(node) or is_cast(node)
