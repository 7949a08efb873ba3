"""The models that are alive in this process, so that none loses a file that it still reads."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import numpy as np
import onnx_ir

from tieops.ir.walk import all_graphs
from tieops.system.mapping import mappings_of

__all__ = ["keep_readable", "let_go", "note"]

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


def let_go(path: Path) -> bool:
    """Take into memory what tensors have mapped of a file that cannot be replaced while they do.

    That is for Windows. What a model was read from may be in any graph by now, of a caller too, so
    all tensors of the process are looked at; no model needs to be known.

    Returns:
        Whether the file is mapped still: arrays that were handed out keep it.
    """
    mapped = {id(pages) for pages in mappings_of(path)}
    if not mapped:
        return False
    gc.collect()  # most of what is read of a model has cycles, and may be nobody's any more
    copies: dict[int, np.ndarray[Any, Any]] = {}
    for each in gc.get_objects():
        # By its type: `isinstance` asks the object, and some answer with warnings or imports.
        if not issubclass(type(each), (onnx_ir.Tensor, onnx_ir.PackedTensor)):
            continue
        array = cast(object, each.raw)
        if isinstance(array, np.ndarray) and id(_owner(array)) in mapped:
            if id(array) not in copies:  # clones of a tensor have one array
                copies[id(array)] = array.copy(order="K")
                copies[id(array)].flags.writeable = False
            # There is no public way to give a tensor another array.
            each._raw = copies[id(array)]  # pyright: ignore[reportPrivateUsage]
    copies.clear()
    return bool(mappings_of(path))


def _owner(array: object) -> object:
    """Return what holds the bytes of an array."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array
