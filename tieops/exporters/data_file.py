"""The data file: where each stored tensor lies, and the bytes themselves.

Tensors that share bytes in the source share a range here: two names, one copy. So do tensors of
several models that are equal.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast, runtime_checkable

import numpy as np
import onnx_ir

from tieops.detect.common import find_equal
from tieops.ir.scopes import all_graphs, stored_values
from tieops.ir.storage import storage_key
from tieops.progress import advance, progress

__all__ = ["Layout", "lay_out", "write_data"]

PAGE_BYTES = 4096
PAGE_ALIGNED_FROM = 1_000_000
"""Large tensors begin on a page, so that each can be mapped and given back alone."""
SMALL_ALIGNMENT = 64
BLOCK_BYTES = 16 << 20


@runtime_checkable
class _CanWrite(Protocol):
    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes to a file."""


@dataclass(eq=False)
class Layout:
    """Which tensors go to the data file, and where.

    Args:
        ranges: For each tensor its values in the graph and its offset, in file order.
        size: The data file's size in bytes.
    """

    ranges: list[tuple[onnx_ir.TensorProtocol, list[onnx_ir.Value], int]] = field(
        default_factory=list[tuple[onnx_ir.TensorProtocol, list[onnx_ir.Value], int]]
    )
    size: int = 0

    @property
    def shares_ranges(self) -> bool:
        """Whether two names have one range, which only a data file can hold once."""
        return any(len(values) > 1 for _, values, _ in self.ranges)

    def refer_to(self, path: Path) -> None:
        """Make the graph's values refer to the file."""
        for tensor, values, offset in self.ranges:
            for value in values:
                own = value.const_value  # of the same bytes, and maybe of another shape
                own = tensor if own is None else own
                value.const_value = onnx_ir.ExternalTensor(
                    path.name,
                    offset,
                    int(tensor.nbytes),
                    own.dtype,
                    shape=onnx_ir.Shape(own.shape.numpy()),
                    name=value.name or "",
                    base_dir=str(path.parent),
                )

    def bring_inline(self, model: onnx_ir.Model, *, all_tensors: bool) -> None:
        """Take what does not go to the data file out of the files where it lies now."""
        elsewhere = set() if all_tensors else {v for _, values, _ in self.ranges for v in values}
        for graph in all_graphs(model):
            for value in graph.initializers.values():
                if value not in elsewhere and value.const_value is not None:
                    value.const_value = _in_memory(value.const_value)
            for node in graph:
                for name, attr in list(node.attributes.items()):
                    if not attr.is_ref() and attr.type == onnx_ir.AttributeType.TENSOR:
                        tensor = attr.as_tensor()
                        if isinstance(tensor, onnx_ir.ExternalTensor):
                            inline = _in_memory(tensor)
                            node.attributes[name] = onnx_ir.AttrTensor(name, inline)


def _in_memory(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    if not isinstance(tensor, onnx_ir.ExternalTensor):
        return tensor
    return onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def lay_out(models: Sequence[onnx_ir.Model], smallest: int) -> Layout:
    """Give every initializer of ``smallest`` bytes or more its place in one data file.

    Constant nodes, strings and small tensors stay in their model. Equal tensors of different models
    get one place; those of one model do not, unless they are one range of bytes already: nothing
    says that they belong together.
    """
    layout = Layout()
    seen: dict[Hashable, list[onnx_ir.Value]] = {}
    initializers = [
        [value for graph in all_graphs(model) for value in graph.initializers.values()]
        for model in models
    ]
    known = {value for values in initializers for value in values}
    same = _across(initializers, smallest) if len(models) > 1 else {}
    for value in (value for model in models for value in stored_values(model)):
        tensor = value.const_value
        assert tensor is not None
        key = storage_key(tensor)
        key = same.get(key, key)
        if value not in known or not _goes_out(tensor, smallest):
            continue
        if key in seen:
            seen[key].append(value)
        else:
            alignment = PAGE_BYTES if tensor.nbytes >= PAGE_ALIGNED_FROM else SMALL_ALIGNMENT
            offset = -(-layout.size // alignment) * alignment
            seen[key] = [value]
            layout.ranges.append((tensor, seen[key], offset))
            layout.size = offset + int(tensor.nbytes)
    return layout


def _goes_out(tensor: onnx_ir.TensorProtocol, smallest: int) -> bool:
    return tensor.dtype != onnx_ir.DataType.STRING and tensor.nbytes >= smallest


def _across(
    initializers: Sequence[Sequence[onnx_ir.Value]], smallest: int
) -> dict[Hashable, Hashable]:
    """Return, for each range of bytes, the range of another model that can stand for it."""
    stands_for: dict[Hashable, Hashable] = {}
    for members in find_equal(initializers, lambda each: _goes_out(each.tensor, smallest)):
        ranges: dict[Hashable, tuple[set[int], set[str]]] = {}
        for member in members:
            key = storage_key(member.parameter.tensor)
            models, names = ranges.setdefault(key, (set(), set()))
            models.add(member.model)
            names.update(member.parameter.names)
        kept: dict[Hashable, tuple[set[int], set[str]]] = {}
        for key, (models, names) in ranges.items():
            free = [other for other, (taken, _) in kept.items() if not taken & models]
            # Of several equal ones, the one that is called the same.
            free.sort(key=lambda other: not kept[other][1] & names)
            if free:
                stands_for[key] = free[0]
                kept[free[0]][0].update(models)
            else:
                kept[key] = (models, names)
    return stands_for


def write_data(layout: Layout, path: Path) -> None:
    """Write the bytes of a layout to a file that exists and is empty, and flush it to the disk."""
    what = f"writing {path.name.strip('.').removesuffix('.tmp')}"
    with path.open("r+b") as file, progress(what, layout.size, "bytes"):
        for tensor, _, offset in layout.ranges:
            file.seek(offset)
            _write_tensor(tensor, file)
            advance(int(tensor.nbytes))
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(tensor: onnx_ir.TensorProtocol, file: BinaryIO) -> None:
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, np.ndarray) and raw.ndim > 1 and not raw.flags.c_contiguous:
        _write_in_blocks(cast("np.ndarray[Any, Any]", raw), tensor, file)
    elif isinstance(tensor, _CanWrite):
        # onnx_ir copies external ranges within the kernel and writes arrays without a second copy.
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _write_in_blocks(
    array: np.ndarray[Any, Any], tensor: onnx_ir.TensorProtocol, file: BinaryIO
) -> None:
    """Write a transposed or sliced view a few rows at a time: no copy of the whole is made."""
    if tensor.dtype.bitwidth < 8:
        file.write(tensor.tobytes())
        return
    rows = max(1, BLOCK_BYTES // max(1, array[0].nbytes))
    for start in range(0, len(array), rows):
        file.write(np.ascontiguousarray(array[start : start + rows]).tobytes())
