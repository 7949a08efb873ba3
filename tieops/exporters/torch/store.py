"""What a module stores: parameters under every name they have, and buffers for the rest."""

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

from tieops.detect.trace import Arrival
from tieops.errors import UnsupportedModelError
from tieops.exporters.torch.names import identifier, naming_of
from tieops.exporters.torch.ops import find
from tieops.importers.rnn import unpack
from tieops.ir.brief import brief, printable
from tieops.ir.names import (
    TORCH_KIND,
    TORCH_PERSISTENT,
    aliases_of,
    is_made_up,
    lr_factor_of,
    origin_of,
    recorded_names,
)
from tieops.ir.operators.roles import is_learnable_role
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.scopes import stored_values
from tieops.tied_model import TiedModel

__all__ = ["Store", "Stored", "as_torch"]

_TRAINED = (
    onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16,
    onnx_ir.DataType.DOUBLE,
)  # fmt: skip
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
        self._version = model.ir.opset_imports.get("", 0)
        self._stored: dict[onnx_ir.Value, Stored] = {}
        self._constants: dict[int, Stored] = {}
        self._kinds_are_known = any(
            TORCH_KIND in value.metadata_props for value in stored_values(model.ir)
        )
        self._counts: dict[str, int] = {}
        self._slots: dict[onnx_ir.Value, list[Slot]] = {}
        for slot in model.slots:
            for read in slot.reads:
                self._slots.setdefault(read.parameter.value, []).append(slot)
        # Tied ones first, so that the first of their names comes first in the module too.
        for parameter in sorted(model.parameters, key=lambda each: len(each.names) == 1):
            arrivals = model.trace.arrivals[parameter.value]
            if self._is_learnable(parameter, arrivals):
                self._store(parameter.value, learnable=True, persistent=True)
            elif _is_in_state(parameter, arrivals):
                self._store(parameter.value, learnable=False, persistent=True)

    def __contains__(self, value: onnx_ir.Value) -> bool:
        """Tell whether a value is a parameter, or a buffer that a state_dict has."""
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
        while hasattr(self.module, name):
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        return name

    def _is_learnable(self, parameter: Parameter, arrivals: Sequence[Arrival]) -> bool:
        if parameter.dtype not in _TRAINED:
            return False
        kind = parameter.value.metadata_props.get(TORCH_KIND)
        if kind is not None:
            return kind == "PARAMETER"
        is_ours = origin_of(parameter.value) or recorded_names(parameter.value)
        if self._kinds_are_known and not is_ours:
            # Torch's exporter or an operator's body made it, unless surgery did: a new layer's.
            return "." in parameter.name and not is_made_up(parameter.name)
        readers = [a for a in arrivals if not _is_no_weight(a, self._version)]
        if all(is_made_up(name) for name in aliases_of(parameter.value)):
            # A name that an exporter invented: a weight only where the operator has no other use.
            readers = [
                a
                for a in readers
                if is_learnable_role(a.node, a.index) and a.node.op_type != "Gather"
            ]
        return bool(readers)

    def _store(self, value: onnx_ir.Value, *, learnable: bool, persistent: bool) -> None:
        tensor = value.const_value
        assert tensor is not None
        in_node = value.producer() is not None
        if in_node and id(tensor) in self._constants:  # of a function that is called twice
            self._stored[value] = self._constants[id(tensor)]
            return
        naming = naming_of(value, self._slots.get(value, ()))
        if naming.packed is not None:
            stored = self._store_parts(value, naming.packed, learnable)
        else:
            data = as_torch(tensor)
            if naming.perm is not None:
                data = data.permute(_inverse(naming.perm)).contiguous()
            held = nn.Parameter(data) if learnable else data
            targets = [self._attach(name, held, persistent) for name in naming.names]
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
            held = nn.Parameter(data) if learnable else data
            names = [self._attach(each, held, True) for each in (name, *aliases.get(name, ()))]
            targets.append(names[0])
            self._note_factor(value, names)
        return Stored(tuple(targets), None, (about["op"], about["slot"]))

    def _note_factor(self, value: onnx_ir.Value, targets: Sequence[str]) -> None:
        if (factor := lr_factor_of(value)) != 1.0:
            self.lr_factors |= dict.fromkeys(targets, factor)

    def _attach(self, name: str, held: Tensor, persistent: bool) -> str:
        """Register a tensor under its name, or one beside it where that cannot be an attribute."""
        if is_made_up(name) and not isinstance(held, nn.Parameter):
            # A name of its own, which the exporter will not make up for something else.
            return self._attach_at(self.module, self.free_name("constant"), held, persistent)
        if not name.isprintable() or '"' in name or "\\" in name:
            # The module's code has the name between quotes, and a file may hold anything.
            return self._attach_at(self.module, self.free_name(name), held, persistent)
        *path, leaf = name.split(".")
        at = self.module
        for part in path:
            child = at._modules.get(part)  # pyright: ignore[reportPrivateUsage]
            if child is None:
                if not part or hasattr(at, part):
                    return self._attach_at(self.module, self.free_name(name), held, persistent)
                at.add_module(part, child := nn.Module())
            at = child
        if not leaf or hasattr(at, leaf):
            return self._attach_at(self.module, self.free_name(name), held, persistent)
        self._attach_at(at, leaf, held, persistent)
        return ".".join((*path, leaf))

    @staticmethod
    def _attach_at(module: nn.Module, name: str, held: Tensor, persistent: bool) -> str:
        if isinstance(held, nn.Parameter):
            module.register_parameter(name, held)
        else:
            module.register_buffer(name, held, persistent=persistent)
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


def _inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def _is_statistic(arrival: Arrival) -> bool:
    return arrival.node.op_type == "BatchNormalization" and arrival.index in (3, 4)


def _is_no_weight(arrival: Arrival, version: int) -> bool:
    """Tell a running statistic, a quantization scale or a size from what training changes."""
    node = arrival.node
    entry = find(node.domain, node.op_type, version)
    is_literal = entry is not None and arrival.index in entry.literals
    return (
        is_literal
        or _is_statistic(arrival)
        or "Quantize" in node.op_type
        or (node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"))
    )


def _is_in_state(parameter: Parameter, arrivals: Sequence[Arrival]) -> bool:
    """Tell whether the state_dict of the original module had it, as far as the model says."""
    props = parameter.value.metadata_props
    if TORCH_KIND in props:
        return (
            props[TORCH_KIND] in ("PARAMETER", "BUFFER") and props.get(TORCH_PERSISTENT) != "False"
        )
    return any(_is_statistic(arrival) for arrival in arrivals)
