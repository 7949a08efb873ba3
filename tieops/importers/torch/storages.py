"""Store what tensors of a module share once: the same range, a permutation, or a slice.

An address alone is not evidence: a packed projection starts where its first slice does. Two tensors
are tied if and only if one is a view of the other by offset, sizes and strides. Tensor subclasses,
which quantization libraries use as weights, are unwrapped first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tieops.errors import ExportError, UnsupportedModelError
from tieops.importers.torch.aliases import record_names
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
from tieops.ir.view import Reshape, Shape, Slice, Step, Transpose, View

__all__ = ["Alias", "find_aliases", "plain_tensors", "share"]


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


@dataclass(frozen=True)
class Alias:
    """A tensor that is a view of another one."""

    name: str
    base: str
    view: View
    """How to read ``base`` so as to see this tensor."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in its storage, in elements."""

    name: str
    offset: int
    shape: Shape
    strides: Shape

    @property
    def end(self) -> int:
        spans = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((size - 1) * stride for size, stride in spans) + 1

    @property
    def dense(self) -> bool:
        """Whether it covers each element of its range once, in some order of axes."""
        expected = 1
        for stride, size in sorted(zip(self.strides, self.shape, strict=True)):
            if size != 1:
                if stride != expected:
                    return False
                expected *= size
        return True


def find_aliases(tensors: Mapping[str, torch.Tensor]) -> list[Alias]:
    """Find which tensors are views of which other one.

    Args:
        tensors: Tensors by name; where two are equal views the first keeps the bytes.

    Returns:
        One ``Alias`` for each tensor that need not be stored. Tensors that share storage without
        sharing elements, or that overlap in a way that no chain of slice, reshape and transpose
        expresses, are left alone.
    """
    by_storage: defaultdict[tuple[object, ...], list[_Place]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), storage.nbytes(), tensor.dtype, str(tensor.device))
        place = _Place(name, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
        by_storage[key].append(place)
    aliases: list[Alias] = []
    for places in by_storage.values():
        if len(places) > 1:
            aliases += _aliases(places)
    order = {name: position for position, name in enumerate(tensors)}
    return sorted(aliases, key=lambda alias: order[alias.name])


def _aliases(places: list[_Place]) -> Iterator[Alias]:
    # The largest first, so that a slice finds what it is a slice of; equals keep their order.
    sizes = {place.name: torch.Size(place.shape).numel() for place in places}
    bases: list[_Place] = []
    for place in sorted(places, key=lambda place: -sizes[place.name]):
        for base in bases:
            view = _view_of(base, place) if base.dense else None
            if view is not None:
                yield Alias(place.name, base.name, view)
                break
        else:
            bases.append(place)


def _view_of(base: _Place, part: _Place) -> View | None:
    """Return the view of ``base`` that is ``part``, or None."""
    if part.offset < base.offset or part.end > base.end:
        return None
    if _is_same(base, part):
        return View(base.shape)
    return _axis_slices(base, part) or _flat_slice(base, part)


def _is_same(base: _Place, part: _Place) -> bool:
    """Return whether two tensors are one; the stride of an axis of size 1 says nothing."""
    strides = zip(base.strides, part.strides, base.shape, strict=False)
    return (
        base.offset == part.offset
        and base.shape == part.shape
        and all(mine == theirs or size == 1 for mine, theirs, size in strides)
    )


def _axis_slices(base: _Place, part: _Place) -> View | None:
    """Express ``part`` by a slice along the axes of ``base`` and an order of those axes."""
    axes = sorted(range(len(base.shape)), key=lambda axis: -base.strides[axis])
    rest = part.offset - base.offset
    starts: dict[int, int] = {}
    for axis in axes:
        if base.shape[axis] == 1:
            starts[axis] = 0
            continue
        starts[axis], rest = divmod(rest, base.strides[axis])
    if rest:
        return None
    ranges = {axis: (starts[axis], starts[axis] + 1, 1) for axis in axes}
    order: list[int] = []
    for size, stride in zip(part.shape, part.strides, strict=True):
        if size == 1:
            continue
        axis = next(
            (
                a
                for a in axes
                if a not in order
                and base.shape[a] > 1
                and stride % base.strides[a] == 0
                and starts[a] + (size - 1) * (stride // base.strides[a]) < base.shape[a]
                and stride >= base.strides[a]
            ),
            None,
        )
        if axis is None or stride == 0:
            return None
        step = stride // base.strides[axis]
        ranges[axis] = (starts[axis], starts[axis] + (size - 1) * step + 1, step)
        order.append(axis)
    sliced = Slice(tuple(ranges[axis] for axis in range(len(base.shape))))
    rest_axes = [axis for axis in range(len(base.shape)) if axis not in order]
    view = View(base.shape).then(sliced)
    # Axes that the part does not have are of size 1 now: where they stand makes no difference.
    if len(part.shape) == len(base.shape) and not rest_axes:
        return view.then(Transpose(tuple(order)))
    return view.then(Transpose((*order, *rest_axes))).then(Reshape(part.shape))


def _flat_slice(base: _Place, part: _Place) -> View | None:
    """Express a contiguous part of a contiguous base that has another shape."""
    if base.strides != _row_major(base.shape) or part.strides != _row_major(part.shape):
        return None
    total = torch.Size(base.shape).numel()
    start = part.offset - base.offset
    steps: list[Step] = [
        Reshape((total,)),
        Slice(((start, start + torch.Size(part.shape).numel(), 1),)),
        Reshape(part.shape),
    ]
    view = View(base.shape)
    for step in steps:
        view = view.then(step)
    return view


def _row_major(shape: Shape) -> Shape:
    strides: list[int] = []
    size = 1
    for each in reversed(shape):
        strides.append(size)
        size *= max(each, 1)
    return tuple(reversed(strides))


def plain_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with memory that these are made of.

    A tensor that wraps others (``__tensor_flatten__``) has no memory of its own. torch's exporter
    puts what it wraps in its place, and computes from that what the wrapper stands for, as
    ``torch.nn.utils.parametrize`` would: ``fc.weight`` becomes
    ``fc.parametrizations.weight.original0`` and so on.

    Args:
        tensors: Parameters and buffers by their names.

    Returns:
        The same for plain ones; in the place of each other the plain ones in it, under the names
        that they have in the exported program.

    Raises:
        ExportError: If one has no memory and does not say what it is made of.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not is_traceable_wrapper_subclass(tensor):
            _check_has_values(name, tensor)
            found[name] = tensor
            continue
        owner, dot, leaf = name.rpartition(".")
        for position, inner in enumerate(_inner(tensor)):
            found[f"{owner}{dot}parametrizations.{leaf}.original{position}"] = inner
    return found


def _check_has_values(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError as error:
        kind = type(tensor.data).__name__
        raise ExportError(
            f"expected {name} to have values that can be stored, got a {kind}",
            {"torch says": str(error).strip().partition("\n")[0]},
            "give that class __tensor_flatten__ and __tensor_unflatten__, or use plain tensors",
        ) from error


def _inner(tensor: Any) -> Iterator[torch.Tensor]:
    """Yield the plain tensors in one, in the order in which torch takes it apart."""
    # The data of a Parameter: a Parameter that is such a tensor flattens as the tensor does.
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        inner = getattr(tensor, name)
        if is_traceable_wrapper_subclass(inner):
            yield from _inner(inner)
        else:
            yield inner
