"""Normalizations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tieops.errors import UnsupportedModelError
from tieops.exporters.torch.ops.literals import Numbers, one
from tieops.exporters.torch.ops.registry import op


@op("BatchNormalization", many=True, since=14)
class BatchNorm(nn.Module):
    """Normalize by running statistics, or in training by the batch's.

    In training the batch's statistics update the running ones. Weight, bias and statistics are
    arguments: they belong to the module that has them by name.
    """

    def __init__(
        self,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
    ) -> None:
        super().__init__()
        self.epsilon, self.momentum, self.by_batch = epsilon, momentum, bool(training_mode)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result and the running statistics as they are afterwards."""
        if self.by_batch:
            return self._by_batch(x, weight, bias, mean, var)
        found = functional.batch_norm(
            x, mean, var, weight, bias, self.training, 1 - self.momentum, self.epsilon
        )
        return found, mean, var

    def _by_batch(
        self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        axes = (0, *range(2, x.dim()))
        old, new = self.momentum, 1 - self.momentum
        found = functional.batch_norm(x, None, None, weight, bias, True, new, self.epsilon)
        return (
            found,
            mean * old + x.mean(axes) * new,
            var * old + x.var(axes, correction=0) * new,
        )


@op("BatchNormalization", many=True, since=1)
class OldBatchNorm(BatchNorm):
    """The same before opset 14; ``spatial=0`` has statistics of each element, not each channel.

    ``is_test`` says what the number of outputs says too: one in inference.
    """

    def __init__(
        self,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        spatial: int = 1,
        is_test: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__(epsilon=epsilon, momentum=momentum)
        self.spatial = spatial
        if outputs > 1:
            raise UnsupportedModelError(
                "to_torch does not support a BatchNormalization that returns batch statistics",
                {"outputs": outputs},
                "export the model in eval mode, and call train() on the torch module",
            )

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result and the running statistics as they are afterwards."""
        if self.spatial:
            return super().forward(x, weight, bias, mean, var)
        flat = [each.reshape(-1) for each in (weight, bias, mean, var)]
        found, _, _ = super().forward(x.flatten(1), *flat)
        return found.reshape(x.shape), mean, var


@op("Dropout", literals=(1, 2), many=True)
class Dropout(nn.Module):
    """Drop elements in training, none in inference."""

    def __init__(self, *, ratio: float = 0.5, seed: int | None = None, is_test: int = 0) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(
        self, x: Tensor, ratio: Numbers | None = None, training_mode: Numbers | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the result and which elements stayed; ``train()`` and ``eval()`` have the say."""
        chance = self.ratio if ratio is None else one(ratio)
        if not self.training or chance == 0:
            return x, torch.ones_like(x, dtype=torch.bool)
        kept = torch.rand_like(x, dtype=torch.float32) >= chance
        return torch.where(kept, x / (1 - chance), 0), kept


@op("LayerNormalization", many=True)
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Normalize over the axes from one on; if asked for, return mean and inverse deviation too."""
    shape = x.shape[axis:]
    if outputs == 1 and weight.shape == shape and (bias is None or bias.shape == shape):
        return (functional.layer_norm(x, shape, weight, bias, epsilon),)
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.float32) if stash_type == 1 else x
    mean = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt(wide.var(axes, correction=0, keepdim=True) + epsilon)
    found = ((wide - mean) * inverse).to(x.dtype) * weight
    return (found if bias is None else found + bias), mean, inverse


@op("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(
    x: Tensor, weight: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Divide by the root of the mean square over the axes from one on."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.float32) if stash_type == 1 else x
    scaled = wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return scaled.to(x.dtype) * weight


@op("InstanceNormalization")
def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalize each channel of each example."""
    return functional.group_norm(x, x.shape[1], weight, bias, epsilon)


@op("GroupNormalization", since=21)
def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,
) -> Tensor:
    """Normalize groups of channels of each example."""
    return functional.group_norm(x, num_groups, weight, bias, epsilon)


@op("GroupNormalization", since=18)
def group_norm_by_group(
    x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int
) -> Tensor:
    """Normalize groups of channels, with one weight and one bias a group."""
    each = x.shape[1] // num_groups
    weight, bias = weight.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, num_groups, weight, bias, epsilon)


@op("LpNormalization")
def lp_normalize(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the p-norm along an axis; what has norm zero stays zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, 0, x / norm)


@op("MeanVarianceNormalization")
def mean_variance_normalize(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """Subtract the mean and divide by the deviation."""
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)


@op("LRN")
def local_response_norm(
    x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Tensor:
    """Divide by a power of the squares of the channels around each."""
    return functional.local_response_norm(x, size, alpha, beta, bias)
