"""Find the weights that several models have in common, and store them where they can be shared."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from tieops.analysis.duplicates.across_models import find_equal
from tieops.errors import PreconditionError, UnsupportedModelError
from tieops.importers.onnx import Message, read_message
from tieops.ir.notation import brief, printable
from tieops.ir.parameter import Parameter
from tieops.model import TiedModel
from tieops.runtime.memory.mapped_weights import can_be_mapped
from tieops.runtime.model_source import Runnable, limits_for, source
from tieops.untrusted.limits import UNLIMITED, Limits

__all__ = ["Opened", "Shared", "find_shared", "open_all"]

MIN_SHARED_BYTES = 1 << 16
"""Smaller weights are not worth a mapping of their own."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that is about to be opened.

    Args:
        path: Its path, or its bytes.
        limits: What the file may ask for.
        model: What tieops reads there; None where it reads nothing, and nothing can be shared.
    """

    path: str | bytes
    limits: Limits
    model: TiedModel | None = None
    was_inside: bool = False
    """Whether it had its weights inside."""
    message: Message | None = None
    """What was read for that; the first session that is made of it may change it."""

    def shareable(self, device: str) -> list[Parameter]:
        """Return the stored tensors that can be handed to a session in the place of its own."""
        stored = [] if self.model is None else self.model.ir.graph.initializers.values()
        found = [Parameter(value) for value in stored if value.const_value is not None]
        return [
            each
            for each in found
            if each.nbytes >= MIN_SHARED_BYTES
            and not each.is_overridable
            and can_be_mapped(each.tensor, device)
        ]


@dataclass(frozen=True)
class Shared:
    """A weight that several sessions have in common, held once.

    Args:
        readers: Each session that reads it, and its name there.
        tensor: The stored tensor that all of them read.
    """

    readers: tuple[tuple[str, str], ...]
    tensor: onnx_ir.TensorProtocol

    @property
    def nbytes(self) -> int:
        """The bytes of one copy."""
        return int(self.tensor.nbytes)

    def names_in(self, session: str) -> list[str]:
        """Return the names that one session has for it."""
        return [name for reader, name in self.readers if reader == session]

    def __str__(self) -> str:
        where = ", ".join(f"{printable(name)} in {printable(at)}" for at, name in self.readers)
        return f"{brief(self.tensor.dtype, tuple(self.tensor.shape.numpy()))}: {where}"


def open_all(
    models: Mapping[str, Runnable], folder: Path, *, apart: bool, limits: Limits | None
) -> dict[str, Opened]:
    """Return what to open for each name; a model that has several names is written once.

    Args:
        models: The models, by name.
        folder: Where to write what has to be written.
        apart: Give a model that has its weights inside a data file, so that they can be mapped.
        limits: What the files that are given may ask for; None for the defaults.

    Raises:
        PreconditionError: If a path is not a file, or a model is none that can be run.
        ExportError: If a model cannot be written.
    """
    known: dict[object, Opened] = {}
    opened: dict[str, Opened] = {}
    for name, model in models.items():
        is_path = isinstance(model, (str, os.PathLike))
        key: object = os.path.realpath(model) if is_path else id(model)
        if key not in known:
            place = folder / str(len(known))
            place.mkdir()
            allowed = limits_for(model, limits)
            if apart:
                known[key] = _open_apart(model, place, allowed)
            else:
                known[key] = Opened(source(model, place)[0], allowed)
        opened[name] = known[key]
    if any(each.was_inside for each in known.values()):
        # A graph refers to itself, and one small tensor of a message keeps the whole message.
        gc.collect()
    return opened


def _open_apart(model: Runnable, folder: Path, limits: Limits) -> Opened:
    path, message = source(model, folder, apart=True)
    try:
        message = message or read_message(path, limits=limits)
        read = message.model()
    except (UnsupportedModelError, PreconditionError):
        return Opened(path, limits)  # it has what tieops would lose, and ONNX Runtime may run
    held = [value.const_value for value in read.ir.graph.initializers.values()]
    inside = any(each is not None and each.nbytes >= MIN_SHARED_BYTES for each in held)
    if not inside or any(isinstance(each, onnx_ir.ExternalTensor) for each in held):
        is_file = isinstance(path, str)
        return Opened(path, limits, read if is_file else None, message=message)
    # Imported late, as by `source`: files with a data file beside them need no exporter.
    from tieops.exporters.onnx import write_and_read

    written, message = write_and_read(read, folder / "apart.onnx", True, "portable")
    return Opened(str(written.path), UNLIMITED, message.model(), was_inside=True, message=message)


def find_shared(opened: Mapping[str, Opened], device: str) -> tuple[Shared, ...]:
    """Find the weights that several sessions have in common, the largest first.

    Args:
        opened: What is opened for each session, by its name.
        device: What they run on: "cpu" or "cuda".
    """
    readers: dict[Opened, list[str]] = {}
    for name, each in opened.items():
        readers.setdefault(each, []).append(name)
    candidates = {each: each.shareable(device) for each in readers}
    sets = find_equal([[p.value for p in candidates[each]] for each in readers])
    groups = [[(member.model, member.parameter) for member in each] for each in sets]
    seen = {parameter.value for group in groups for _, parameter in group}
    for index, (each, names) in enumerate(readers.items()):
        if len(names) > 1:  # one model several times: it has all of it in common with itself
            groups += [[(index, p)] for p in candidates[each] if p.value not in seen]
    for parameters in candidates.values():
        _release(parameters)
    sessions = list(readers.values())
    found = [
        Shared(
            tuple((name, p.name) for index, p in group for name in sessions[index]),
            group[0][1].tensor,
        )
        for group in groups
    ]
    return tuple(sorted(found, key=lambda shared: -shared.nbytes))


def _release(parameters: Sequence[Parameter]) -> None:
    """Close the mappings that were made to compare; what they brought into memory goes."""
    for parameter in parameters:
        if isinstance(parameter.tensor, onnx_ir.ExternalTensor):
            parameter.tensor.release()
