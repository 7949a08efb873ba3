"""The graph as ONNX Runtime optimized it: its initializers, and which of them are packed.

With ``session.save_external_prepacked_constant_initializers``, ONNX Runtime lists each packed copy
in the external-data entries of its initializer: ``prepacked_0: Gemm+HASH|OFFSET;BYTES;CHECKSUM``.
Copies with one key are one buffer in memory.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir

from tieops.analysis.duplicates.bit_equality import bit_equal, bits
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.view import Cast, Computed, Dequantize, Join, Transpose, View
from tieops.ir.walk import all_graphs

__all__ = ["Packed", "initializers", "packed_of", "read_optimized", "reading_of"]

_PREPACKED = "prepacked_"
_KEY = "tieops.prepacked"
MAX_PERMUTED_RANK = 3
"""Up to this rank a copy is looked for in every order of axes; above, as the slots read it."""
BLOCKED_RANK = 4
"""The rank of a kernel that ONNX Runtime reorders into blocks of channels."""
MAX_PADDING = 8
"""How many times larger a blocked layout can be: one channel is padded to a block."""


@dataclass(frozen=True)
class Packed:
    """One packed copy of an initializer.

    Attributes:
        key: Operator and hash; copies of one key are one buffer.
        nbytes: Its size.
    """

    key: str
    nbytes: int

    @property
    def op_type(self) -> str:
        """The operator that it is packed for."""
        return self.key.partition("+")[0]


def read_optimized(path: Path) -> onnx_ir.Model:
    """Read a graph that ONNX Runtime wrote; weights stay in their file."""
    proto = onnx.load(path, load_external_data=False)
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        for tensor in graph.initializer:
            packed = [e for e in tensor.external_data if e.key.startswith(_PREPACKED)]
            for entry in packed:
                number = entry.key.removeprefix(_PREPACKED)
                tensor.metadata_props.add(key=f"{_KEY}.{number}", value=entry.value)
                tensor.external_data.remove(entry)
        for node in graph.node:
            for attribute in node.attribute:
                stack.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    model = onnx_ir.from_proto(proto)
    for graph in all_graphs(model):
        onnx_ir.external_data.set_base_dir(graph, path.parent)
    return model


def initializers(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    """Yield every initializer of the graph and of the graphs inside it."""
    for graph in all_graphs(model):
        yield from graph.initializers.values()


def packed_of(value: onnx_ir.Value) -> tuple[Packed, ...]:
    """Return the packed copies that are listed for an initializer."""
    tensor = value.const_value
    if tensor is None:
        return ()
    found: list[Packed] = []
    for name, text in tensor.metadata_props.items():
        if not name.startswith(_KEY):
            continue
        key, *parts = text.split("|")
        sizes = [re.fullmatch(r"\d+;(\d+);\d*", part) for part in parts]
        found.append(Packed(key, sum(int(size[1]) for size in sizes if size)))
    return tuple(found)


def reading_of(
    parameter: Parameter, slots: tuple[Slot, ...], tensor: onnx_ir.TensorProtocol
) -> str | None:
    """Return how a tensor holds a parameter, as a view's text, or None where it does not.

    Args:
        parameter: What is stored in the model.
        slots: Its readers; a tensor may hold what one of them sees, or what a part of a view gives.
        tensor: An initializer of the optimized graph.

    Returns:
        "" for a plain copy, "transpose", "cast f32" and the like for a view, equal bit for bit; and
        "reordered" for the same elements in an order that no view has, padded with zeros or not:
        the blocked layouts of convolutions.
    """
    if tensor.dtype == onnx_ir.DataType.STRING or tensor.size == 0:
        return None
    shape = tuple(int(size) for size in tensor.shape.numpy())
    array, stored = tensor.numpy(), parameter.numpy()
    for view in (view for view in _views(parameter, slots) if view.shape == shape):
        if _is_seen_in(view.apply(stored), array):
            same = tensor.dtype == parameter.dtype
            return str(view if same else view.then(Cast(tensor.dtype)))
    blocked = stored.ndim == array.ndim == BLOCKED_RANK and stored.dtype == array.dtype
    fits = blocked and stored.size <= array.size <= MAX_PADDING * stored.size
    return "reordered" if fits and _is_reordered(stored, array) else None


def _views(parameter: Parameter, slots: tuple[Slot, ...]) -> list[View]:
    stored = View(parameter.shape)
    found = [stored]
    rank = len(parameter.shape)
    if 1 < rank <= MAX_PERMUTED_RANK:
        found += [stored.then(Transpose(order)) for order in itertools.permutations(range(rank))]
    for slot in slots:
        for read in slot.reads:
            if read.parameter is not parameter:
                continue
            view = stored
            for step in read.view.steps:
                if isinstance(step, Cast | Computed | Dequantize | Join):
                    break
                view = view.then(step)
                found.append(view)
    return list(dict.fromkeys(found))


def _is_seen_in(seen: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> bool:
    """Return whether values are equal after a cast; a corner is compared first, which is cheap."""
    corner = (slice(0, 4),) * seen.ndim
    return all(
        bit_equal(seen[part].astype(array.dtype, copy=False), array[part]) for part in (corner, ...)
    )


def _is_reordered(stored: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> bool:
    """Return whether two tensors have the same elements; sums first, then all of them sorted."""
    one, other = (bits(np.ascontiguousarray(each)).ravel() for each in (stored, array))
    if int(one.sum(dtype=np.uint64)) != int(other.sum(dtype=np.uint64)):
        return False
    return np.array_equal(np.sort(one[one != 0]), np.sort(other[other != 0]))
