"""The two sides of a comparison: models of any kind, run on named arrays."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

import numpy as np
import onnx
import onnx_ir

from tieops.arguments import described
from tieops.errors import PreconditionError
from tieops.importers import TORCH_SUFFIXES
from tieops.importers.onnx import Message, read_message
from tieops.ir.metadata.torch_inputs import TorchInputs
from tieops.model import TiedModel
from tieops.runtime import Port, Provider, Session
from tieops.runtime.model_source import Runnable, check_file
from tieops.runtime.sessions import session_of
from tieops.untrusted.limits import Limits
from tieops.verification import torch_side
from tieops.verification.nested_values import Value
from tieops.verification.randomness import random_nodes

if TYPE_CHECKING:
    import torch

__all__ = ["Comparable", "OnnxSide", "Side", "TorchSide", "label_of", "open_side"]

_Array: TypeAlias = np.ndarray[Any, Any]
Comparable: TypeAlias = Union[
    "torch.nn.Module",
    "torch.export.ExportedProgram",
    TiedModel,
    onnx_ir.Model,
    onnx.ModelProto,
    Session,
    str,
    "os.PathLike[str]",
    bytes,
]
"""What can be verified, and verified against."""


class Side(Protocol):
    """One side of a comparison.

    Attributes:
        label: What the report calls it.
        provider: What runs it.
        ports: Its inputs, if it knows them.
        output_names: Its outputs' names, or None if they have none.
    """

    label: str
    provider: str
    ports: tuple[Port, ...]
    output_names: tuple[str, ...] | None

    def run(self, feeds: Mapping[str, _Array], outputs: Sequence[str] | None) -> list[Value]:
        """Return the outputs: those named, or all in order."""
        ...

    def close(self) -> None:
        """Free what was opened for the comparison."""
        ...


class OnnxSide:
    """An ONNX graph in a session."""

    def __init__(self, label: str, sess: Session, graph: onnx_ir.Model, *, own: bool) -> None:
        self.label = label
        self.session = sess
        self.provider = sess.provider
        self.ports = sess.inputs
        self.output_names: tuple[str, ...] | None = tuple(port.name for port in sess.outputs)
        self.ir = graph
        self.random = random_nodes(self.ir)
        self._own = own

    def run(self, feeds: Mapping[str, _Array], outputs: Sequence[str] | None) -> list[Value]:
        """Return the outputs: those named, or all in order; arrays of other names are not fed."""
        fed = {name: array for name, array in feeds.items() if self._takes(name)}
        return list(self.session.run(fed, outputs).values())

    def _takes(self, name: str) -> bool:
        return any(value.name == name for value in self.ir.graph.inputs)

    def close(self) -> None:
        """Close the session if it was opened for the comparison."""
        if self._own:
            self.session.close()


class TorchSide:
    """A module or an exported program."""

    ports: tuple[Port, ...] = ()
    output_names: tuple[str, ...] | None = None
    provider = "torch"

    def __init__(self, label: str, model: torch.nn.Module | torch.export.ExportedProgram) -> None:
        self.label = label
        self.model = model
        self.layout: TorchInputs | None = None
        """What a call takes, as ``from_torch`` notes it in a model."""
        self._program: torch.nn.Module | None = None

    def run(self, feeds: Mapping[str, _Array], outputs: Sequence[str] | None) -> list[Value]:
        """Return all outputs in order."""
        import torch

        if isinstance(self.model, torch.nn.Module):
            return [*torch_side.run_module(self.model, feeds, self.layout)]
        self._program = self._program or torch_side.module_of(self.model)
        return [*torch_side.run_program(self.model, self._program, feeds)]

    def close(self) -> None:
        """Do nothing: the model is the caller's."""


def open_side(
    model: Comparable,
    provider: Provider,
    *,
    optimize: bool,
    trust: bool = False,
    limits: Limits | None = None,
) -> OnnxSide | TorchSide:
    """Return the model as a side of a comparison.

    Raises:
        PreconditionError: If it is none of the kinds that can be compared.
        UnsupportedModelError: If ONNX Runtime refuses it.
        ProviderError: If the provider would not run it.
        MissingDependencyError: If what runs it is not installed.

    Example:
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
        >>> side = open_side(onnx_ir.from_onnx_text(text + " { y = Neg(x) }"), "cpu", optimize=True)
        >>> side.label, side.output_names, side.run({"x": np.float32([2])}, None)
        ('Model', ('y',), [array([-2.], dtype=float32)])
        >>> side.close()
    """
    if isinstance(model, Session):
        allowed = limits or model.config.limits
        graph, _ = _read(model.model, allowed)
        return OnnxSide(label_of(model.model), model, graph, own=False)
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() in TORCH_SUFFIXES:
        return TorchSide(Path(model).name, torch_side.load_program(os.fspath(model), trust=trust))
    if isinstance(model, (str, os.PathLike, bytes, TiedModel, onnx_ir.Model, onnx.ModelProto)):
        graph, message = _read(model, limits or Limits())
        sess = session_of(model, message, provider, optimize=optimize, limits=limits)
        return OnnxSide(label_of(model), sess, graph, own=True)
    # Who holds a torch model has imported torch; who does not need not have it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
        return TorchSide(type(model).__name__, model)
    raise PreconditionError(
        f"cannot compare {described(model)}",
        {"it compares": "nn.Module, ExportedProgram, TiedModel, onnx_ir.Model, ModelProto, "
         "bytes, Session, paths of .onnx, .pt2 and .pt"},
        "pass one of these",
    )  # fmt: skip


def label_of(model: object) -> str:
    """Return what a report calls a model."""
    if isinstance(model, (str, os.PathLike)):
        return Path(model).name
    return "ONNX bytes" if isinstance(model, bytes) else type(model).__name__


def _read(model: Runnable, limits: Limits | None) -> tuple[onnx_ir.Model, Message | None]:
    """Return the graph of a model, and its message if it had to be read for that.

    Raises:
        PreconditionError: If the path is not a file.
    """
    if isinstance(model, TiedModel):
        return model.ir, None
    if isinstance(model, onnx_ir.Model):
        return model, None
    if isinstance(model, (str, os.PathLike)):
        check_file(model)
    message = read_message(model, limits=limits or Limits())
    return message.model().ir, message
