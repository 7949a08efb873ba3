"""The head: the last layer with learnables on the way to a graph output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.brief import brief, printable
from tieops.ir.layers import Layer
from tieops.ir.parameter import Slot
from tieops.select import one_layer
from tieops.tied_model import TiedModel

__all__ = ["Head", "find_head"]


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
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return self.weight.node.op_type == "Conv"


def find_head(model: TiedModel, name: str | Layer | None) -> Head:
    """Find the head by name, or the only one there is.

    Raises:
        PreconditionError: If several layers qualify (they are named), none does, or the layer has
            no size that could be replaced.
        SelectionError: If no layer has the name.
    """
    if name is not None:
        return _as_head(one_layer(model, name))
    last = _last_layers(model)
    # A norm at the end of another output (an encoder's hidden states) has no classes to replace.
    found = [layer for layer in last if _has_features(layer)] or last
    if not found:
        raise PreconditionError(
            "the model has no layer with learnables on the way to an output",
            {"outputs": ", ".join(printable(o.name or "") for o in model.ir.graph.outputs)},
            "name the layer: replace_head(model, 'fc', ...)",
        )
    if len(found) > 1:
        names = ", ".join(printable(layer.name) for layer in found[:8])
        raise PreconditionError(
            f"the head is ambiguous: {len(found)} layers are the last on the way to an output",
            {"candidates": names + (", …" if len(found) > 8 else "")},
            "name the layer: replace_head(model, 'fc', ...)",
        )
    return _as_head(found[0])


def _has_features(layer: Layer) -> bool:
    return any(slot.node.op_type in ("Gemm", "MatMul", "Conv") for slot in layer.slots)


def _last_layers(model: TiedModel) -> list[Layer]:
    """Walk back from the outputs to the first learnable layers, in the order of the graph."""
    home = {node: layer for layer in model.layers if layer.is_learnable for node in layer.nodes}
    found: set[Layer] = set()
    seen: set[onnx_ir.Node] = set()
    pending = [output.producer() for output in model.ir.graph.outputs]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in home:
            found.add(home[node])
            continue
        pending += [value.producer() for value in node.inputs if value is not None]
    return [layer for layer in model.layers if layer in found]


def _as_head(layer: Layer) -> Head:
    weights = [slot for slot in layer.slots if slot.role.split(".")[-1] == "weight"]
    weights = weights or [slot for slot in layer.slots if slot.index == 1]
    if len(weights) != 1 or weights[0].node.op_type not in ("Gemm", "MatMul", "Conv"):
        raise PreconditionError(
            f"{printable(layer.name)} is no Linear or Conv layer, so it has no size to replace",
            {"kind": layer.kind, "slots": ", ".join(slot.role for slot in layer.slots) or "none"},
            "name the layer that computes the classes",
        )
    weight = weights[0]
    node = weight.node
    if weight.path or not isinstance(node.graph, onnx_ir.Graph):
        raise PreconditionError(
            f"{printable(layer.name)} lies in a function", None, "inline the functions first"
        )
    bias = next((slot for slot in layer.slots if _is_bias(slot, weight)), None)
    seen = node.inputs[weight.index]
    shape = weight.view.shape
    if weight.index != 1 or len(shape) < 2 or seen is None:
        raise PreconditionError(
            f"the weight of {printable(layer.name)} is no matrix that its input is multiplied by",
            {"weight": brief(weight.parameter.dtype, shape)},
            "name the layer that computes the classes",
        )
    x = node.inputs[0]
    assert x is not None
    out = (bias.node if bias is not None else node).outputs[0]
    if node.op_type == "Conv":
        group = node.attributes.get("group")
        if group is not None and group.as_int() != 1:
            raise PreconditionError(
                f"{printable(layer.name)} is a grouped convolution",
                {"group": group.as_int()},
                "replace it with a plain one first",
            )
        return Head(layer, weight, bias, x, out, shape[1:], shape[0], 1)
    transposed = node.op_type == "Gemm" and _flag(node, "transB")
    outs, ins = shape if transposed else (shape[-1], shape[-2])
    x, out = _around(node, x, out, layer)
    rank = out.shape.rank() if out.shape is not None else _known_rank(x)
    if node.op_type == "Gemm" and rank is None:
        rank = 2
    if rank is None:
        raise PreconditionError(
            f"the rank of {printable(layer.name)}'s output is not known",
            {"output": out.name},
            "run shape inference on the model first",
        )
    return Head(layer, weight, bias, x, out, (ins,), outs, rank - 1)


def _is_bias(slot: Slot, weight: Slot) -> bool:
    if slot.node is weight.node:
        return slot.index == 2 and slot.node.op_type in ("Gemm", "Conv")
    return slot.node.op_type == "Add" and slot.role.split(".")[-1] == "bias"


def _flag(node: onnx_ir.Node, name: str) -> bool:
    attr = node.attributes.get(name)
    return attr is not None and bool(attr.as_int())


def _known_rank(value: onnx_ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _around(
    node: onnx_ir.Node, x: onnx_ir.Value, out: onnx_ir.Value, layer: Layer
) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """See through the Reshapes that bring an N-D input to a Gemm and its rows back."""
    before = x.producer()
    if node.op_type != "Gemm" or before is None or before.op_type != "Reshape":
        return x, out
    after = _only_reader(node.outputs[0])
    if after is None or after.op_type != "Reshape" or after not in _nodes_around(layer, node):
        return x, out
    source = before.inputs[0]
    assert source is not None
    return source, (out if out is not node.outputs[0] else after.outputs[0])


def _nodes_around(layer: Layer, node: onnx_ir.Node) -> Sequence[onnx_ir.Node]:
    # With module names the Reshapes are the layer's own nodes; without, they are its neighbours.
    reader = _only_reader(node.outputs[0])
    return [*layer.nodes, *([reader] if reader is not None else [])]


def _only_reader(value: onnx_ir.Value) -> onnx_ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
