"""Rename inputs, outputs, layers and parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.arguments import mapping_of
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.edit import rename_values
from tieops.ir.layer import Layer
from tieops.ir.nearest import nearest
from tieops.ir.notation import printable
from tieops.ir.parameter import Parameter
from tieops.ir.readers.readers import record_reads
from tieops.ir.readers.renaming import rename_tensors
from tieops.ir.walk import rename_scope, set_layer_name
from tieops.model import Model, TiedModel
from tieops.passes.base import Change, Plan, Preserves, Rewrite, SurgeryPass, run

__all__ = ["RenamePass", "RenamePlan", "rename"]


def rename(model: Model, names: Mapping[str, str]) -> TiedModel:
    """Rename inputs, outputs, layers and parameters.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.
        names: New names by old ones; all at once, so that two can change places. An old name is
            that of an input or output, a parameter (any of its names: the others stay), a layer,
            or another value of the main graph, the first of these that there is. A layer takes
            along the names that it owns: with ``{"fc": "head"}``, ``fc.weight`` becomes
            ``head.weight``, whoever else reads the tensor under another name. Further calls of the
            layer's module, ``fc@1``, become ``head@1``.

    Returns:
        A new model that computes the same to the last bit, under the new names.

    Raises:
        SelectionError: If nothing has an old name.
        PreconditionError: If something else has a new name, or two are to have the same.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1,2,3,4}>
        ... { y = MatMul(x, w) }''')
        >>> named = rename(TiedModel(graph), {"y": "logits", "w": "head.weight"})
        >>> named.ir.graph.outputs[0].name, named.parameters[0].name
        ('logits', 'head.weight')
    """
    pairs = mapping_of(names, "new names by old ones", 'give a dict, such as {"fc": "head"}')
    renamed, _ = run(RenamePass(names=tuple(pairs.items())), model)
    return renamed


@dataclass(frozen=True, kw_only=True, eq=False)
class RenamePlan(Plan):
    """What gets another name.

    Args:
        values: Values, each with its new name.
        tensors: Names of stored tensors in the records of the file, with the new ones.
        layers: Layers, each with what it is called and what it will be.
    """

    values: Mapping[onnx_ir.Value, str]
    tensors: Mapping[str, str]
    layers: Sequence[tuple[Layer, str, str]]


@dataclass(frozen=True, kw_only=True)
class RenamePass(SurgeryPass[RenamePlan]):
    """Give things new names; see ``rename``.

    Args:
        names: A new name, as old=new: of an input, an output, a parameter, a layer or a value.
    """

    preserves: ClassVar[Preserves] = Preserves.BITS
    names: tuple[tuple[str, str], ...] = ()

    def plan(self, model: TiedModel) -> RenamePlan:
        """Check that the old names are there and the new ones free."""
        finder = _Finder(model, dict(self.names))
        finder.check()
        return RenamePlan(
            model=model, values=finder.values, tensors=finder.tensors, layers=finder.layers
        )

    def apply(self, model: onnx_ir.Model, plan: RenamePlan) -> Rewrite:
        """Rename all that was asked for."""
        _rename_layers(plan)
        rename_tensors(model, plan.tensors)
        rename_values(model, plan.values)
        return Rewrite(tuple(Change(old, f"is called {new} now") for old, new in self.names))


class _Finder:
    """Finds what gets another name.

    Args:
        tied: The model.
        names: New names by old ones.
    """

    def __init__(self, tied: TiedModel, names: Mapping[str, str]) -> None:
        self.values: dict[onnx_ir.Value, str] = {}
        self.tensors: dict[str, str] = {}
        self.layers: list[tuple[Layer, str, str]] = []
        self._tied = tied
        self._names = names
        graph = tied.ir.graph
        self._ports = {v.name: v for v in (*graph.inputs, *graph.outputs)}
        self._made = {v.name: v for node in graph for v in node.outputs if v.name}
        self._owners: dict[
            str, list[Parameter]
        ] = {}  # of tensors in two branches, one name has two
        for each in tied.parameters:
            for name in each.names:
                self._owners.setdefault(name, []).append(each)
        for old, new in names.items():
            self._add(old, new)

    def _add(self, old: str, new: str) -> None:
        layers = [each for each in self._tied.layers if _module(each.name) == old]
        if old in self._ports:
            self.values[self._ports[old]] = new
        elif old in self._owners:
            self._add_tensor(old, new)
        elif layers:
            for layer in layers:
                self._add_layer(layer, old, new)
        elif old in self._made:
            self.values[self._made[old]] = new
        else:
            known = [*self._ports, *self._owners, *(each.name for each in self._tied.layers)]
            raise SelectionError(
                f"nothing in the model is named {printable(old)}",
                nearest(old, [each for each in known if each], "names"),
                "name an input, an output, a parameter or a layer; see print(model)",
            )

    def _add_tensor(self, old: str, new: str) -> None:
        self.tensors[old] = new
        for owner in self._owners[old]:
            if owner.name == old:
                self.values[owner.value] = new

    def _add_layer(self, layer: Layer, old: str, new: str) -> None:
        self.layers.append((layer, old, new))
        for parameter in dict.fromkeys(r.parameter for slot in layer.slots for r in slot.reads):
            for reader in self._tied.readers(parameter).all:
                if not set(layer.slots).isdisjoint(reader.slots):
                    for name in reader.names:
                        role = name.removeprefix(f"{old}.")
                        if role != name and name not in self._names:
                            self._add_tensor(name, f"{new}.{role}")

    def check(self) -> None:
        """Refuse new names that something else has, or that two things would have."""
        new = [*self._names.values(), *self.tensors.values()]
        gone = {*self._names, *self.tensors, *(value.name for value in self.values)}
        kept = {*self._ports, *self._owners, *(each.name for each in self._tied.layers)} - gone
        twice = [name for name, count in Counter(self._names.values()).items() if count > 1]
        for name in dict.fromkeys(new):
            if not name:
                raise PreconditionError(
                    "expected new names, got an empty one", None, "give each a name of its own"
                )
            if name in twice or name in kept:
                raise PreconditionError(
                    f"two things would be called {printable(name)}",
                    {"renamed": ", ".join(map(printable, self._names))},
                    "choose names that nothing else in the model has",
                )


def _rename_layers(plan: RenamePlan) -> None:
    """Write the new names of layers on their nodes, and which names of tensors they own."""
    for layer, old, new in plan.layers:
        for slot in layer.slots:
            for parameter in dict.fromkeys(read.parameter for read in slot.reads):
                owned = plan.model.readers(parameter).of(slot).names
                record_reads(slot.node, slot.index, owned)
        for node in layer.nodes:
            rename_scope(node, old, new)
            set_layer_name(node, f"{new}{layer.name.removeprefix(old)}")


def _module(layer: str) -> str:
    """Return what a layer's module is called: further calls have their number behind it."""
    name, _, call = layer.rpartition("@")
    return name if name and call.isdecimal() else layer
