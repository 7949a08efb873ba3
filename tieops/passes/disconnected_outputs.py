"""Remove graph outputs: those that no input reaches, or those that are named."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.arguments import names_of
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.dataflow.dead_arguments import with_dead_outputs
from tieops.ir.dataflow.input_dependent import input_dependent_values
from tieops.ir.dataflow.liveness import eliminate_dead_code
from tieops.ir.nearest import nearest
from tieops.ir.notation import printable
from tieops.model import Model, TiedModel
from tieops.passes.base import Change, Plan, Preserves, Rewrite, Skip, SurgeryPass, run
from tieops.passes.readers_gone import ReadersBefore

__all__ = ["RemoveDisconnectedOutputsPass", "RemoveOutputsPlan", "remove_disconnected_outputs"]


def remove_disconnected_outputs(
    model: Model,
    *,
    outputs: Iterable[str] = (),
    keep: Iterable[str] = (),
    unused_inputs: bool = False,
) -> TiedModel:
    """Remove outputs that no input reaches, or named ones, and everything that only they needed.

    An output that is computed from stored tensors alone says nothing about the input: it is what
    remains, for one, of an embedding's weights output once its transpose is gone. Whether an input
    reaches an output is told for each output of an If, a Loop, a Scan or a function by itself.

    What nobody reads goes from these too: outputs, with what the branches, bodies and functions
    compute for them, states of loops that only feed themselves, scanned inputs, and inputs of
    functions, from the function and from all of its calls.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.
        outputs: Remove just these, connected or not.
        keep: Keep just these, connected or not.
        unused_inputs: Remove graph inputs that nothing reads any more, too.

    Returns:
        A new model without the outputs, the nodes, the stored tensors and the functions that only
        they needed. The outputs that stay are the same to the last bit.

    Raises:
        SelectionError: If the model has no output of a given name.
        PreconditionError: If no output would be left, or both ``outputs`` and ``keep`` are given.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 2] y, float[2, 3] weights)
        ... <float[3, 2] emb = {1,2,3,4,5,6}>
        ... { y = Gather(emb, x)
        ...   weights = Transpose<perm = [1, 0]>(emb) }''')
        >>> [o.name for o in remove_disconnected_outputs(TiedModel(graph)).ir.graph.outputs]
        ['y']
    """
    surgery = RemoveDisconnectedOutputsPass(
        outputs=names_of(outputs, "names of outputs"),
        keep=names_of(keep, "names of outputs"),
        unused_inputs=unused_inputs,
    )
    smaller, _ = run(surgery, model)
    return smaller


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoveOutputsPlan(Plan):
    """Which outputs go.

    Args:
        staying: The places of those that stay.
        gone: The names of the others.
    """

    staying: frozenset[int]
    gone: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RemoveDisconnectedOutputsPass(SurgeryPass[RemoveOutputsPlan]):
    """Remove outputs and what only they kept alive; see ``remove_disconnected_outputs``.

    Args:
        outputs: An output to remove, connected or not.
        keep: An output to keep; all others go.
        unused_inputs: Remove inputs that nothing reads, too.
    """

    preserves: ClassVar[Preserves] = Preserves.BITS
    outputs: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    unused_inputs: bool = False

    def plan(self, model: TiedModel) -> RemoveOutputsPlan:
        """Check the names, and that an output is left."""
        names = [output.name or "" for output in model.ir.graph.outputs]
        if self.outputs and self.keep:
            raise PreconditionError(
                "outputs= and keep= cannot be combined",
                {"outputs": ", ".join(self.outputs), "keep": ", ".join(self.keep)},
                "give one of them",
            )
        for name in (*self.outputs, *self.keep):
            if name not in names:
                raise SelectionError(
                    f"the model has no output named {printable(name)}",
                    nearest(name, names, "outputs"),
                    "name one of these",
                )
        staying = _staying(model.ir, self.outputs, self.keep)
        if not staying:
            raise PreconditionError(
                "no output would be left",
                {"outputs": ", ".join(map(printable, names))},
                "keep one of them: keep=[...]",
            )
        gone = tuple(name for place, name in enumerate(names) if place not in staying)
        return RemoveOutputsPlan(model=model, staying=frozenset(staying), gone=gone)

    def apply(self, model: onnx_ir.Model, plan: RemoveOutputsPlan) -> Rewrite:
        """Remove what goes, and say why."""
        graph = model.graph
        before = ReadersBefore(plan.model)
        named = bool(self.outputs or self.keep)
        why = "removed as asked" if named else "no graph input reaches it"
        changes = [Change(f"output {name}", why) for name in plan.gone]
        kept = [output for i, output in enumerate(graph.outputs) if i in plan.staying]
        graph.outputs.clear()
        graph.outputs.extend(kept)
        changes += [
            Change(f"{what} {name}", "nothing needs it any more")
            for what, name in eliminate_dead_code(model, unused_inputs=self.unused_inputs)
        ]
        before.release_names(model)
        skips = [
            Skip(node.name or node.op_type, f"nobody reads some of its outputs, but {why}")
            for node, why in with_dead_outputs(model)
        ]
        if not self.unused_inputs:
            skips += [
                Skip(f"input {value.name}", "nothing reads it; unused_inputs=True removes it")
                for value in graph.inputs
                if not value.uses() and not value.is_graph_output()
            ]
        return Rewrite(tuple(changes), tuple(skips))


def _staying(model: onnx_ir.Model, outputs: Sequence[str], keep: Collection[str]) -> set[int]:
    if keep:
        return {i for i, output in enumerate(model.graph.outputs) if output.name in keep}
    if outputs:
        return {i for i, output in enumerate(model.graph.outputs) if output.name not in outputs}
    reached = input_dependent_values(model)
    return {i for i, output in enumerate(model.graph.outputs) if output in reached}
