"""Read models: PyTorch programs and files, ONNX files and graphs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tieops.errors import MissingDependencyError

if TYPE_CHECKING:
    from tieops.importers.torch.from_torch import from_torch

__all__ = ["TORCH_SUFFIXES", "from_torch"]

TORCH_SUFFIXES = (".pt2", ".pt", ".pth", ".jit", ".ts", ".torchscript")
"""Paths that are read as PyTorch's; all others as ONNX."""


def __getattr__(name: str) -> Any:
    """Load the one importer that needs torch when it is asked for, and say so if it is missing."""
    if name != "from_torch":
        raise AttributeError(f"module 'tieops.importers' has no attribute {name!r}")
    try:
        importlib.import_module("torch")
        importlib.import_module("onnxscript")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"from_torch needs {error.name}, which is not installed",
            None,
            'pip install "tieops[torch]"',
        ) from error
    from tieops.importers.torch.from_torch import from_torch

    return from_torch
