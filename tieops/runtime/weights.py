"""How many copies of a tied weight a session holds, and arranging that it is one.

ONNX Runtime packs the weight of every Gemm and MatMul into a private copy. Where an embedding reads
the same tensor the original stays as well: two copies. There are two ways to one:

- *packed*: hand the weight over as an array over a mapping of the data file, let the runtime pack
  it, then give the mapping's pages back. One private copy, the runtime's own speed; of the original
  only the rows that are looked up come back into memory.
- *mapped*: make the weight overridable (a graph input with a stored value), which the runtime
  neither folds nor packs. No private copy; the file's pages are shared by all sessions and
  processes that map it, and there is nothing to do when a session is made.

Both need the weight in a data file. That overridable initializers are not packed is what ONNX
Runtime does, not what it promises: a test measures it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir

from tieops.errors import PreconditionError, UnsupportedModelError
from tieops.importers.onnx import from_onnx
from tieops.ir.parameter import Parameter
from tieops.ir.view import Transpose
from tieops.runtime.providers import onnxruntime_module
from tieops.tied_model import TiedModel

__all__ = ["Arranged", "Memory", "arrange"]

Memory: TypeAlias = Literal["packed", "mapped", "default"]
MIN_BYTES = 1_000_000
"""Smaller weights are not worth a mapping of their own."""
MAX_GRAPH_BYTES = 64_000_000
"""A larger file has its weights inside, where they cannot be mapped."""
_FOLDING_LIMIT = "optimization.constant_folding_max_output_size_in_bytes"
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, eq=False)
class _Mapping:
    """One tied weight, mapped from its data file."""

    name: str
    pages: mmap.mmap
    array: np.ndarray[Any, Any]

    def give_back(self) -> None:
        """Drop the pages from memory; they are read again from the file where they are touched."""
        self.pages.madvise(mmap.MADV_DONTNEED)
        # Without this a looked-up row brings its neighbours in with it.
        self.pages.madvise(mmap.MADV_RANDOM)


@dataclass(frozen=True, eq=False)
class Arranged:
    """What a session is made of, and what has to live as long as it does.

    Args:
        opened: The path or the bytes to open.
        names: The weights that were arranged.
        memory: How.
        alive: Mappings and values that the session reads.
    """

    opened: str | bytes
    names: tuple[str, ...] = ()
    memory: Memory = "default"
    alive: tuple[Any, ...] = ()

    def created(self) -> None:
        """Tell that the session is made: give back what its packing has read."""
        if self.memory == "packed":
            for mapping in self.alive:
                if isinstance(mapping, _Mapping):
                    mapping.give_back()


def arrange(
    opened: str | bytes, settings: Any, memory: Memory, options: Mapping[str, str]
) -> Arranged:
    """Arrange the tied weights of a model that is about to be opened on the CPU.

    Args:
        opened: A path, or the bytes of a model, which has no data file to map.
        settings: The session's options; gets the weights.
        memory: "packed", "mapped" or "default".
        options: Configuration entries that the user gave, which are left as they are.

    Returns:
        What to open. Unchanged where there is nothing to arrange: no ties, no data file.

    Raises:
        PreconditionError: If the mode is none of the three.
    """
    if memory not in ("packed", "mapped", "default"):
        raise PreconditionError(
            f"unknown memory mode {memory!r}", {}, "use 'packed', 'mapped' or 'default'"
        )
    if memory == "default" or isinstance(opened, bytes):
        return Arranged(opened)
    if Path(opened).stat().st_size > MAX_GRAPH_BYTES:
        return Arranged(opened)
    try:
        model = from_onnx(opened)
    except UnsupportedModelError:
        return Arranged(opened)  # it has what tieops would lose, and ONNX Runtime may run
    tied = _tied(model)
    if not tied:
        return Arranged(opened)
    if _FOLDING_LIMIT not in options and (limit := _smallest_folded(model)):
        settings.add_session_config_entry(_FOLDING_LIMIT, str(limit - 1))
    value_of = onnxruntime_module().OrtValue.ortvalue_from_numpy
    mappings = [_mapped(parameter) for parameter in tied]
    values = [value_of(mapping.array) for mapping in mappings]
    for mapping, value in zip(mappings, values, strict=True):
        settings.add_initializer(mapping.name, value)
    names = tuple(mapping.name for mapping in mappings)
    if memory == "mapped":
        settings.add_session_config_entry(_FOLDER, str(Path(opened).resolve().parent))
        return Arranged(_overridable(opened, names), names, memory, (*mappings, *values))
    return Arranged(opened, names, memory, (*mappings, *values))


def _tied(model: TiedModel) -> list[Parameter]:
    """Return the tied parameters that lie in a data file and are large enough to matter."""
    main = set(model.ir.graph.initializers.values())
    found = {tie.parameter: None for tie in model.ties if len(tie.slots) > 1}
    return [
        parameter
        for parameter in found
        if isinstance(parameter.tensor, onnx_ir.ExternalTensor)
        and parameter.value in main
        and not parameter.is_overridable
        and parameter.nbytes >= MIN_BYTES
        and parameter.dtype in (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE)
    ]


def _smallest_folded(model: TiedModel) -> int:
    """Return the bytes of the smallest tied weight that a Transpose would be folded for, or 0."""
    sizes = [
        tie.parameter.nbytes
        for tie in model.ties
        for slot in tie.slots
        if any(isinstance(step, Transpose) for step in slot.view.steps)
    ]
    return min((size for size in sizes if size >= MIN_BYTES), default=0)


def _mapped(parameter: Parameter) -> _Mapping:
    tensor = parameter.tensor
    assert isinstance(tensor, onnx_ir.ExternalTensor)
    offset = tensor.offset or 0
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    descriptor = os.open(tensor.path, os.O_RDONLY)
    try:
        length = offset + parameter.nbytes - begin
        pages = mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=begin)
    finally:
        os.close(descriptor)
    array = np.frombuffer(
        pages, parameter.dtype.numpy(), parameter.elements, offset - begin
    ).reshape(parameter.shape)
    return _Mapping(parameter.name, pages, array)


def _overridable(path: str, names: tuple[str, ...]) -> bytes:
    """Return the model with the named initializers as graph inputs too, their data where it is."""
    proto = onnx.load(path, load_external_data=False)
    proto.ir_version = max(proto.ir_version, 4)
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
    return proto.SerializeToString()
