"""Keeping parameters apart in torch's older exporter, which merges those that are equal.

A fresh norm has a gain of ones, and so have all the others. The exporter stores equal parameters
once, and nothing in its graph says that they were several.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

__all__ = ["put_back", "tell_apart"]


def tell_apart(module: nn.Module) -> None:
    """Give every parameter of a module that is thrown away values that no other one has."""
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=numbers, dtype=torch.float64)
                parameter.copy_(noise.to(parameter.dtype))


def put_back(stored: Mapping[str, onnx_ir.Value], tensors: Mapping[str, torch.Tensor]) -> None:
    """Store a module's own values again in the graph of its copy, by name."""
    for name, value in stored.items():
        tensor = tensors.get(name)
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            value.const_value = TorchTensor(tensor.detach().clone().contiguous(), name=name)
