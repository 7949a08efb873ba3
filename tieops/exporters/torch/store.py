"""Register what a module stores: parameters under all their names, and buffers for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype
from torch import Tensor, nn

from tieops.errors import UnsupportedModelError
from tieops.exporters.torch.module import is_of_graph_module
from tieops.exporters.torch.tensor_names import attach, identifier, naming_of
from tieops.importers.torch.rnn_weights import unpack
from tieops.ir.metadata.keys import lr_factor_of
from tieops.ir.metadata.torch_kinds import has_generated_name, is_frozen
from tieops.ir.notation import brief, printable
from tieops.model import TiedModel

__all__ = ["Store", "Stored", "as_torch"]

_WIDER = {
    np.dtype(ml_dtypes.int4): np.int8, np.dtype(ml_dtypes.uint4): np.uint8,
    np.dtype(ml_dtypes.int2): np.int8, np.dtype(ml_dtypes.uint2): np.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where a stored tensor of the graph is in the module, and how the graph reads it."""

    targets: tuple[str, ...]
    """Its name in the module; of a packed recurrent weight, those of its parts in order."""
    perm: tuple[int, ...] | None = None
    """The order of axes in which the graph has it, where that is not the module's."""
    packed: tuple[str, str] | None = None
    """The operator and the slot that the parts are packed for."""


class Store:
    """Puts what a model stores into a module, each tensor once.

    Learnables become parameters when the store is made, under every name they are known by, and
    so do the buffers that a state_dict has. Constants become buffers when they are first asked for.

    Args:
        model: The model, without functions.
        module: Where the tensors go; names with dots make modules in it.
    """

    def __init__(self, model: TiedModel, module: nn.Module) -> None:
        self.module = module
        self.lr_factors: dict[str, float] = {}
        self._stored: dict[onnx_ir.Value, Stored] = {}
        self._constants: dict[int, Stored] = {}
        self._counts: dict[str, int] = {}
        read = dict.fromkeys(each.parameter for slot in model.slots for each in slot.reads)
        self._readers = {each.value: model.readers(each).all for each in read}
        learnables = model.trace.learnables
        # Tied ones first, so that the first of their names comes first in the module too.
        for parameter in sorted(model.parameters, key=lambda each: len(each.names) == 1):
            if learnables.is_learnable(parameter.value):
                self._store(parameter.value, learnable=True, persistent=True)
            elif learnables.is_in_state(parameter.value):
                self._store(parameter.value, learnable=False, persistent=True)

    def __contains__(self, value: onnx_ir.Value) -> bool:
        """Return whether a value is a parameter, or a buffer that a state_dict has."""
        return value in self._stored

    def place(self, value: onnx_ir.Value) -> Stored:
        """Return where a stored value is; a constant that nobody asked for yet is stored now."""
        if value not in self._stored:
            self._store(value, learnable=False, persistent=False)
        return self._stored[value]

    def free_name(self, wanted: str) -> str:
        """Return a name at the top of the module that nothing has."""
        stem = identifier(wanted)
        name = stem
        while hasattr(self.module, name) or is_of_graph_module(name):
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        return name

    def _store(self, value: onnx_ir.Value, *, learnable: bool, persistent: bool) -> None:
        tensor = value.const_value
        assert tensor is not None
        in_node = value.producer() is not None
        if in_node and id(tensor) in self._constants:  # of a function that is called twice
            self._stored[value] = self._constants[id(tensor)]
            return
        naming = naming_of(value, self._readers.get(value, ()))
        if naming.packed is not None:
            stored = self._store_parts(value, naming.packed, learnable)
        else:
            data = as_torch(tensor)
            if naming.perm is not None:
                data = data.permute(_inverse(naming.perm)).contiguous()
            held = _parameter(data, is_frozen(value)) if learnable else data
            targets = [self._attach(value, name, held, persistent) for name in naming.names]
            stored = Stored((targets[0],), naming.perm)
            self._note_factor(value, targets)
        self._stored[value] = stored
        if in_node:
            self._constants[id(tensor)] = stored

    def _store_parts(
        self, value: onnx_ir.Value, about: Mapping[str, Any], learnable: bool
    ) -> Stored:
        tensor = value.const_value
        assert tensor is not None
        parts = unpack(tensor.numpy(), about["op"], about["slot"], about["parts"])
        aliases = about.get("names", {})
        targets: list[str] = []
        for name, part in parts.items():
            data = _from_numpy(np.array(part, order="C"), tensor)  # memory of its own
            held = _parameter(data, is_frozen(value, name)) if learnable else data
            names = [
                self._attach(value, each, held, True) for each in (name, *aliases.get(name, ()))
            ]
            targets.append(names[0])
            self._note_factor(value, names)
        return Stored(tuple(targets), None, (about["op"], about["slot"]))

    def _note_factor(self, value: onnx_ir.Value, targets: Sequence[str]) -> None:
        if (factor := lr_factor_of(value)) != 1.0:
            self.lr_factors |= dict.fromkeys(targets, factor)

    def _attach(self, value: onnx_ir.Value, name: str, held: Tensor, persistent: bool) -> str:
        """Register a tensor under its name, or one beside it where no module can have that."""
        if has_generated_name(value, name) and not isinstance(held, nn.Parameter):
            # A name of its own, which the exporter will not make up for something else.
            name = self.free_name("constant")
        elif attach(self.module, name, held, persistent=persistent):
            return name
        else:
            name = self.free_name(name)
        attach(self.module, name, held, persistent=persistent)
        return name


def as_torch(tensor: onnx_ir.TensorProtocol) -> Tensor:
    """Return a copy of a stored tensor for torch; integers of fewer bits in eight.

    Raises:
        UnsupportedModelError: If torch has no dtype for it.
    """
    if isinstance(tensor, TorchTensor):
        return tensor.raw.detach().clone().contiguous()
    return _from_numpy(np.array(tensor.numpy(), order="C"), tensor)


def _from_numpy(array: np.ndarray[Any, Any], tensor: onnx_ir.TensorProtocol) -> Tensor:
    array = array.astype(_WIDER.get(array.dtype, array.dtype), copy=False)
    try:
        if array.dtype.kind != "V" and array.dtype.isbuiltin == 1:
            return torch.from_numpy(array)
        bits = array.view(f"u{array.dtype.itemsize}")
        return torch.from_numpy(bits).view(to_torch_dtype(tensor.dtype))
    except TypeError as error:
        raise UnsupportedModelError(
            f"torch cannot hold {printable(tensor.name or 'a constant')}",
            {"stored": brief(tensor.dtype, tensor.shape.numpy())},
            "convert it to another dtype first",
        ) from error


def _parameter(data: Tensor, frozen: bool) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=not frozen and data.dtype.is_floating_point)


def _inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))
