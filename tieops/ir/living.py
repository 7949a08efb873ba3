"""The models that are alive in this process, so that none loses a file that it still reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from pathlib import Path
from weakref import WeakSet

import onnx_ir

from tieops.ir.scopes import all_graphs

__all__ = ["keep_readable", "note"]

_models: WeakSet[onnx_ir.Model] = WeakSet()
_lock = threading.Lock()


def note(model: onnx_ir.Model) -> None:
    """Remember a graph for as long as somebody holds it."""
    with _lock:
        _models.add(model)


def keep_readable(path: Path) -> None:
    """Map what living models have in a file that is about to go; a mapping outlives its file.

    Raises:
        OSError: If the file cannot be mapped.
    """
    with _lock:
        models = list(_models)
    file = os.path.realpath(path)
    for model in models:
        # Values of one range keep one tensor between them: it is what says that they are one.
        mapped: dict[Hashable, onnx_ir.TensorProtocol] = {}
        for graph in all_graphs(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if not isinstance(tensor, onnx_ir.ExternalTensor):
                    continue
                if os.path.realpath(tensor.path) != file:
                    continue
                key = tensor.offset, tensor.dtype, tuple(tensor.shape.numpy())
                if key not in mapped:
                    array = tensor.numpy()
                    mapped[key] = onnx_ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
                value.const_value = mapped[key]
