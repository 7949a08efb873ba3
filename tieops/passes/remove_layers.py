"""Remove layers: what goes into one takes the place of what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.arguments import names_of
from tieops.errors import PreconditionError
from tieops.ir.dataflow.input_dependent import input_dependent_values
from tieops.ir.dataflow.liveness import Liveness
from tieops.ir.edit import NameAuthority, bypass
from tieops.ir.layer import Layer
from tieops.ir.notation import brief, printable
from tieops.ir.walk import nodes_within
from tieops.model import Model, TiedModel
from tieops.passes.base import Change, Plan, Preserves, Rewrite, SurgeryPass, adopt, run
from tieops.passes.inline import drafted, inline_layers
from tieops.passes.readers_gone import ReadersBefore
from tieops.select import one_layer

__all__ = ["RemoveLayersPass", "RemoveLayersPlan", "remove_layers"]


def remove_layers(model: Model, layers: str | Iterable[str]) -> TiedModel:
    """Remove layers whose input can stand for their output.

    A Softmax or an Identity at the end, a Dropout, an activation, a norm, a square Linear. What
    reads the layer's output reads its input from then on, and an output of the graph that it was
    keeps its name.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.
        layers: Names of layers.

    Returns:
        A new model without these layers, and without what only they needed.

    Raises:
        SelectionError: If there is no such layer; the nearest names are listed.
        PreconditionError: If a layer has not one input and one output that somebody reads, or
            these differ in dtype or shape, or that is not known.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1,2,3,4}>
        ... { h = MatMul(x, w)
        ...   y = Softmax(h) }''')
        >>> small = remove_layers(TiedModel(graph), "Softmax_y")
        >>> [node.op_type for node in small.ir.graph], small.ir.graph.outputs[0].name
        (['MatMul'], 'y')
    """
    smaller, _ = run(RemoveLayersPass(layers=names_of(layers, "names of layers")), model)
    return smaller


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoveLayersPlan(Plan):
    """Which layers go.

    Args:
        model: A draft, whose graph takes the place of the model's in the end: in which the calls
            are inlined that lead to the layers.
        inlined: These calls.
        ends: For each layer by its name what it is fed, and what comes out of it.
    """

    inlined: tuple[Change, ...]
    ends: Mapping[str, tuple[onnx_ir.Value, onnx_ir.Value]]


@dataclass(frozen=True, kw_only=True)
class RemoveLayersPass(SurgeryPass[RemoveLayersPlan]):
    """Take layers out of the way of what they read; see ``remove_layers``.

    Args:
        layers: A layer to remove.
    """

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE
    layers: tuple[str, ...] = ()

    def plan(self, model: TiedModel) -> RemoveLayersPlan:
        """Check that each layer can be spared."""
        draft = drafted(model)
        named = [one_layer(draft, name) for name in dict.fromkeys(self.layers)]
        draft, layers, inlined = inline_layers(draft, named)
        ends = {old.name: _ends(draft.ir, now) for old, now in zip(named, layers, strict=True)}
        return RemoveLayersPlan(model=draft, inlined=inlined, ends=ends)

    def apply(self, model: onnx_ir.Model, plan: RemoveLayersPlan) -> Rewrite:
        """Remove the layers, one after the other."""
        draft = plan.model.ir
        before, liveness, names = ReadersBefore(plan.model), Liveness(draft), NameAuthority(draft)
        changes = list(plan.inlined)
        replaced: dict[onnx_ir.Value, onnx_ir.Value] = {}
        for name, (source, output) in plan.ends.items():
            while source in replaced:  # what a layer before this one gave
                source = replaced[source]
            changes.append(Change(name, f"removed; {source.name} takes its place"))
            bypass(output, source, names)
            replaced[output] = source
        changes += [
            Change(f"{what} {each}", "nothing needs it any more")
            for what, each in liveness.remove_newly_dead()
        ]
        before.release_names(draft)
        adopt(model, plan.model)
        return Rewrite(tuple(changes))


def _ends(model: onnx_ir.Model, layer: Layer) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """Return what a layer is fed, and what comes out of it.

    Raises:
        PreconditionError: If the one cannot stand for the other.
    """
    own = dict.fromkeys(nodes_within(layer.nodes))
    made = {output for node in own for output in node.outputs}
    depends = input_dependent_values(model)
    read = [v for node in own for v in node.inputs if v is not None and v not in made]
    fed = [value for value in dict.fromkeys(read) if value in depends]
    given = [
        output
        for node in layer.nodes
        for output in node.outputs
        if output.is_graph_output() or any(use.node not in own for use in output.uses())
    ]
    if len(fed) != 1 or len(given) != 1:
        raise PreconditionError(
            f"expected a layer with one input and one output, got {printable(layer.name)}",
            {"inputs": _listed(fed), "outputs": _listed(given)},
            "remove outputs that it feeds, or cut the model with tieops.extract",
        )
    one, other = _type(fed[0]), _type(given[0])
    if one != other or "?" in one or fed[0].shape is None:
        raise PreconditionError(
            f"the input of {printable(layer.name)} cannot stand for its output",
            {"input": one, "output": other},
            "remove a layer that keeps dtype and shape, or cut the model with tieops.extract",
        )
    return fed[0], given[0]


def _listed(values: Sequence[onnx_ir.Value]) -> str:
    return ", ".join(printable(value.name or "") for value in values) or "none"


def _type(value: onnx_ir.Value) -> str:
    return brief(value.dtype, None if value.shape is None else value.shape.dims)
