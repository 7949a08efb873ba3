"""Write models: ONNX files, and PyTorch modules that train.

Read ``onnx`` first: it is the whole export. ``layout`` chooses where tensors go, ``data_file``
writes their bytes, ``model_files`` writes the models, reads them again and renames them; ``files``
replaces files in one step, and ``data_file_cleanup`` finds data that no model reads. ``torch`` is
the way back to PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tieops.errors import MissingDependencyError

if TYPE_CHECKING:
    from tieops.exporters.torch import to_torch

__all__ = ["to_torch"]


def __getattr__(name: str) -> Any:
    """Load the one exporter that needs torch when it is asked for, and say so if it is missing."""
    if name != "to_torch":
        raise AttributeError(f"module 'tieops.exporters' has no attribute {name!r}")
    try:
        importlib.import_module("torch")
        importlib.import_module("onnxscript")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"to_torch needs {error.name}, which is not installed",
            None,
            'pip install "tieops[torch]"',
        ) from error
    from tieops.exporters.torch import to_torch

    return to_torch
