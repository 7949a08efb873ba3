"""Keep equal parameters apart in torch's older exporter, which would merge them.

All fresh norms have gains of ones. The exporter stores equal parameters once, and its graph does
not record that they were separate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

__all__ = ["put_back", "tell_apart"]


def tell_apart(module: nn.Module) -> frozenset[str]:
    """Give every parameter of a module that is thrown away values that no other one has.

    Returns:
        The names of the parameters that have other values now. A parameter of a loaded archive is
        a plain tensor, so its type does not tell it from a buffer.
    """
    numbers = torch.Generator().manual_seed(0)
    named = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=numbers, dtype=torch.float64)
                parameter.copy_(noise.to(parameter.dtype))
    return frozenset(name for name, each in named.items() if each.is_floating_point())


def put_back(
    stored: Mapping[str, onnx_ir.Value],
    tensors: Mapping[str, torch.Tensor],
    names: Collection[str],
) -> None:
    """Store a module's own values again in the graph of its copy.

    Args:
        stored: The initializers of the graph.
        tensors: The module's parameters and buffers.
        names: What ``tell_apart`` returned.
    """
    for name in stored.keys() & names:
        tensor = tensors[name].detach().clone().contiguous()
        stored[name].const_value = TorchTensor(tensor, name=name)
