"""Losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.registry import op

NO_CLASS = -(2**31)
"""An index that stands for no class, so that nothing is ignored."""


@op("NegativeLogLikelihoodLoss")
def nll_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = NO_CLASS,
    reduction: str = "mean",
) -> Tensor:
    """Return minus the logarithm of the target's probability; x is (batch, classes, ...)."""
    return functional.nll_loss(
        x, target.to(torch.int64), weight, ignore_index=ignore_index, reduction=reduction
    )


@op("SoftmaxCrossEntropyLoss", many=True)
def cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = NO_CLASS,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Return the loss and the logarithms of the probabilities; scores are (batch, classes, ...)."""
    log_prob = torch.log_softmax(scores, 1)
    loss = nll_loss(log_prob, labels, weight, ignore_index=ignore_index, reduction=reduction)
    return loss, log_prob
