"""Rewrite products with a tied weight to the single operator that ONNX Runtime has for them.

A file holds a tied product in standard operators: ``Reshape``, ``Gemm`` with a transposed weight,
``Reshape``, or ``Transpose`` and ``MatMul``. The first copies the logits once more on each run, the
second is folded into a copy of the weight. ONNX Runtime's own ``FusedMatMul`` does neither; its
packed kernel is that of ``MatMul``, bit for bit. What a session opens is rewritten, not the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx

from tieops.ir.operators.identity import operator_name
from tieops.ir.operators.predicates import is_constant_operator, is_matmul, is_reshape
from tieops.runtime.memory.stored_weights import subgraphs

__all__ = ["fuse_products"]

DOMAIN, OP_TYPE = "com.microsoft", "FusedMatMul"
MAX_SIZES = 16
"""Longer constants are not shapes."""

Dims: TypeAlias = tuple[int | None, ...]


def fuse_products(proto: onnx.ModelProto, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Rewrite the products that read some weights transposed, in the graph and those inside it.

    Args:
        proto: The model; changed in place.
        weights: Shapes of the weights, float32 matrices that the main graph stores, by name.

    Returns:
        Whether a product was rewritten.
    """
    if not _fuse(proto.graph, weights, _Known()):
        return False
    if all(opset.domain != DOMAIN for opset in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return True


@dataclass(frozen=True)
class _Known:
    """What is known of values by their names: small constants, and shapes."""

    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    shapes: Mapping[str, Dims] = field(default_factory=dict[str, Dims])

    def within(self, graph: onnx.GraphProto) -> _Known:
        """Return what is known inside of a graph, where the names of outer values count too."""
        values = (*graph.input, *graph.value_info, *graph.output)
        return _Known(
            {**self.constants, **dict(_constants(graph))},
            {**self.shapes, **{value.name: _dims(value) for value in values}},
        )


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if is_constant_operator(node) and node.output:
            tensors += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    for name, tensor in tensors:
        is_small = len(tensor.dims) == 1 and tensor.dims[0] <= MAX_SIZES
        if is_small and tensor.data_type == onnx.TensorProto.INT64 and not tensor.external_data:
            yield name, tuple(int(size) for size in onnx.numpy_helper.to_array(tensor))


def _dims(value: onnx.ValueInfoProto) -> Dims:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _fuse(graph: onnx.GraphProto, weights: Mapping[str, tuple[int, ...]], known: _Known) -> bool:
    own = {tensor.name for tensor in graph.initializer} if known.shapes else set[str]()
    weights = {name: shape for name, shape in weights.items() if name not in own}
    known = known.within(graph)
    inside = [_fuse(each, weights, known) for node in graph.node for each in subgraphs(node)]
    products = _Products(graph, weights, known)
    for node in graph.node:
        products.fuse(node)
    products.sweep()
    return any(inside) or products.count > 0


class _Products:
    """The products of one graph, and the nodes that nobody reads once they are fused."""

    def __init__(
        self, graph: onnx.GraphProto, weights: Mapping[str, tuple[int, ...]], known: _Known
    ) -> None:
        self.count = 0
        self._graph = graph
        self._weights = weights
        self._known = known
        self._producers = {name: node for node in graph.node for name in node.output}
        self._uses = Counter(_reads(graph))
        self._dropped: set[str] = set()

    def fuse(self, node: onnx.NodeProto) -> None:
        """Make a node the product, if it is what gives a product's result."""
        read = self._of_matmul(node) or self._of_gemm(node)
        if read is None:
            return
        self._uses.subtract(node.input)
        self._dropped.update(node.input)
        node.op_type, node.domain = OP_TYPE, DOMAIN
        node.input[:] = read
        self._uses.update(read)
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("transB", 1))
        self.count += 1

    def sweep(self) -> None:
        """Remove the nodes whose results nobody reads any more."""
        for index in reversed(range(len(self._graph.node))):
            node = self._graph.node[index]
            given = [name for name in node.output if name]
            if self._dropped.isdisjoint(given) or any(self._uses[name] for name in given):
                continue
            self._uses.subtract(node.input)
            self._dropped.update(node.input)
            del self._graph.node[index]

    def _producer(self, name: str, op_type: str) -> onnx.NodeProto | None:
        node = self._producers.get(name)
        return node if node is not None and operator_name(node) == op_type else None

    def _of_matmul(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """Return what ``MatMul(x, Transpose(w))`` multiplies."""
        if not is_matmul(node):
            return None
        transpose = self._producer(node.input[1], "Transpose")
        if transpose is None or transpose.input[0] not in self._weights:
            return None  # of a matrix, so that there is one order of axes that does anything
        order = [list(each.ints) for each in transpose.attribute if each.name == "perm"]
        return (node.input[0], transpose.input[0]) if order in ([], [[1, 0]]) else None

    def _of_gemm(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """Return what ``Reshape(Gemm(Reshape(x), w))`` multiplies, where it keeps x's axes."""
        if not is_reshape(node):
            return None
        gemm = self._producer(node.input[0], "Gemm")
        if gemm is None or self._uses[node.input[0]] != 1 or not _is_plain(gemm):
            return None
        flat, weight = self._producer(gemm.input[0], "Reshape"), gemm.input[1]
        if flat is None or weight not in self._weights:
            return None
        features, hidden = self._weights[weight]
        x = flat.input[0]
        if self._known.constants.get(flat.input[1]) != (-1, hidden):
            return None
        sizes = self._known.constants.get(node.input[1])
        if sizes is None:
            kept = self._is_shape_but_last(node.input[1], x, features)
        else:
            kept = _keeps_axes(self._known.shapes.get(x, ()), sizes, hidden, features)
        return (x, weight) if kept else None

    def _is_shape_but_last(self, name: str, x: str, last: int) -> bool:
        """Return whether sizes are computed as ``Concat(Shape(x)[0:-1], last)``.

        A result of these sizes has as many elements as the product only if the product's rows are
        those of x; otherwise the model fails, with or without this.
        """
        joined = self._producer(name, "Concat")
        if joined is None or len(joined.input) != 2:
            return False
        lead, constants = self._producer(joined.input[0], "Slice"), self._known.constants
        if lead is None or constants.get(joined.input[1]) != (last,):
            return False
        whole = self._producer(lead.input[0], "Shape")
        bounds = [constants.get(each) for each in lead.input[1:]]
        is_whole = whole is not None and whole.input[0] == x and not whole.attribute
        return is_whole and bounds == [(0,), (-1,)]


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield each name that is read in a graph or in those inside it, once for each time."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from _reads(inner)


def _is_plain(gemm: onnx.NodeProto) -> bool:
    """Return whether this is a product with a transposed weight, without bias and factor."""
    values = {each.name: each.f if each.name == "alpha" else each.i for each in gemm.attribute}
    has_bias = len(gemm.input) > 2 and gemm.input[2] != ""
    is_unscaled = values.get("alpha", 1.0) == 1.0 and not values.get("transA")
    return not has_bias and is_unscaled and values.get("transB") == 1


def _keeps_axes(shape: Dims, sizes: tuple[int, ...], hidden: int, features: int) -> bool:
    """Return whether sizes differ from a shape in the last axis only; one size may be -1."""
    if len(shape) != len(sizes) or shape[-1] != hidden or sizes[-1] != features:
        return False
    pairs = list(zip(shape[:-1], sizes[:-1], strict=True))
    given = [(dim, size) for dim, size in pairs if size != -1]
    return len(pairs) - len(given) <= 1 and all(dim == size != 0 for dim, size in given)
