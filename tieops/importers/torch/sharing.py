"""Store one tensor for what a module shares, with every name of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir
import torch

from tieops.errors import UnsupportedModelError
from tieops.importers.torch.aliases import record_names
from tieops.importers.torch.storages import Alias, find_aliases
from tieops.ir.edit import (
    NameAuthority,
    add_initializer,
    drop_unread,
    remove_initializer,
    rename_initializer,
    substitute,
)
from tieops.ir.evidence import Evidence
from tieops.ir.metadata.keys import set_evidence, set_names, set_stand_in
from tieops.ir.metadata.torch_kinds import copy_kind
from tieops.ir.readers.forms import set_forms
from tieops.ir.view import Reshape, Slice, Transpose, View

__all__ = ["share"]


def share(
    model: onnx_ir.Model,
    tensors: Mapping[str, torch.Tensor],
    stored: Mapping[str, onnx_ir.Value],
    places: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Store what a module shares once, under its first name, and remember all its names.

    Args:
        model: The exported graph; changed in place.
        tensors: The module's parameters and buffers under every name they have.
        stored: The initializer of each name that the exporter stored one for.
        places: The names of each name's place in the module, if every place of a shared parameter
            has an initializer of its own; then each reader's names are recorded.
    """
    _Sharing(model, tensors, stored).run(places)


class _Sharing:
    def __init__(
        self,
        model: onnx_ir.Model,
        tensors: Mapping[str, torch.Tensor],
        stored: Mapping[str, onnx_ir.Value],
    ) -> None:
        self._model = model
        self._tensors = tensors
        here = set(model.graph.initializers.values())
        self._stored = {fqn: value for fqn, value in stored.items() if value in here}
        self._names = NameAuthority(model)
        aliases = find_aliases(tensors)
        self._aliases = {alias.name: alias for alias in aliases}
        self._groups: dict[str, list[str]] = {}
        for alias in aliases:
            self._groups.setdefault(alias.base, [alias.base]).append(alias.name)

    def run(self, places: Mapping[str, tuple[str, ...]] | None) -> None:
        if places is not None:
            shared = {name for group in self._groups.values() for name in group}
            record_names(self._model, self._stored, shared, places)
        for base, group in self._groups.items():
            keep = self._gathered(base, group)
            if keep is not None:
                same = all(self._tensors[name] is self._tensors[base] for name in group)
                record = set_names if keep.name in group else set_stand_in
                record(keep, group)
                set_evidence(keep, Evidence.OBJECT if same else Evidence.STORAGE)
                views = {name: self._aliases[name].view for name in group if name in self._aliases}
                set_forms(keep, views)
        for fqn, value in self._stored.items():
            if value.name != fqn and fqn not in self._aliases and fqn not in self._groups:
                set_stand_in(value, [fqn])  # an input or another value of the program has its name

    def _gathered(self, base: str, group: Sequence[str]) -> onnx_ir.Value | None:
        """Make the readers of every name of a group read one stored tensor; return it."""
        present = [name for name in group if name in self._stored]
        if not present:
            return None
        keep = self._stored.get(base)
        if keep is None:
            same = next((n for n in present if self._aliases[n].view.is_identity), None)
            if same is not None:
                # The exporter keeps the last name of one object: give it back its first.
                keep = self._stored[same]
                rename_initializer(keep, base, self._names)
                present.remove(same)
            elif len(present) == 1:
                return None  # the program reads one slice and nothing else of this storage
            else:
                keep = self._store(base, self._tensors[base])
                copy_kind(keep, self._stored[present[0]])
        for name in present:
            if name != base:
                self._read_view(name, keep, self._aliases[name])
        return keep

    def _store(self, name: str, tensor: torch.Tensor) -> onnx_ir.Value:
        data = onnx_ir.tensor(tensor.detach(), name=name)
        return add_initializer(self._model, self._names.take(name), data)

    def _read_view(self, name: str, keep: onnx_ir.Value, alias: Alias) -> None:
        old, view = self._stored[name], alias.view
        if view.permutation is not None:
            substitute(old, keep, view.permutation, self._names)
            drop_unread([old])
            return
        # What is a slice of another tensor keeps its name as a value, and its bytes are gone.
        title = old.name or name
        remove_initializer(old)
        old.name = None
        nodes = self._nodes(title, keep, view)
        at = nodes[-1].outputs[0]
        at.name, at.shape = title, onnx_ir.Shape(view.shape)
        self._model.graph.insert_before(self._model.graph[0], nodes)
        old.replace_all_uses_with(at, replace_graph_outputs=True)

    def _nodes(self, title: str, keep: onnx_ir.Value, view: View) -> list[onnx_ir.Node]:
        """Return the nodes that compute a view of a stored tensor."""
        nodes: list[onnx_ir.Node] = []
        at = keep
        for step in view.steps:
            match step:
                case Slice(ranges):
                    starts, ends, steps = (list(each) for each in zip(*ranges, strict=True))
                    axes = list(range(len(ranges)))
                    operands = [self._ints(title, each) for each in (starts, ends, axes, steps)]
                    node = onnx_ir.node("Slice", [at, *operands])
                case Transpose(perm):
                    node = onnx_ir.node("Transpose", [at], {"perm": list(perm)})
                case Reshape(sizes):
                    node = onnx_ir.node("Reshape", [at, self._ints(title, list(sizes))])
                case _:
                    raise UnsupportedModelError(f"{title} reads {keep.name} through {step}")
            at = node.outputs[0]
            at.name = self._names.take(f"{title}_view")
            at.type = keep.type
            node.name = f"{at.name}_node"
            nodes.append(node)
        return nodes

    def _ints(self, title: str, numbers: list[int]) -> onnx_ir.Value:
        name = self._names.take(f"{title}_sizes")
        return add_initializer(self._model, name, np.array(numbers, np.int64))
