"""What a forward makes of nothing has the type that is the default when it is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import tieops

MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "ones": lambda h: h * torch.ones(4),
    "zeros": lambda h: h + torch.zeros(4),
    "full": lambda h: h + torch.full((4,), 0.25),
    "arange": lambda h: h + torch.arange(4.0) / 3,
    "linspace": lambda h: h + torch.linspace(0, 1, 4),
    "eye": lambda h: h @ torch.eye(4),
    "empty": lambda h: h + torch.empty(4).fill_(0.5),
    "tensor": lambda h: h + torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "scalar": lambda h: h + torch.scalar_tensor(0.5),
    "triangle": lambda h: h @ torch.tril(torch.ones(4, 4)),
    "of the input": lambda h: h * torch.ones(h.shape[-1]) + torch.zeros_like(h),
    "integers": lambda h: h + torch.arange(4) / 3,
    "comparison": lambda h: h + (h > 0).sum() / 3,
    "window": lambda h: h + torch.hann_window(4),
    "random": lambda h: h + 0 * torch.rand(4),
}


class Net(nn.Module):
    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.made = nn.Linear(4, 4), made

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self.fc(x))


@pytest.fixture(params=[torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("made", MADE)
def test_the_default_type_is_written(made: str, default: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(MADE[made]).eval(), torch.randn(2, 4)
    wanted = net(x).detach()
    model = tieops.from_torch(net, (x,))
    path = tieops.to_onnx(model, tmp_path / "m.onnx").path
    torch.set_default_dtype(torch.float32)  # the process that reads it has another one
    back = tieops.to_torch(model)(x).detach()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {model.inputs[0].name: x.numpy()})[0]
    assert back.dtype is wanted.dtype is default
    tight = 1e-12 if default is torch.float64 else 1e-6
    np.testing.assert_allclose(back.numpy(), wanted.numpy(), rtol=tight, atol=tight)
    np.testing.assert_allclose(np.asarray(found), wanted.numpy(), rtol=tight, atol=tight)
