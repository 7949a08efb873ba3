"""Decide where each stored tensor goes: into the model, a new data file, or its present place.

Tensors that share bytes in the source share a range in the new data file: two names, one copy. So
do equal tensors of different models.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir

from tieops.analysis.duplicates.across_models import find_equal
from tieops.errors import ExportError
from tieops.ir.notation import printable
from tieops.ir.storage.byte_ranges import storage_key
from tieops.ir.walk import all_graphs

__all__ = ["Layout", "Range", "lay_out"]

PAGE_BYTES = 4096
PAGE_ALIGNED_FROM = 1_000_000
"""Large tensors begin on a page, so that each can be mapped and given back alone."""
SMALL_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class Range:
    """A part of the new data file.

    Args:
        tensor: Whose bytes it holds.
        values: The values that have them.
        offset: Where it begins.
    """

    tensor: onnx_ir.TensorProtocol
    values: list[onnx_ir.Value]
    offset: int

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return int(self.tensor.nbytes)


@dataclass(eq=False)
class Layout:
    """Which tensors go to a new data file, where they lie in it, and which stay in an old one.

    Args:
        ranges: The parts of the new data file, in its order.
        size: The new data file's size in bytes.
        staying: Values whose tensors stay in the data files where they lie now.
        path: The new data file's name, once it has one.
    """

    ranges: list[Range] = field(default_factory=list[Range])
    size: int = 0
    staying: dict[onnx_ir.Value, onnx_ir.ExternalTensor] = field(
        default_factory=dict[onnx_ir.Value, onnx_ir.ExternalTensor]
    )
    path: Path | None = None

    @property
    def shares_ranges(self) -> bool:
        """Whether two names have one range, which only a data file can hold once."""
        return any(len(each.values) > 1 for each in self.ranges)

    @property
    def files_kept(self) -> list[Path]:
        """The data files that tensors stay in."""
        return [Path(path) for path in dict.fromkeys(t.path for t in self.staying.values())]

    def refer_to(self, path: Path) -> None:
        """Give the new data file its name, and make its values refer to it."""
        self.path = path
        for each in self.ranges:
            for value in each.values:
                # One range may be read with several shapes (a reshape without a copy), so each
                # value keeps its shape and only the place is shared.
                own = value.const_value  # of the same bytes, and maybe of another shape
                own = each.tensor if own is None else own
                value.const_value = _external(own, value, path, each.offset)

    def settle(self, model: onnx_ir.Model, folder: Path, *, inline: bool) -> None:
        """Make what stays refer to its file from the folder, and take all the rest inline.

        Args:
            model: The model that is about to be written into the folder.
            folder: The folder.
            inline: Whether no tensor lies in a data file.
        """
        ours = set() if inline else {value for each in self.ranges for value in each.values}
        for graph in all_graphs(model):
            for value in graph.initializers.values():
                if value in self.staying:
                    tensor = self.staying[value]
                    path = folder / _beside(tensor.path, folder)
                    value.const_value = _external(tensor, value, path, tensor.offset or 0, folder)
                elif value not in ours and value.const_value is not None:
                    value.const_value = _in_memory(value.const_value)
            for node in graph:
                _settle_attributes(node)


def _settle_attributes(node: onnx_ir.Node) -> None:
    for name, attr in list(node.attributes.items()):
        if not attr.is_ref() and attr.type == onnx_ir.AttributeType.TENSOR:
            tensor = attr.as_tensor()
            if isinstance(tensor, onnx_ir.ExternalTensor):
                node.attributes[name] = onnx_ir.AttrTensor(name, _in_memory(tensor))


def _external(
    tensor: onnx_ir.TensorProtocol,
    value: onnx_ir.Value,
    path: Path,
    offset: int,
    folder: Path | None = None,
) -> onnx_ir.ExternalTensor:
    folder = folder or path.parent
    return onnx_ir.ExternalTensor(
        path.relative_to(folder).as_posix(),
        offset,
        int(tensor.nbytes),
        tensor.dtype,
        shape=onnx_ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
        base_dir=str(folder),
    )


def _in_memory(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    if not isinstance(tensor, onnx_ir.ExternalTensor):
        return tensor
    return onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def lay_out(models: Sequence[onnx_ir.Model], smallest: int, reuse_in: Path | None = None) -> Layout:
    """Give every initializer of ``smallest`` bytes or more its place in a data file.

    Constant nodes, strings and small tensors stay in their model. Equal tensors of different models
    get one place; those of one model do not, unless they are one range of bytes already: nothing
    says that they belong together.

    Args:
        models: The models.
        smallest: From how many bytes on a tensor goes to a data file.
        reuse_in: The folder where tensors that lie in data files stay there; by default all of
            them get a place in a new one.

    Raises:
        ExportError: If tensors that should stay lie outside of the folder.
    """
    layout = Layout()
    initializers = [
        [
            value
            for graph in all_graphs(model)
            for value in graph.initializers.values()
            if value.const_value is not None and _goes_out(value.const_value, smallest)
        ]
        for model in models
    ]
    if reuse_in is not None:
        for value, tensor in _tensors(initializers):
            if isinstance(tensor, onnx_ir.ExternalTensor):
                _beside(tensor.path, reuse_in, value)
                layout.staying[value] = tensor
    moving = [[value for value in each if value not in layout.staying] for each in initializers]
    # A key is a range of bytes in a file or in memory. Two initializers with one key were one
    # range before, and stay one. Equal content alone never joins two initializers of one model:
    # a shared range would read back as a tie.
    same = _across(moving) if len(models) > 1 else {}
    places: dict[Hashable, list[onnx_ir.Value]] = {}
    for value, tensor in _tensors(moving):
        key = storage_key(tensor)
        places.setdefault(same.get(key, key), []).append(value)
    for values in places.values():
        tensor = next(_tensors([values]))[1]
        # Whole pages let a large tensor be mapped, and dropped from memory, without its neighbours.
        alignment = PAGE_BYTES if tensor.nbytes >= PAGE_ALIGNED_FROM else SMALL_ALIGNMENT
        offset = -(-layout.size // alignment) * alignment
        layout.ranges.append(Range(tensor, values, offset))
        layout.size = offset + int(tensor.nbytes)
    return layout


def _tensors(
    initializers: Sequence[Sequence[onnx_ir.Value]],
) -> Iterator[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]:
    for values in initializers:
        for value in values:
            if value.const_value is not None:
                yield value, value.const_value


def _beside(path: str, folder: Path, value: onnx_ir.Value | None = None) -> str:
    """Return a data file's path from the folder of the model.

    Raises:
        ExportError: If it lies outside.
    """
    there = os.path.realpath(os.path.dirname(path) or ".")
    here = os.path.realpath(folder)
    if os.path.commonpath([there, here]) != here:
        name = "" if value is None else f"{printable(value.name or '')} lies in "
        raise ExportError(
            "cannot reuse data outside the folder of the model",
            {"data": f"{name}{path}", "folder": here},
            f"write the model into {there}, or leave reuse out: the data is copied then",
        )
    return os.path.join(os.path.relpath(there, here), os.path.basename(path)).removeprefix("./")


def _goes_out(tensor: onnx_ir.TensorProtocol, smallest: int) -> bool:
    return tensor.dtype != onnx_ir.DataType.STRING and tensor.nbytes >= smallest


def _across(initializers: Sequence[Sequence[onnx_ir.Value]]) -> dict[Hashable, Hashable]:
    """Return, for each range of bytes, the range of another model that can stand for it."""
    stands_for: dict[Hashable, Hashable] = {}
    for members in find_equal(initializers):
        ranges: dict[Hashable, tuple[set[int], set[str]]] = {}
        for member in members:
            key = storage_key(member.parameter.tensor)
            models, names = ranges.setdefault(key, (set(), set()))
            models.add(member.model)
            names.update(member.parameter.names)
        kept: dict[Hashable, tuple[set[int], set[str]]] = {}
        for key, (models, names) in ranges.items():
            # Equal tensors of one model must stay apart, so a range can stand for at most one range
            # of each other model: it is free only if none of the models of this range uses it
            # already.
            free = [other for other, (taken, _) in kept.items() if not taken & models]
            # Of several equal ones, the one that is called the same.
            free.sort(key=lambda other: not kept[other][1] & names)
            if free:
                stands_for[key] = free[0]
                kept[free[0]][0].update(models)
            else:
                kept[key] = (models, names)
    return stands_for
