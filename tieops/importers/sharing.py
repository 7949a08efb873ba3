"""One stored tensor for what a module shares, with every name it is known by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir
import torch

from tieops.errors import UnsupportedModelError
from tieops.importers.storages import Alias, find_aliases
from tieops.ir.evidence import Evidence
from tieops.ir.fresh import FreshNames
from tieops.ir.names import set_evidence, set_names
from tieops.ir.rewire import drop_unread, substitute
from tieops.ir.view import Reshape, Slice, Transpose, View

__all__ = ["share"]


def share(model: onnx_ir.Model, tensors: Mapping[str, torch.Tensor]) -> None:
    """Store what the module shares once, under its first name, and remember all its names."""
    initializers = model.graph.initializers
    aliases = find_aliases(tensors)
    bases = {alias.name: alias for alias in aliases}
    names: dict[str, list[str]] = {}
    for alias in aliases:
        names.setdefault(alias.base, [alias.base]).append(alias.name)
    for base, group in names.items():
        _move_to_base(model, base, group, bases, tensors)
        if base in initializers:
            same = all(tensors[name] is tensors[base] for name in group)
            set_names(initializers[base], group)
            set_evidence(initializers[base], Evidence.OBJECT if same else Evidence.STORAGE)


def _move_to_base(
    model: onnx_ir.Model,
    base: str,
    group: Sequence[str],
    aliases: Mapping[str, Alias],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Make the readers of every name in a group read the one stored tensor of ``base``."""
    initializers = model.graph.initializers
    present = [name for name in group if name in initializers]
    if not present:
        return
    if base not in initializers:
        same = next((n for n in present if aliases[n].view.is_identity), None)
        if same is not None:
            # The exporter keeps the last name of one object: give it back its first.
            value = initializers.pop(same)
            value.name = base
            initializers.add(value)
            present.remove(same)
        elif all(n == present[0] for n in present):
            return  # the program reads one slice and nothing else of this storage
        else:
            tensor = onnx_ir.tensor(tensors[base].detach(), name=base)
            value = onnx_ir.Value(name=base, const_value=tensor)
            value.type, value.shape = onnx_ir.TensorType(tensor.dtype), tensor.shape  # pyright: ignore[reportAttributeAccessIssue]
            initializers.add(value)
    keep = initializers[base]
    if keep.const_value is not None:
        keep.const_value.name = base
    for name in present:
        if name != base:
            old = initializers[name]
            _read_view(model, old, keep, aliases[name].view)
            drop_unread([old])


def _read_view(model: onnx_ir.Model, old: onnx_ir.Value, keep: onnx_ir.Value, view: View) -> None:
    perm = view.permutation
    if perm is not None:
        substitute(old, keep, perm, FreshNames(model))
        return
    name = old.name or ""
    del model.graph.initializers[name]
    old.name = f"{name}_stored"
    at = keep
    nodes: list[onnx_ir.Node] = []
    for step in view.steps:
        match step:
            case Slice(ranges):
                columns = [list(each) for each in zip(*ranges, strict=True)]
                operands = [*columns[:2], list(range(len(ranges))), columns[2]]
                inputs = [
                    _operand(model, name, f"{len(nodes)}_{i}", o) for i, o in enumerate(operands)
                ]
                node = onnx_ir.node("Slice", [at, *inputs])
            case Transpose(perm):
                node = onnx_ir.node("Transpose", [at], {"perm": list(perm)})
            case Reshape(sizes):
                shape = _operand(model, name, f"{len(nodes)}_shape", sizes)
                node = onnx_ir.node("Reshape", [at, shape])
            case _:
                raise UnsupportedModelError(f"{name} reads {keep.name} through {step}")
        node.name = f"{name}_view_{len(nodes)}"
        node.outputs[0].name = f"{name}_view_{len(nodes)}_out"
        node.outputs[0].type = keep.type
        nodes.append(node)
        at = node.outputs[0]
    at.name, at.shape = name, onnx_ir.Shape(view.shape)
    model.graph.insert_before(model.graph[0], nodes)
    for node, index in old.uses():
        node.replace_input_with(index, at)


def _operand(model: onnx_ir.Model, name: str, tail: str, numbers: Sequence[int]) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(list(numbers), dtype=onnx_ir.DataType.INT64, name=f"{name}_view_{tail}")
    value = onnx_ir.Value(
        name=tensor.name,
        const_value=tensor,
        type=onnx_ir.TensorType(tensor.dtype),
        shape=onnx_ir.Shape([len(numbers)]),
    )
    model.graph.initializers.add(value)
    return value
