"""How many copies of a tied weight a session holds, and arranging that it is one.

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

import ctypes
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx
import onnx_ir

from tieops.detect.roles import is_learnable_role, role_of
from tieops.errors import PreconditionError, UnsupportedModelError
from tieops.importers.onnx import from_onnx
from tieops.ir.parameter import Parameter
from tieops.ir.view import Transpose
from tieops.runtime.mapped import Mapped, can_be_mapped, map_tensor
from tieops.runtime.providers import onnxruntime_module
from tieops.tied_model import TiedModel

__all__ = ["Arranged", "Memory", "arrange", "check_memory", "hand_over"]

Memory: TypeAlias = Literal["packed", "mapped", "default"]
MIN_BYTES = 1_000_000
"""Smaller weights are not worth a mapping of their own."""
MAX_GRAPH_BYTES = 64_000_000
"""A larger file has its weights inside, where they cannot be mapped."""
_FOLDING_LIMIT = "optimization.constant_folding_max_output_size_in_bytes"
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, eq=False)
class Arranged:
    """What a session is made of, and what has to live as long as it does.

    Args:
        opened: The path or the bytes to open.
        names: The weights that were arranged.
        memory: How.
        alive: Mappings and values that the session reads.
        packed: Those mappings that it reads once, to pack them.
    """

    opened: str | bytes
    names: tuple[str, ...] = ()
    memory: Memory = "default"
    alive: tuple[Any, ...] = ()
    packed: tuple[Mapped, ...] = ()

    def created(self) -> None:
        """Tell that the session is made: give back what its packing has read, and what it freed."""
        for mapping in self.packed:
            mapping.give_back()
        if self.memory != "default":
            _trim_heap()

    def has_run(self) -> None:
        """Tell that the session has run: what it looked up in the originals may go again."""
        for mapping in self.packed:
            mapping.give_back_again()


def _trim_heap() -> None:
    """Return freed memory to the system; glibc keeps what the runtime's transposed copies took."""
    with suppress(OSError, AttributeError):  # where the C library is another one
        ctypes.CDLL(None).malloc_trim(0)


def check_memory(memory: object) -> None:
    """Refuse what is no memory mode.

    Raises:
        PreconditionError: If the mode is none of the three.
    """
    if memory not in ("packed", "mapped", "default"):
        raise PreconditionError(
            f"unknown memory mode {memory!r}", {}, "use 'packed', 'mapped' or 'default'"
        )


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
    """
    if memory == "default" or isinstance(opened, bytes):
        return Arranged(opened)
    model = _readable(opened)
    if model is None:
        return Arranged(opened)
    return hand_over(model, opened, settings, memory, options, {})


def _readable(opened: str) -> TiedModel | None:
    """Return the model that is about to be opened, or None where it is left to the runtime."""
    if Path(opened).stat().st_size > MAX_GRAPH_BYTES:
        return None
    try:
        return from_onnx(opened)
    except UnsupportedModelError:
        return None  # it has what tieops would lose, and ONNX Runtime may run


def hand_over(
    model: TiedModel,
    opened: str,
    settings: Any,
    memory: Memory,
    options: Mapping[str, str],
    shared: Mapping[str, Mapped],
) -> Arranged:
    """Hand a session's tied weights over to it, and those that it shares with other sessions.

    Args:
        model: The model, as read from the path.
        opened: Its path.
        settings: The session's options; gets the weights.
        memory: "packed" or "mapped".
        options: Configuration entries that the user gave, which are left as they are.
        shared: The mapping of each weight that other sessions have too, by its name here.

    Returns:
        What to open.
    """
    tied = [parameter for parameter in _tied(model) if parameter.name not in shared]
    mappings = {parameter.name: map_tensor(parameter.tensor, memory) for parameter in tied}
    mappings |= shared
    if not mappings:
        return Arranged(opened)
    if _FOLDING_LIMIT not in options and (limit := _smallest_folded(model)):
        settings.add_session_config_entry(_FOLDING_LIMIT, str(limit - 1))
    value_of = onnxruntime_module().OrtValue.ortvalue_from_numpy
    values = {name: value_of(mapping.array) for name, mapping in mappings.items()}
    for name, value in values.items():
        settings.add_initializer(name, value)
    alive = (*mappings.values(), *values.values())
    weights = model.ir.graph.initializers
    plain = tuple(name for name in mappings if not _is_quantized(weights[name]))
    if memory == "packed" or not plain:
        return Arranged(opened, tuple(mappings), memory, alive, tuple(mappings.values()))
    settings.add_session_config_entry(_FOLDER, str(Path(opened).resolve().parent))
    packed = tuple(mapping for name, mapping in mappings.items() if name not in plain)
    return Arranged(_overridable(opened, plain), plain, memory, alive, packed)


def _is_quantized(value: onnx_ir.Value) -> bool:
    """Tell integers and their scales: kernels that read them are slow unless they are constants."""
    tensor = value.const_value
    assert tensor is not None
    # Asked first because only other roles need ONNX's schemas, which are some MB in memory.
    uses = [use for use in value.uses() if is_learnable_role(use.node, use.idx)]
    return tensor.dtype.is_integer() or any("scale" in role_of(u.node, u.idx) for u in uses)


def _tied(model: TiedModel) -> list[Parameter]:
    """Return the tied parameters that lie in a data file and are large enough to matter."""
    main = set(model.ir.graph.initializers.values())
    found = {tie.parameter: None for tie in model.ties if len(tie.slots) > 1}
    return [
        parameter
        for parameter in found
        if can_be_mapped(parameter.tensor, "cpu")
        and parameter.value in main
        and not parameter.is_overridable
        and parameter.nbytes >= MIN_BYTES
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


def _overridable(path: str, names: Collection[str]) -> bytes:
    """Return the model with the named initializers as graph inputs too, their data where it is."""
    proto = onnx.load(path, load_external_data=False)
    proto.ir_version = max(proto.ir_version, 4)
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
    return proto.SerializeToString()
