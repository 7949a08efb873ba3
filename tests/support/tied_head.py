"""A small module whose head is tied to its embedding, for passes that cut and rename."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

__all__ = ["TOKENS", "TiedHead"]

TOKENS = np.array([[1, 4, 2]])


class TiedHead(nn.Module):
    """An embedding, a layer, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(12, 8)
        self.mid = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 12, bias=False)
        self.fc.weight = self.emb.weight

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.relu(self.mid(self.emb(ids)))
        return self.fc(h), h
