"""Find the head: the last layer with learnables on the way to a graph output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.errors import PreconditionError, SelectionError
from tieops.ir.dataflow.backwards import nodes_before_outputs
from tieops.ir.dataflow.liveness import dependent_values
from tieops.ir.dataflow.regions import RegionInterface
from tieops.ir.layer import Layer
from tieops.ir.notation import brief, printable
from tieops.ir.operators.moving_shapes import slice_bounds
from tieops.ir.operators.operands import known_ints
from tieops.ir.operators.predicates import (
    is_addition,
    is_arithmetic,
    is_concat,
    is_convolution,
    is_gemm,
    is_matmul,
    is_plain_product,
    is_reshape,
    is_shape,
    is_slice,
)
from tieops.ir.operators.sizes import NotKnownError
from tieops.ir.parameter import Slot
from tieops.ir.view import Shape
from tieops.ir.walk import all_nodes
from tieops.model import TiedModel
from tieops.select import one_layer, slots_of

__all__ = ["Head", "as_head", "find_head"]

Path = tuple[onnx_ir.Node, ...]


@dataclass(frozen=True, eq=False)
class Head:
    """A layer whose output features can be replaced.

    Args:
        layer: The layer.
        weight: Its weight's slot.
        bias: Its bias' slot, if it has one.
        x: What it is applied to.
        out: What it computes, bias included.
        in_features: Sizes of one output's weight: (in,) or (in, *kernel).
        out_features: How many outputs it has now.
        axis: Which axis of ``out`` has that size.
    """

    layer: Layer
    weight: Slot
    bias: Slot | None
    x: onnx_ir.Value
    out: onnx_ir.Value
    in_features: tuple[int, ...]
    out_features: int
    axis: int

    @property
    def is_transposed(self) -> bool:
        """Whether it reads its input transposed."""
        return is_gemm(self.weight.node) and _flag(self.weight.node, "transA")

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return is_convolution(self.weight.node)


def find_head(model: TiedModel, name: str | Layer | None) -> Layer:
    """Find the head by the name of a layer, parameter or output, or the only one there is.

    It may lie in a function.

    Raises:
        PreconditionError: If several layers qualify (they are named), or none does.
        SelectionError: If nothing has the name.
    """
    if name is None:
        return _last_layer(model, model.ir.graph.outputs)
    title = name.name if isinstance(name, Layer) else name
    is_text = isinstance(title, str)  # pyright: ignore[reportUnnecessaryIsInstance]
    if is_text and title in model.layers:
        return one_layer(model, title)
    if is_text and title in model.outputs:
        return _last_layer(model, [model.outputs[title]])
    readers = {slot.layer for slot in slots_of(model, title)}
    if len(readers) > 1:
        raise SelectionError(
            f"{printable(title)} is read by several layers",
            {"layers": ", ".join(map(printable, sorted(readers)))},
            "name one of them",
        )
    return one_layer(model, readers.pop())


def _last_layer(model: TiedModel, outputs: Sequence[onnx_ir.Value]) -> Layer:
    """Return the only head there is on the way to some outputs."""
    last = _last_layers(model, outputs)
    # A norm at the end of another output (an encoder's hidden states) has no classes to replace.
    found = [layer for layer in last if _has_features(layer)] or last
    found = _behind_the_others(model, found) if len(found) > 1 else found
    if not found:
        raise PreconditionError(
            "the model has no layer with learnables on the way to an output",
            {"outputs": ", ".join(printable(o.name or "") for o in outputs)},
            'name the layer: head="fc"',
        )
    if len(found) > 1:
        names = ", ".join(printable(layer.name) for layer in found[:8])
        raise PreconditionError(
            f"the head is ambiguous: {len(found)} layers are the last on the way to an output",
            {"candidates": names + (", …" if len(found) > 8 else "")},
            'name the layer: head="fc"',
        )
    return found[0]


def _behind_the_others(model: TiedModel, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that no other one of them is computed from.

    A decoder's caches are outputs too, and come from projections that the logits are made from.
    """
    interfaces = [RegionInterface.of(node, model.ir.functions) for node in all_nodes(model.ir)]
    made = {
        layer: dependent_values([v for n in layer.nodes for v in n.outputs], interfaces)
        for layer in layers
    }

    def feeds(one: Layer, other: Layer) -> bool:
        return any(value in made[one] for node in other.nodes for value in node.outputs)

    # In the body of a function that is called several times, each may feed the other.
    return [
        each
        for each in layers
        if not any(feeds(each, other) and not feeds(other, each) for other in layers)
    ]


def _is_product(node: onnx_ir.Node) -> bool:
    return is_plain_product(node) or is_convolution(node)


def _has_features(layer: Layer) -> bool:
    return any(_is_product(slot.node) for slot in layer.slots)


def _last_layers(model: TiedModel, outputs: Sequence[onnx_ir.Value]) -> list[Layer]:
    """Walk back from some outputs to the first learnable layers, in the order of the graph."""
    home = {
        (layer.slots[0].path, node): layer
        for layer in model.layers
        if layer.is_learnable
        for node in layer.nodes
    }

    def is_layer(path: Path, node: onnx_ir.Node) -> bool:
        layer = home.get((path, node))
        return layer is not None and not is_arithmetic(layer.kind)

    before = nodes_before_outputs(model.ir, is_layer, outputs)
    found = {home[at] for at in before if is_layer(*at)}
    return [layer for layer in model.layers if layer in found]


def as_head(model: TiedModel, layer: Layer) -> Head:
    """Return what of a layer of the main graph can be replaced.

    Raises:
        PreconditionError: If it has no size that could be.
    """
    weights = [slot for slot in layer.slots if slot.role.split(".")[-1] == "weight"]
    weights = weights or [slot for slot in layer.slots if slot.index == 1]
    if len(weights) != 1 or not _is_product(weights[0].node):
        raise PreconditionError(
            f"expected a Linear or Conv layer as the head, got {printable(layer.name)}",
            {"kind": layer.kind, "slots": ", ".join(slot.role for slot in layer.slots) or "none"},
            "name the layer that computes the classes",
        )
    weight = weights[0]
    node = weight.node
    if node.graph is not model.ir.graph:
        raise PreconditionError(
            f"{printable(layer.name)} lies in the body of an If, Loop or Scan",
            {"node": f"{node.op_type} {printable(node.name or '')}".strip()},
            "a branch cannot change its size alone: name a head outside of it",
        )
    bias = next((slot for slot in layer.slots if _is_bias(slot, weight)), None)
    seen = node.inputs[weight.index]
    shape = _arriving_shape(weight, seen)
    if shape is None:
        raise PreconditionError(
            f"the weight of {printable(layer.name)} is computed, and its shape is not known",
            {"weight": seen, "node": f"{node.op_type} {printable(node.name or '')}".strip()},
            "name a layer that reads its weight as it is stored",
        )
    ranks = (3, 4, 5) if is_convolution(node) else (2,)
    if weight.index != 1 or len(shape) not in ranks or seen is None:
        raise PreconditionError(
            f"expected {printable(layer.name)} to multiply its input by a 2-D weight",
            {"weight": brief(weight.parameter.dtype, shape)},
            "name the layer that computes the classes",
        )
    if not is_matmul(node) and _has_computed_bias(node, bias):
        raise PreconditionError(
            f"the bias of {printable(layer.name)} is computed, and has the old size",
            {"bias": node.inputs[2]},
            "name a layer that owns its bias",
        )
    x = node.inputs[0]
    assert x is not None
    out = (bias.node if bias is not None else node).outputs[0]
    if is_convolution(node):
        group = node.attributes.get("group")
        if group is not None and group.as_int() != 1:
            raise PreconditionError(
                f"{printable(layer.name)} is a grouped convolution",
                {"group": group.as_int()},
                "replace it with a plain one first",
            )
        return Head(layer, weight, bias, x, out, shape[1:], shape[0], 1)
    transposed = is_gemm(node) and _flag(node, "transB")
    outs, ins = shape if transposed else (shape[-1], shape[-2])
    x, out = _around(node, x, out)
    rank = out.shape.rank() if out.shape is not None else _known_rank(x)
    if is_gemm(node) and rank is None:
        rank = 2
    if rank is None:
        raise PreconditionError(
            f"the rank of {printable(layer.name)}'s output is not known",
            {"output": out.name},
            "run shape inference on the model first",
        )
    return Head(layer, weight, bias, x, out, (ins,), outs, rank - 1)


def _arriving_shape(weight: Slot, seen: onnx_ir.Value | None) -> Shape | None:
    """Return the shape of what a layer reads; None where a computation of it does not tell."""
    if not weight.view.computed:
        return weight.view.shape
    if seen is None or seen.shape is None or not seen.shape.is_static():
        return None
    return tuple(int(size) for size in seen.shape.numpy())


def _has_computed_bias(node: onnx_ir.Node, bias: Slot | None) -> bool:
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    return given and (bias is None or bias.node is not node)


def _is_bias(slot: Slot, weight: Slot) -> bool:
    if slot.node is weight.node:
        return slot.index == 2 and not is_matmul(slot.node)
    return is_addition(slot.node) and slot.role.split(".")[-1] == "bias"


def _flag(node: onnx_ir.Node, name: str) -> bool:
    attr = node.attributes.get(name)
    return attr is not None and bool(attr.as_int())


def _known_rank(value: onnx_ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _around(
    node: onnx_ir.Node, x: onnx_ir.Value, out: onnx_ir.Value
) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """See through the Reshapes that bring an N-D input to a Gemm and its rows back."""
    before = x.producer()
    if not is_gemm(node) or before is None or not is_reshape(before):
        return x, out
    if _flag(node, "transA"):
        return x, out
    after = _only_reader(node.outputs[0])
    if after is None or not is_reshape(after):
        return x, out
    source = before.inputs[0]
    assert source is not None
    if not _is_flattened(before, source) or not _is_restored(after, source):
        return x, out
    return source, (out if out is not node.outputs[0] else after.outputs[0])


def _is_flattened(node: onnx_ir.Node, source: onnx_ir.Value) -> bool:
    """Return whether a Reshape keeps the last axis and makes one of all others."""
    target, shape = known_ints(node.inputs[1]), source.shape
    return target is not None and shape is not None and len(target) == 2 and (
        target[0] == -1 and target[1] == shape[-1]
    )  # fmt: skip


def _is_restored(node: onnx_ir.Node, source: onnx_ir.Value) -> bool:
    """Return whether a Reshape gives rows the leading axes of ``source`` back."""
    shape = source.shape
    if shape is None or node.outputs[0].shape is None:
        return False
    target = known_ints(node.inputs[1])
    if target is not None:
        leading = [size if isinstance(size, int) else -1 for size in list(shape)[:-1]]
        return list(target[:-1]) == leading and leading.count(-1) <= 1
    sizes = node.inputs[1]
    joined = None if sizes is None else sizes.producer()
    if joined is None or not is_concat(joined) or len(joined.inputs) != 2:
        return False
    cut = joined.inputs[0].producer() if joined.inputs[0] is not None else None
    whole = cut.inputs[0].producer() if cut is not None and cut.inputs[0] is not None else None
    return (
        cut is not None
        and _leaves_out_last(cut)
        and whole is not None
        and is_shape(whole)
        and not whole.attributes
        and whole.inputs[0] is source
    )


def _leaves_out_last(node: onnx_ir.Node) -> bool:
    """Return whether a node is a Slice of a vector up to its last element."""
    try:
        return is_slice(node) and slice_bounds(node, 1) == [(0, 0, -1, 1)]
    except NotKnownError:
        return False


def _only_reader(value: onnx_ir.Value) -> onnx_ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
