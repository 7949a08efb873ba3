"""Activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.registry import op

op("Relu")(torch.relu)
op("Sigmoid")(torch.sigmoid)
op("Tanh")(torch.tanh)
op("Softplus")(functional.softplus)
op("Softsign")(functional.softsign)
op("HardSwish")(functional.hardswish)
op("Mish")(functional.mish)


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Scale what is negative."""
    return functional.leaky_relu(x, alpha)


@op("PRelu", since=1)
def prelu_by_channel(x: Tensor, slope: Tensor) -> Tensor:
    """Scale what is negative by one slope, or by one for each channel, the second axis."""
    if slope.dim() == 1 and x.dim() > 1 and slope.numel() != 1:
        slope = slope.reshape(-1, *(1,) * (x.dim() - 2))
    return torch.where(x < 0, x * slope, x)


@op("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Scale what is negative by a learned slope, broadcast to the input."""
    return torch.where(x < 0, x * slope, x)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit."""
    return functional.elu(x, alpha)


@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Continuously differentiable exponential linear unit."""
    return functional.celu(x, alpha)


@op("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319, gamma: float = 1.05070102) -> Tensor:
    """Scaled exponential linear unit."""
    return gamma * functional.elu(x, alpha)


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Keep what is above a threshold."""
    return torch.where(x > alpha, x, 0)


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Sigmoid as three straight lines."""
    return torch.clamp(alpha * x + beta, 0, 1)


@op("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Move what is outside of a band by the bias towards zero, and what is inside to zero."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0)).to(x.dtype)


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit."""
    return functional.gelu(x, approximate=approximate)


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return ``x * sigmoid(alpha * x)``."""
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax along one axis."""
    return torch.softmax(x, axis)


@op("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of softmax along one axis."""
    return torch.log_softmax(x, axis)


@op("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Return one where the first maximum is, zero elsewhere."""
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1)


@op("Softmax")
def softmax_from(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax over all axes from one on, as it was before opset 13."""
    return _flat_from(softmax, x, axis)


@op("LogSoftmax")
def log_softmax_from(x: Tensor, *, axis: int = 1) -> Tensor:
    """Logarithm of softmax over all axes from one on, as it was before opset 13."""
    return _flat_from(log_softmax, x, axis)


@op("Hardmax")
def hardmax_from(x: Tensor, *, axis: int = 1) -> Tensor:
    """Hardmax over all axes from one on, as it was before opset 13."""
    return _flat_from(hardmax, x, axis)


def _flat_from(function: Callable[..., Tensor], x: Tensor, axis: int) -> Tensor:
    if axis in (-1, x.dim() - 1):
        return function(x, axis=-1)
    return function(x.flatten(axis), axis=-1).reshape(x.shape)
