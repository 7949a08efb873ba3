"""A buffer over a parameter's storage is one again once they are apart, and after ``tie``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tieops

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda w: w,
    "transposed": lambda w: w.T,
    "row": lambda w: w[3],
    "rows": lambda w: w[2:7],
}


class Net(nn.Module):
    def __init__(self, view: Callable[[Tensor], Tensor], *, persistent: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(8, 8)
        self.register_buffer("table", view(self.emb.weight.data), persistent=persistent)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.table, Tensor)
        return self.last(self.emb(x)) @ self.table.reshape(-1, 8).T


@pytest.mark.parametrize(
    ("view", "persistent"),
    # The exporter folds what it reads of a buffer that is not persistent: nothing reads all of one.
    [*((view, True) for view in VIEWS), ("transposed", False), ("rows", False)],
)
def test_a_buffer_stays_one(view: str, persistent: bool, tmp_path: Path) -> None:
    net = Net(VIEWS[view], persistent=persistent).eval()
    tied = tieops.from_torch(net, (torch.tensor([[1, 2, 3]]),))
    assert len(tied.ties) == 1
    apart = tieops.untie(tied)
    again = tieops.untie(tieops.tie(apart))
    read = tieops.from_onnx(tieops.to_onnx(tied, tmp_path / "tied.onnx").path)
    for model in (apart, again, tieops.untie(read)):
        back = tieops.to_torch(model)
        assert {n for n, _ in back.named_parameters()} == {n for n, _ in net.named_parameters()}
        # What is not in the state_dict is a constant of the program, and may be stored otherwise.
        assert ("table" in back.state_dict()) is persistent
        if persistent:
            assert torch.equal(back.state_dict()["table"], net.state_dict()["table"])


def test_a_frozen_parameter_over_shared_storage_stays_frozen() -> None:
    first, last = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    last.weight = nn.Parameter(first.weight.data, requires_grad=False)
    net = nn.Sequential(first, nn.Tanh(), last).eval()
    apart = tieops.to_torch(tieops.untie(tieops.from_torch(net, (torch.randn(2, 6),))))
    found = {name: each.requires_grad for name, each in apart.named_parameters()}
    assert found == {"0.weight": True, "2.weight": False}
