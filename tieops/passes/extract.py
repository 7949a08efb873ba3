"""Extract: the part of a model between some of its values or layers, as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.arguments import names_of
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.dataflow.input_dependent import input_dependent_values
from tieops.ir.dataflow.liveness import dependent_values, eliminate_dead_code, live_values
from tieops.ir.dataflow.regions import RegionInterface
from tieops.ir.edit import NameAuthority, as_graph_input
from tieops.ir.nearest import nearest
from tieops.ir.notation import printable
from tieops.ir.walk import all_nodes, nodes_within
from tieops.model import Model, TiedModel
from tieops.passes.base import Change, Plan, Preserves, Rewrite, SurgeryPass, adopt, run
from tieops.passes.inline import drafted, inline_layers
from tieops.passes.readers_gone import ReadersBefore

__all__ = ["ExtractPass", "ExtractPlan", "extract"]


def extract(model: Model, *, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> TiedModel:
    """Return the part of a model that computes some values from some others.

    An encoder or a decoder, a backbone without its head, or what comes behind an embedding. Ties
    stay ties: a parameter that several layers of the part share is stored once in it. Parts of one
    model that are written together, ``to_onnx([encoder, decoder], …)``, share one data file.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.
        inputs: Where the part begins: graph inputs, values between layers, which become inputs of
            the part, or layers, which are its first ones. A value's name goes before a layer's.
            Without any, those of the model's own inputs that the outputs need.
        outputs: Where it ends: values, or layers, which are its last ones. Without any, those of
            the model's own outputs that depend on the inputs.

    Returns:
        A new model with these inputs and outputs, in the order in which they are named. Values
        keep their names, so the parts of a model can be chained. Given the values that the whole
        model computes at its inputs, it computes the same as the whole, to the last bit with the
        runtime's optimizations off.

    Raises:
        SelectionError: If nothing has a given name, or it lies in a branch or body of an If, Loop
            or Scan, whose values have no meaning outside of it.
        PreconditionError: If neither ``inputs`` nor ``outputs`` is given, an output needs an input
            that is not named, no output depends on an input, or the type of an input is not known.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 3] y) <float[3, 2] emb = {1,2,3,4,5,6}>
        ... { h = Gather(emb, x)
        ...   t = Transpose<perm = [1, 0]>(emb)
        ...   y = MatMul(h, t) }''')
        >>> encoder = extract(TiedModel(graph), outputs=["h"])
        >>> decoder = extract(TiedModel(graph), inputs=["h"])
        >>> [node.op_type for node in encoder.ir.graph], [v.name for v in decoder.inputs]
        (['Gather'], ['h'])
    """
    surgery = ExtractPass(
        inputs=names_of(inputs, "names of values or layers"),
        outputs=names_of(outputs, "names of values or layers"),
    )
    part, _ = run(surgery, model)
    return part


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractPlan(Plan):
    """Where the part begins and ends.

    Args:
        model: A draft, whose graph takes the place of the model's in the end: in which the calls
            are inlined that lead to the layers that are named.
        inlined: These calls.
        inputs: Where the part begins; empty if it begins at the model's inputs.
        outputs: Where it ends.
    """

    inlined: tuple[Change, ...]
    inputs: tuple[onnx_ir.Value, ...]
    outputs: tuple[onnx_ir.Value, ...]


@dataclass(frozen=True, kw_only=True)
class ExtractPass(SurgeryPass[ExtractPlan]):
    """Keep what lies between some values; see ``extract``.

    Args:
        inputs: Where the part begins: an input, a value between layers, or a layer that is one of
            its first.
        outputs: Where it ends: a value, or a layer that is one of its last.
    """

    preserves: ClassVar[Preserves] = Preserves.BITS
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def plan(self, model: TiedModel) -> ExtractPlan:
        """Find the part, and check that its outputs depend on its inputs and nothing else."""
        if not self.inputs and not self.outputs:
            raise PreconditionError(
                "expected where the part begins or ends, got neither",
                None,
                'name values or layers: extract(model, inputs=["h"], outputs=["y"])',
            )
        draft, names = drafted(model), {*self.inputs, *self.outputs}
        named = [layer for layer in draft.layers if layer.name in names]
        draft, _, inlined = inline_layers(draft, named)
        lookup = _Lookup(draft)
        fed = [value for name in self.inputs for value in lookup.first(name)]
        made = [value for name in self.outputs for value in lookup.last(name)]
        graph, functions = draft.ir.graph, draft.ir.functions
        interfaces = [RegionInterface.of(node, functions) for node in all_nodes(draft.ir)]
        if not made:
            behind = dependent_values(fed, interfaces)
            made = [v for v in graph.outputs if v in behind and v not in fed]
        plan = ExtractPlan(
            model=draft,
            inlined=inlined,
            inputs=tuple(dict.fromkeys(fed)),
            outputs=tuple(dict.fromkeys(made)),
        )
        _check(plan, interfaces)
        return plan

    def apply(self, model: onnx_ir.Model, plan: ExtractPlan) -> Rewrite:
        """Cut the part out, and say what it took."""
        draft = plan.model.ir
        before = ReadersBefore(plan.model)
        changes = [*plan.inlined, *_cut(plan, NameAuthority(draft))]
        changes += [
            Change(f"{what} {name}", "not in the part")
            for what, name in eliminate_dead_code(draft, unused_inputs=True)
        ]
        before.release_names(draft)
        adopt(model, plan.model)
        return Rewrite(tuple(changes))


class _Lookup:
    """What a name stands for: a value of the main graph, or a layer."""

    def __init__(self, tied: TiedModel) -> None:
        graph = tied.ir.graph
        made = (output for node in graph for output in node.outputs)
        values = (*graph.initializers.values(), *graph.inputs, *made)
        self._values = {value.name: value for value in values if value.name}
        self._layers = tied.layers
        self._model = tied.ir

    def first(self, name: str) -> list[onnx_ir.Value]:
        """Return the values that a part which begins here is fed."""
        found = self._find(name)
        if isinstance(found, onnx_ir.Value):
            if found.is_initializer() and not found.is_graph_input():
                raise SelectionError(
                    f"expected a value that is computed, got the stored tensor {printable(name)}",
                    None,
                    "name what a layer reads from others; a part stores what it needs",
                )
            return [found]
        made = {output for node in found for output in node.outputs}
        depends = input_dependent_values(self._model)
        read = [v for node in nodes_within(found) for v in node.inputs if v is not None]
        fed = [v for v in dict.fromkeys(read) if v in depends and v not in made]
        return [v for v in fed if v.graph is self._model.graph]

    def last(self, name: str) -> list[onnx_ir.Value]:
        """Return the values that a part which ends here gives."""
        found = self._find(name)
        if isinstance(found, onnx_ir.Value):
            return [found]
        own = {*nodes_within(found)}
        return [
            output
            for node in found
            for output in node.outputs
            if output.is_graph_output() or any(use.node not in own for use in output.uses())
        ]

    def _find(self, name: str) -> onnx_ir.Value | Sequence[onnx_ir.Node]:
        value = self._values.get(name)
        if value is not None:
            return value
        found = [layer for layer in self._layers if layer.name == name]
        found = found or [each for each in self._layers if each.name.startswith(f"{name}.")]
        if len(found) != 1:
            known = [*self._values, *(layer.name for layer in self._layers)]
            raise SelectionError(
                f"the model has no value or layer called {printable(name)}",
                nearest(name, known, "values"),
                "name one of these; see print(model.layers)",
            )
        if any(node.graph is not self._model.graph for node in found[0].nodes):
            raise SelectionError(
                f"the layer {printable(name)} lies in the body of an If, Loop or Scan",
                None,
                "name a layer outside of it, such as the one that holds it",
            )
        return found[0].nodes


def _check(plan: ExtractPlan, interfaces: Sequence[RegionInterface]) -> None:
    """Refuse a part that needs more than its inputs, or less."""
    if not plan.outputs:
        raise PreconditionError(
            "no output of the model depends on the inputs of the part",
            {"inputs": _listed(plan.inputs)},
            "name outputs of the part: outputs=[...]",
        )
    needed = live_values(plan.outputs, interfaces, cuts=plan.inputs)
    fed = [
        value
        for value in plan.model.ir.graph.inputs
        if value in needed and not value.is_initializer()
    ]
    missing = [value for value in fed if value not in plan.inputs]
    if plan.inputs and missing:
        raise PreconditionError(
            "the outputs of the part need more than its inputs",
            {"inputs": _listed(plan.inputs), "needed too": _listed(missing)},
            "name these as inputs too, or cut nearer to the outputs",
        )
    unused = [value for value in plan.inputs if value not in needed]
    if unused:
        raise PreconditionError(
            "no output of the part depends on some of its inputs",
            {"inputs": _listed(unused), "outputs": _listed(plan.outputs)},
            "leave these inputs out, or name outputs behind them",
        )
    for value in (*plan.inputs, *plan.outputs):
        if value.type is None:
            raise PreconditionError(
                f"the type of {printable(value.name or '')} is not known, and inputs and outputs "
                "declare theirs",
                None,
                "cut at a value whose type ONNX's shape inference finds, before or behind it",
            )


def _listed(values: Iterable[onnx_ir.Value]) -> str:
    return ", ".join(printable(value.name or "") for value in values)


def _cut(plan: ExtractPlan, names: NameAuthority) -> Iterator[Change]:
    graph = plan.model.ir.graph
    graph.outputs.clear()
    new = {value: as_graph_input(value, names) for value in plan.inputs}
    if new:
        kept = [value for value in graph.inputs if value.is_initializer() and value not in new]
        graph.inputs.clear()
        graph.inputs.extend([*new.values(), *kept])
    graph.outputs.extend(new.get(value, value) for value in plan.outputs)
    for old, value in new.items():
        if old is not value:
            yield Change(f"input {value.name}", "what computes it is not in the part")
    for value in plan.outputs:
        yield Change(f"output {new.get(value, value).name}", "the part ends here")
