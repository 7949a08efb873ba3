"""A name stands for what its module holds: a slice or a transposed view of storage included."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tieops
from tests.properties.readings import losses
from tieops.ir.readers.forms import FORMS, after, as_read, form_of, set_forms
from tieops.ir.view import Reshape, Slice, Transpose, View

IDS = torch.tensor([[1, 2, 3, 4], [5, 0, 7, 8]])
ROWS = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))
WIDTH = 12
Head = Callable[[Tensor, Tensor], Tensor]


class Model(nn.Module):
    """A table, and a second weight that is a view of its storage or has storage of its own."""

    def __init__(self, view: Callable[[Tensor], Tensor], read: Head, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.fc = nn.Embedding(WIDTH, WIDTH), nn.Module()
        held = view(self.emb.weight.data)
        self.fc.weight = nn.Parameter(held if tied else held.clone())
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.fc.weight, Tensor)
        return self.read(torch.tanh(self.emb(x)), self.fc.weight)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda w: w,
    "first rows": lambda w: w[:5],
    "rows": lambda w: w[3:9],
    "every other row": lambda w: w[1::2],
    "columns": lambda w: w[:, 2:8],
    "transposed": lambda w: w.T,
    "transposed rows": lambda w: w[2:7].T,
    "block": lambda w: w[1:7, 3:9],
    "reshaped": lambda w: w.view(6, 24),
    "one more axis": lambda w: w.view(12, 12, 1),
}
READS: dict[str, Head] = {
    "linear": lambda h, w: F.linear(h[..., : w.flatten(1).shape[1]], w.flatten(1)[:, :WIDTH]),
    "flipped": lambda h, w: h[..., : w.flatten(1).shape[1]] @ w.flatten(1)[:, :WIDTH].flip(0).T,
    "matmul": lambda h, w: h[..., : w.shape[0]] @ w.flatten(1),
    "part": lambda h, w: h[..., :3] @ w.flatten(1)[1:4],
}


PAIRS = [
    *zip(VIEWS, itertools.cycle(READS), strict=False),
    ("transposed", "flipped"),
    ("block", "linear"),
]


@pytest.mark.parametrize(("view", "read"), PAIRS)
def test_untie_gives_each_name_the_tensor_that_its_module_holds(view: str, read: str) -> None:
    tied, apart = (Model(VIEWS[view], READS[read], tied=each).eval() for each in (True, False))
    model = tieops.from_torch(tied, (IDS,))
    free = tieops.untie(model)
    assert not free.ties
    back = tieops.to_torch(free)
    for name, value in apart.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, rtol=0, atol=0)
    assert set(back.state_dict()) == set(apart.state_dict())
    np.testing.assert_allclose(losses(back, (IDS,)), losses(apart, (IDS,)), rtol=1e-4)
    again = tieops.tie(free)
    assert [set(tie.names) for tie in again.ties] == [set(tie.names) for tie in model.ties]
    assert not tieops.untie(again).ties
    assert tieops.verify(again, against=model)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.slow
def test_what_a_tied_module_gets_can_be_loaded_under_its_names(view: str) -> None:
    """A name for a view does not name the whole tensor; both share one trained parameter."""
    tied = Model(VIEWS[view], READS["linear"], tied=True).eval()
    model = tieops.from_torch(tied, (IDS,))
    back = tieops.to_torch(model)
    for name, value in back.state_dict().items():
        torch.testing.assert_close(value, tied.state_dict()[name], rtol=0, atol=0)
    assert len(list(back.parameters())) == 1
    written = io.BytesIO()
    torch.save(back.state_dict(), written)
    tied.load_state_dict(back.state_dict(), strict=False)
    torch.testing.assert_close(back(IDS), tied(IDS))


def test_a_tie_by_content_keeps_the_form_of_every_name() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enc, self.dec = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.dec.weight = nn.Parameter(self.enc.weight.detach().T.clone())

        def forward(self, x: Tensor) -> Tensor:
            return self.dec(torch.tanh(self.enc(x)))

    net = Autoencoder().eval()
    tied = tieops.tie(tieops.from_torch(net, (ROWS,)))
    assert [tie.names for tie in tied.ties] == [("enc.weight", "dec.weight")]
    for model in (tied, tieops.untie(tied)):
        for name, value in tieops.to_torch(model).state_dict().items():
            torch.testing.assert_close(value, net.state_dict()[name], rtol=0, atol=0)


def _views(shape: tuple[int, ...]) -> Iterator[View]:
    whole = View(shape)
    yield whole
    yield whole.then(Transpose((1, 0)))
    yield whole.then(Slice(((1, 3, 1), (0, 3, 2))))
    yield whole.then(Slice(((1, 3, 1), (0, 2, 1)))).then(Transpose((1, 0))).then(Reshape((4,)))
    yield whole.then(Reshape((2, 6)))


def _value(shape: tuple[int, ...]) -> onnx_ir.Value:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return onnx_ir.Value(name="w", const_value=onnx_ir.tensor(array))


def test_a_form_is_read_as_it_was_recorded() -> None:
    for view in _views((3, 4)):
        value = _value((3, 4))
        set_forms(value, {"other": view})
        assert form_of(value, "other") == view
        assert form_of(value, "w").is_identity


def test_a_form_of_what_is_read_is_one_of_what_is_stored() -> None:
    array = np.arange(12).reshape(3, 4)
    for view in _views((4, 3)):
        found = as_read(view, (1, 0))
        assert np.array_equal(found.apply(array), view.apply(array.T))
        whole = View((3, 4)).then(Transpose((1, 0)))
        assert np.array_equal(after(whole, view).apply(array), view.apply(array.T))


JUNK: list[Any] = [
    3, [], {"w": 3}, {"w": [3]}, {"w": [{}]}, {"w": [{"transpose": [0, 0]}]},
    {"w": [{"transpose": [1, 0, 2]}]}, {"w": [{"slice": [[0, 9, 1], [0, 4, 1]]}]},
    {"w": [{"slice": [[0, 1, 0], [0, 4, 1]]}]}, {"w": [{"reshape": [5, 5]}]},
    {"w": [{"reshape": [-12, -1]}]}, {"w": [{"reshape": "ab"}]}, {"w": [{"cast": [1]}]},
    {"w": [{"transpose": [1, 0], "reshape": [12]}]}, {"w": [{"transpose": [1, 0]}] * 99},
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_as_if_it_were_not_there(junk: object) -> None:
    value = _value((3, 4))
    value.metadata_props[FORMS] = json.dumps(junk)
    assert form_of(value, "w").is_identity
