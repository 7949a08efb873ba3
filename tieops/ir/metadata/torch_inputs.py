"""The nesting of a torch program's inputs, recorded on the exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir

from tieops.ir.metadata.keys import TORCH_CONSTANTS, TORCH_INPUTS

__all__ = ["Constant", "TorchInputs", "set_torch_inputs", "torch_inputs_of"]

Constant = None | bool | int | float | str
"""What an argument can be that has no input of the graph: it was written into the program."""


@dataclass(frozen=True)
class TorchInputs:
    """What a call of the module takes.

    Attributes:
        spec: The containers of args and kwargs, as torch's pytree spells them. A text from a file:
            it has to be checked before torch reads it.
        constants: The leaves that are not tensors, by their positions.
    """

    spec: str
    constants: Mapping[int, Constant]


def set_torch_inputs(model: onnx_ir.Model, inputs: TorchInputs) -> None:
    """Record what a call of the module takes."""
    model.metadata_props[TORCH_INPUTS] = inputs.spec
    if inputs.constants:
        model.metadata_props[TORCH_CONSTANTS] = json.dumps(sorted(inputs.constants.items()))


def torch_inputs_of(model: onnx_ir.Model) -> TorchInputs | None:
    """Return what a call of the module takes, as far as the model says.

    Example:
        >>> model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=10)
        >>> set_torch_inputs(model, TorchInputs("[1, {}]", {1: "mean", 2: None}))
        >>> torch_inputs_of(model)
        TorchInputs(spec='[1, {}]', constants={1: 'mean', 2: None})
    """
    spec = model.metadata_props.get(TORCH_INPUTS)
    if spec is None:
        return None
    # A file from elsewhere may hold anything under our keys.
    try:
        found = json.loads(model.metadata_props.get(TORCH_CONSTANTS, "[]"))
        constants = {
            index: value
            for index, value in found
            if type(index) is int and (value is None or isinstance(value, bool | int | float | str))
        }
    except (ValueError, TypeError, RecursionError):
        return None
    return TorchInputs(spec, constants)
