"""Prepare a session so that it holds one copy of each tied weight.

ONNX Runtime packs the weight of every Gemm and MatMul into a private copy. Where an embedding reads
the same tensor the original stays as well: two copies. There are two ways to one:

- *packed*: hand the weight over as an array over a mapping of the data file, let the runtime pack
  it, then give the mapping's pages back. One private copy, the runtime's own speed; of the original
  only the rows that are looked up come back into memory.
- *mapped*: make the weight overridable (a graph input with a stored value), which the runtime
  neither folds nor packs. No private copy; the file's pages are shared by all sessions and
  processes that map it, and there is nothing to do when a session is made.

Both need the weight in a data file. Weights that several sessions have in common are handed to all
of them in the same two ways. That overridable initializers are not packed is what ONNX
Runtime does, not what it promises: a test measures it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tieops.errors import UnsupportedModelError
from tieops.importers.onnx import Message, read_message
from tieops.runtime.memory.fused_matmul import fuse_products
from tieops.runtime.memory.mapped_weights import (
    Mapped,
    can_be_mapped,
    map_tensor,
    release_pages_again,
)
from tieops.runtime.memory.stored_weights import StoredWeight, folded_ties, stored_weights
from tieops.runtime.providers import onnxruntime_module
from tieops.runtime.session_arguments import Memory
from tieops.system.memory import trim_heap
from tieops.untrusted.limits import Limits

__all__ = [
    "PreparedWeights",
    "add_shared_initializers",
    "limit_constant_folding",
    "prepare_weights",
]

MIN_BYTES = 1_000_000
"""Smaller weights are not worth a mapping of their own."""
MAX_GRAPH_BYTES = 64_000_000
"""A larger file has its weights inside, where they cannot be mapped."""
_FOLDING_LIMIT = "optimization.constant_folding_max_output_size_in_bytes"
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, eq=False)
class PreparedWeights:
    """What a session is made of, and what has to live as long as it does.

    Args:
        opened: The path or the bytes to open.
        names: The weights that were prepared.
        memory: The memory mode.
        alive: Mappings and values that the session reads.
        packed: Those mappings that it reads once, to pack them.
    """

    opened: str | bytes
    names: tuple[str, ...] = ()
    memory: Memory = "default"
    alive: tuple[Any, ...] = ()
    packed: tuple[Mapped, ...] = ()

    def created(self) -> None:
        """Release what packing has read and freed, once the session is created."""
        for mapping in self.packed:
            mapping.give_back()
        if self.memory != "default":
            trim_heap()  # glibc keeps what the runtime's transposed copies took

    def has_run(self) -> None:
        """Release the pages of the originals that a run has looked up."""
        if self.packed:
            release_pages_again(self.packed)


def prepare_weights(
    opened: str | bytes,
    settings: Any,
    memory: Memory,
    options: Mapping[str, str],
    *,
    optimize: bool = True,
    limits: Limits,
    message: Message | None = None,
) -> PreparedWeights:
    """Prepare the tied weights of a model that is about to be opened on the CPU.

    Args:
        opened: A path, or the bytes of a model, which has no data file to map.
        settings: The session's options; gets the weights.
        memory: "packed", "mapped" or "default".
        options: Configuration entries that the user gave, which are left as they are.
        optimize: Whether the graph may be changed for speed.
        limits: What the file may ask for; one that asks for more is left to the runtime.
        message: What was read of it already; changed.

    Returns:
        What to open. Unchanged where there is nothing to prepare: no ties, no data file.
    """
    if memory == "default" or isinstance(opened, bytes):
        return PreparedWeights(opened)
    return add_shared_initializers(
        opened, settings, memory, options, {}, optimize=optimize, limits=limits, message=message
    )


def add_shared_initializers(
    opened: str,
    settings: Any,
    memory: Memory,
    options: Mapping[str, str],
    shared: Mapping[str, Mapped],
    *,
    optimize: bool = True,
    limits: Limits,
    message: Message | None = None,
) -> PreparedWeights:
    """Give a session its tied weights, and those that it shares with other sessions.

    Args:
        opened: The model's path.
        settings: The session's options; gets the weights.
        memory: "packed" or "mapped".
        options: Configuration entries that the user gave, which are left as they are.
        shared: The mapping of each weight that other sessions have too, by its name here.
        optimize: Whether the graph may be changed for speed.
        limits: As for `prepare_weights`.
        message: As for `prepare_weights`.

    Returns:
        What to open.
    """
    message = _readable(opened, limits) if message is None else message
    if message is None:
        return PreparedWeights(opened)
    weights = stored_weights(message.proto, message.folder, message.inside)
    tied = {name: each for name, each in weights.items() if _is_tied(each)}
    mappings = {name: map_tensor(each.tensor, memory) for name, each in tied.items()}
    mappings |= shared
    if not mappings:
        return PreparedWeights(opened)
    # ONNX Runtime folds Transpose(W) into a second weight unless the result exceeds a limit. The
    # limit is set just below the smallest tied weight that is read transposed, so smaller constants
    # are still folded.
    folded = [int(each.tensor.nbytes) for each in tied.values() if each.is_transposed]
    if _FOLDING_LIMIT not in options and folded:
        settings.add_session_config_entry(_FOLDING_LIMIT, str(min(folded) - 1))
    value_of = onnxruntime_module().OrtValue.ortvalue_from_numpy
    values = {name: value_of(mapping.array) for name, mapping in mappings.items()}
    # An initializer that is added here replaces the one in the file: the runtime does not load
    # those bytes, and reads this array, which is a view of the mapping.
    for name, value in values.items():
        settings.add_initializer(name, value)
    plain = tuple(name for name in mappings if not weights[name].is_quantized)
    unpacked = plain if memory == "mapped" else ()
    proto = message.whole()
    is_fused = optimize and fuse_products(proto, _matrices(mappings))
    read_once = tuple(mapping for name, mapping in mappings.items() if name not in unpacked)
    alive = (*mappings.values(), *values.values())
    changed: str | bytes = opened
    # A changed graph exists only as bytes, and bytes have no folder. Without this entry the runtime
    # would look for the data file in the working directory.
    if unpacked or is_fused:
        settings.add_session_config_entry(_FOLDER, str(Path(opened).resolve().parent))
        changed = _overridable(proto, unpacked)
    return PreparedWeights(changed, tuple(mappings), memory, alive, read_once)


def limit_constant_folding(
    opened: str | bytes,
    settings: Any,
    options: Mapping[str, str],
    limits: Limits,
    message: Message | None = None,
) -> None:
    """Keep ONNX Runtime from computing a transposed copy of a tied weight that CUDA need not have.

    Below a limit to what it folds, it fuses the ``Transpose`` into the product instead.

    Args:
        opened: A path, or the bytes of a model.
        settings: The session's options; gets the limit.
        options: Configuration entries that the user gave, which are left as they are.
        limits: What the file may ask for; one that asks for more is left to the runtime.
        message: What was read of it already.
    """
    if _FOLDING_LIMIT in options:
        return
    try:
        message = message or read_message(opened, limits=limits, operators=False)
    except UnsupportedModelError:
        return  # it has what tieops would lose, and ONNX Runtime may run
    sizes = [nbytes for nbytes in folded_ties(message.proto).values() if nbytes >= MIN_BYTES]
    if sizes:
        settings.add_session_config_entry(_FOLDING_LIMIT, str(min(sizes) - 1))


def _readable(opened: str, limits: Limits) -> Message | None:
    """Return the model that is about to be opened, or None where it is left to the runtime."""
    if Path(opened).stat().st_size > MAX_GRAPH_BYTES:
        return None
    try:
        return read_message(opened, limits=limits, operators=False)
    except UnsupportedModelError:
        return None  # it has what tieops would lose, and ONNX Runtime may run


def _is_tied(weight: StoredWeight) -> bool:
    """Return whether a weight has several readers and is large enough to matter."""
    is_large = weight.tensor.nbytes >= MIN_BYTES
    return weight.readers > 1 and is_large and can_be_mapped(weight.tensor, "cpu")


def _matrices(mappings: Mapping[str, Mapped]) -> dict[str, tuple[int, ...]]:
    arrays = {name: mapping.array for name, mapping in mappings.items()}
    return {n: a.shape for n, a in arrays.items() if a.ndim == 2 and a.dtype == np.float32}


def _overridable(proto: onnx.ModelProto, names: Collection[str]) -> bytes:
    """Serialize a model with the named initializers as graph inputs too, their data where it is."""
    if names:
        proto.ir_version = max(proto.ir_version, 4)
    # An initializer that is a graph input too may be overridden in each run, so the runtime can
    # neither fold nor pack it, and its kernels read the bytes where they are.
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
    return proto.SerializeToString()
