"""Walk a model: main graph, subgraphs and functions, without recursion.

All walks are iterative: files may nest graphs deeper than Python's stack allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir

from tieops.ir.metadata.parsing import listed
from tieops.ir.operators.predicates import is_constant_operator

__all__ = [
    "Module",
    "Scope",
    "SourceLine",
    "all_graphs",
    "all_nodes",
    "attribute_tensors",
    "is_constant",
    "layer_name_of",
    "nested_graphs",
    "nesting_depth",
    "nodes_within",
    "rename_scope",
    "replace_tensors",
    "scope_of",
    "set_layer_name",
    "source_lines",
    "stored_values",
    "subgraphs_of",
]


def subgraphs_of(node: onnx_ir.Node) -> Iterator[onnx_ir.Graph]:
    """Yield the graphs that a node holds: If's branches, Loop's and Scan's bodies."""
    for attr in node.attributes.data.values():  # the dict within: it is walked for every node
        if attr.type == onnx_ir.AttributeType.GRAPH and not attr.is_ref():
            yield attr.as_graph()
        elif attr.type == onnx_ir.AttributeType.GRAPHS and not attr.is_ref():
            yield from attr.as_graphs()


def nested_graphs(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Graph]:
    """Yield a graph, then every graph nested in its nodes, outer before inner."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        inner = [sub for node in current if node.attributes.data for sub in subgraphs_of(node)]
        stack.extend(reversed(inner))


def nodes_within(nodes: Sequence[onnx_ir.Node]) -> Iterator[onnx_ir.Node]:
    """Yield nodes, and those of the graphs that they hold: an If reads what its branches do."""
    pending = list(reversed(nodes))
    while pending:
        node = pending.pop()
        yield node
        for graph in subgraphs_of(node):
            pending += reversed(list(graph))


def nesting_depth(model: onnx_ir.Model, limit: int) -> int:
    """Return how many graphs lie within each other at most, those of functions included.

    Args:
        model: The model.
        limit: Where to stop: more than that is told as one more.

    Example:
        >>> nesting_depth(onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=10), 9)
        0
    """
    depth, level = -1, [model.graph, *(function.graph for function in model.functions.values())]
    while level and depth <= limit:
        depth += 1
        level = [inner for each in level for node in each for inner in subgraphs_of(node)]
    return depth


def all_graphs(model: onnx_ir.Model) -> Iterator[onnx_ir.Graph]:
    """Yield the main graph and all nested in it, then each function's in the same way."""
    yield from nested_graphs(model.graph)
    for function in model.functions.values():
        yield from nested_graphs(function.graph)


def all_nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """Yield every node of every graph, in the order of the graphs."""
    for graph in all_graphs(model):
        yield from graph


def stored_values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    """Yield every value whose bytes the model stores: initializers, then Constant nodes, by graph.

    A Constant that holds its value in another attribute than ``value`` (a float, a list of ints) is
    an operand and not yielded.
    """
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value
        for node in graph:
            if is_constant(node) and (value := node.outputs[0]).const_value is not None:
                yield value


def is_constant(node: onnx_ir.Node) -> bool:
    """Return whether this is a Constant node with a tensor, which is then set on its output."""
    if not is_constant_operator(node):
        return False
    attr = node.attributes.get("value")
    if attr is None or attr.is_ref():
        return False
    if node.outputs[0].const_value is None:
        node.outputs[0].const_value = attr.as_tensor()
    return True


def attribute_tensors(model: onnx_ir.Model) -> Iterator[onnx_ir.TensorProtocol]:
    """Yield every tensor that an attribute of a node holds, those of Constant nodes among them."""
    for node in all_nodes(model):
        for attr in node.attributes.data.values():
            if attr.type == onnx_ir.AttributeType.TENSOR and not attr.is_ref():
                yield attr.as_tensor()
            elif attr.type == onnx_ir.AttributeType.TENSORS and not attr.is_ref():
                yield from attr.as_tensors()


def replace_tensors(
    model: onnx_ir.Model, new: Callable[[onnx_ir.TensorProtocol], onnx_ir.TensorProtocol]
) -> None:
    """Put another tensor in the place of each that a model stores, in attributes too.

    Args:
        model: The model; changed in place.
        new: Gives the tensor for a stored one; the same to leave it alone.
    """
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = new(value.const_value)
        for node in graph:
            for name, attr in list(node.attributes.items()):
                made = _replaced(attr, new)
                if made is not attr:
                    node.attributes[name] = made
            if is_constant(node):  # which has noted the tensor for all that come later
                node.outputs[0].const_value = node.attributes["value"].as_tensor()


def _replaced(
    attr: onnx_ir.Attr, new: Callable[[onnx_ir.TensorProtocol], onnx_ir.TensorProtocol]
) -> onnx_ir.Attr:
    if not attr.is_ref() and attr.type == onnx_ir.AttributeType.TENSOR:
        old = attr.as_tensor()
        tensor = new(old)
        return attr if tensor is old else onnx_ir.AttrTensor(attr.name, tensor, attr.doc_string)
    if not attr.is_ref() and attr.type == onnx_ir.AttributeType.TENSORS:
        some = [new(each) for each in attr.as_tensors()]
        same = all(a is b for a, b in zip(attr.as_tensors(), some, strict=True))
        return attr if same else onnx_ir.AttrTensors(attr.name, some, attr.doc_string)
    return attr


class Module(NamedTuple):
    """A torch module as the dynamo exporter names it."""

    fqn: str
    is_torch: bool
    """Whether the class is one of torch's own."""


class SourceLine(NamedTuple):
    """A line of the program that was exported."""

    file: str
    number: str
    function: str


@dataclass(frozen=True)
class Scope:
    """The torch module that a node came from."""

    fqn: str
    cls: str
    """The module's class without its package, empty where the exporter did not say."""
    fx_name: str
    """What the exporter called the operation within the module."""
    is_torch: bool = False
    """Whether the class is one of torch's own layers, whose attributes are known."""
    paths: Sequence[str] = ()
    """The names that the module may have in its model, the likeliest first."""
    called: str = ""
    """The module's name if what the older exporter put behind it counts calls ("norm_1")."""
    around: Sequence[Module] = ()
    """The modules that the node lies within, outermost first; empty if that was not written."""


_SCOPES = "pkg.torch.onnx.name_scopes"
_STACK = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'^\s*File "([^"\n]*)", line (\d+), in (\S+)', re.MULTILINE)
_TORCHS_OWN = "torch.nn.modules."
_LAYER = "tieops.layer"
_CALL_COUNT = re.compile(r"(?<=.)_\d+$")
_TORCHSCRIPT_NAME = re.compile(r"/(?:(.+)/)?(\w+)")


def scope_of(node: onnx_ir.Node) -> Scope | None:
    """Return the module that a node came from, as torch's exporters left it on the node.

    The dynamo exporter writes ``pkg.torch.onnx.name_scopes`` and ``…class_hierarchy``; the older
    one puts the modules' path into the node's name ("/encoder/layer.0/query/MatMul").
    """
    names = listed(node.metadata_props.get(_SCOPES))
    if names:
        classes = listed(node.metadata_props.get("pkg.torch.onnx.class_hierarchy"))
        cls = classes[len(names) - 2] if 2 <= len(names) <= len(classes) else ""
        fqn = names[-2] if len(names) > 1 else ""
        around = tuple(
            Module(name, each.startswith(_TORCHS_OWN))
            for name, each in zip(names[:-1], classes, strict=False)
        )
        is_torch = cls.startswith(_TORCHS_OWN)
        return Scope(fqn, cls.rpartition(".")[2], names[-1], is_torch, (fqn,), around=around)
    match = _TORCHSCRIPT_NAME.fullmatch(node.name or "")
    if match is None:
        return None
    fqn = (match[1] or "").replace("/", ".")
    parts: list[str] = []
    for part in (match[1] or "").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()  # a Sequential is written in front of its members: "seq/seq.0"
        parts.append(part)
    merged = ".".join(parts)
    called = ".".join(_CALL_COUNT.sub("", part) for part in parts)
    return Scope(fqn, "", match[2], False, tuple(dict.fromkeys((merged, fqn))), called)


def source_lines(node: onnx_ir.Node) -> tuple[SourceLine, ...]:
    """Return through which lines of its program a node came to be, as torch left them on it.

    They begin with the outermost. torch leaves out its own.
    """
    found = _FRAME.findall(node.metadata_props.get(_STACK, ""))
    return tuple(SourceLine(*each) for each in found)


def rename_scope(node: onnx_ir.Node, old: str, new: str) -> None:
    """Say that a node comes from the module ``new`` where it says that it comes from ``old``."""
    names = listed(node.metadata_props.get(_SCOPES))
    if names:
        node.metadata_props[_SCOPES] = repr([new if name == old else name for name in names])
    if layer_name_of(node) == old:
        set_layer_name(node, new)


def layer_name_of(node: onnx_ir.Node) -> str:
    """Return what the layer of a node was called before a call was inlined; empty if it was not."""
    return node.metadata_props.get(_LAYER, "")


def set_layer_name(node: onnx_ir.Node, name: str) -> None:
    """Record what the layer of a node is called: it stays that when its call is inlined."""
    node.metadata_props[_LAYER] = name
