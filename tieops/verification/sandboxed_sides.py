"""Sides of a comparison that run in a sandbox."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir

from tieops.errors import PreconditionError
from tieops.importers import TORCH_SUFFIXES
from tieops.importers.onnx import from_onnx
from tieops.model import TiedModel
from tieops.runtime import Port, Provider
from tieops.runtime.model_source import Folder, source
from tieops.untrusted.limits import Limits
from tieops.verification.nested_values import Value
from tieops.verification.randomness import random_nodes
from tieops.verification.sandbox import Sandbox, SandboxedModel
from tieops.verification.sides import Comparable, OnnxSide, TorchSide, label_of, open_side

__all__ = ["SandboxedOnnx", "open_sandboxed"]

_Array: TypeAlias = np.ndarray[Any, Any]


class SandboxedOnnx(OnnxSide):
    """An ONNX graph that runs in a process of its own; this one reads it, and does not run it."""

    def __init__(
        self,
        model: Any,
        sandbox: Sandbox,
        *,
        label: str = "",
        optimize: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self.label = label or label_of(model)
        self.provider = "cpu"
        is_read = isinstance(model, TiedModel)
        self.ir = model.ir if is_read else from_onnx(model, limits=limits).ir
        self.random = random_nodes(self.ir)
        self._folder = Folder()
        opened, _ = source(model, self._folder.path)
        if isinstance(opened, bytes):
            path = self._folder.path / "model.onnx"
            path.write_bytes(opened)
            opened = str(path)
        options = {"optimize": optimize, "trust": False}
        self._model = SandboxedModel(os.path.abspath(opened), self.label, sandbox, options)
        self.ports = _ports(self._model.about["inputs"])
        self.output_names = tuple(port.name for port in _ports(self._model.about["outputs"]))

    def run(self, feeds: Mapping[str, _Array], outputs: Sequence[str] | None) -> list[Value]:
        """Return the outputs: those named, or all in order; arrays of other names are not fed."""
        fed = {name: array for name, array in feeds.items() if self._takes(name)}
        return self._model.run(fed, outputs)

    def close(self) -> None:
        """End the process."""
        self._model.close()


class _SandboxedTorch(TorchSide):
    """A PyTorch file that is opened and run in a process of its own."""

    def __init__(self, path: str, sandbox: Sandbox, *, trust: bool) -> None:
        self.label = Path(path).name
        self.layout = None
        options = {"optimize": True, "trust": trust}
        self._model = SandboxedModel(os.path.abspath(path), self.label, sandbox, options)

    def run(self, feeds: Mapping[str, _Array], outputs: Sequence[str] | None) -> list[Value]:
        """Return all outputs in order."""
        return self._model.run(feeds, None, self.layout)

    def close(self) -> None:
        """End the process."""
        self._model.close()


def open_sandboxed(
    model: Comparable,
    provider: Provider,
    *,
    optimize: bool,
    trust: bool,
    limits: Limits | None,
    sandbox: Sandbox,
) -> OnnxSide | TorchSide:
    """Return a model as a side that runs in a process of its own.

    A live module, a program and a session are of this process, and stay in it.

    Raises:
        PreconditionError: If it is to run on a GPU, whose memory no limit of a process covers.
        UntrustedFileError: If opening it reaches a limit, or crashes.
        TieopsError: What opening it raises.
    """
    if provider == "cuda":
        raise PreconditionError(
            "a sandboxed model runs on the CPU", {"provider": provider}, "leave out one of the two"
        )
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() in TORCH_SUFFIXES:
        return _SandboxedTorch(os.fspath(model), sandbox, trust=trust)
    if isinstance(model, (str, os.PathLike, bytes, TiedModel, onnx_ir.Model, onnx.ModelProto)):
        return SandboxedOnnx(model, sandbox, optimize=optimize, limits=limits)
    return open_side(model, provider, optimize=optimize, trust=trust, limits=limits)


def _ports(described: Any) -> tuple[Port, ...]:
    return tuple(Port(str(e["name"]), str(e["dtype"]), tuple(e["shape"])) for e in described)
