"""Ways in which a module reads a weight that it shares, each tied and built apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 0, 8, 9, 3]])
ROWS, COLUMNS = 24, 16
CASES: dict[str, type[Reading]] = {}


class Reading(nn.Module):
    """A module with two or more layers, tied or apart."""

    inputs: tuple[Tensor, ...] = (IDS,)

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.build()
        if tied:
            self.tie()

    def build(self) -> None:
        self.emb, self.fc = nn.Embedding(ROWS, COLUMNS), nn.Linear(COLUMNS, ROWS, bias=False)

    def tie(self) -> None:
        self.fc.weight = self.emb.weight


def case(cls: type[Reading]) -> type[Reading]:
    CASES[cls.__name__] = cls
    return cls


def head(read: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
    """Add a language model whose forward reads the head's weight itself."""

    class Head(Reading):
        def forward(self, x: Tensor) -> Tensor:
            return read(torch.tanh(self.emb(x)), self.fc.weight)

    CASES[name] = Head


head(lambda h, w: F.linear(h, w), "functional_linear")
head(lambda h, w: h @ w.T, "matmul_T")
head(lambda h, w: h @ w.t(), "matmul_t")
head(lambda h, w: h @ w.transpose(0, 1), "matmul_transpose")
head(lambda h, w: torch.matmul(h, w.mT), "matmul_mT")
head(lambda h, w: torch.einsum("bth,vh->btv", h, w), "einsum")
head(lambda h, w: torch.bmm(h, w.T.unsqueeze(0).expand(2, -1, -1)), "bmm_expand")
head(lambda h, w: torch.addmm(torch.zeros(ROWS), h.reshape(-1, COLUMNS), w.T), "addmm")
head(lambda h, w: h @ w.repeat(1, 1).T, "repeat")
head(lambda h, w: F.linear(h, w * 0.5), "scaled_head")
head(lambda h, w: F.linear(h, F.normalize(w, dim=-1)), "functional_cosine")
head(lambda h, w: F.linear(h, w + (torch.round(w * 8) / 8 - w)), "straight_through")
head(lambda h, w: F.linear(h.double(), w.double()).float(), "cast")


@case
class PlainLinear(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.emb(x)))


@case
class FunctionalBoth(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.embedding(x, self.emb.weight)), self.fc.weight)


@case
class ScaledEmbedding(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.emb(x) * COLUMNS**0.5)


@case
class Autocast(Reading):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(torch.tanh(self.emb(x)), self.fc.weight)


@case
class NoGradRegion(Reading):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.emb(x))
        with torch.no_grad():  # of nothing, since a graph does not say where gradients end
            zero = F.linear(h * 0, self.fc.weight)
        return F.linear(h, self.fc.weight) + zero


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=-1), self.bias)


@case
class CosineHead(Reading):
    def build(self) -> None:
        self.emb, self.fc = nn.Embedding(ROWS, COLUMNS), Cosine(COLUMNS, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.emb(x))


@case
class TwoCosines(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        self.a, self.b = Cosine(COLUMNS, COLUMNS), Cosine(COLUMNS, COLUMNS)

    def tie(self) -> None:
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case
class Attention(Reading):
    inputs = (torch.randn(2, 5, COLUMNS),)

    def build(self) -> None:
        self.a, self.b = (nn.MultiheadAttention(COLUMNS, 4, batch_first=True) for _ in range(2))

    def tie(self) -> None:
        self.b.out_proj.weight = self.a.out_proj.weight
        self.b.in_proj_weight = self.a.in_proj_weight

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x, x, x, need_weights=False)[0]
        return self.b(x, x, x, need_weights=False)[0]


@case
class CrossAttention(Attention):
    inputs = (torch.randn(2, 5, COLUMNS), torch.randn(2, 3, COLUMNS))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.a(x, y, y, need_weights=False)[0]
        return self.b(x, y, y, need_weights=False)[0]


@case
class TransformerBlocks(Reading):
    inputs = (torch.randn(2, 5, COLUMNS),)

    def build(self) -> None:
        make = nn.TransformerEncoderLayer
        self.a, self.b = (make(COLUMNS, 4, 32, 0.0, batch_first=True) for _ in range(2))

    def tie(self) -> None:
        self.b.linear1.weight = self.a.linear1.weight
        self.b.self_attn.out_proj.weight = self.a.self_attn.out_proj.weight
        self.b.norm1.weight = self.a.norm1.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@case
class Convolutions(Reading):
    inputs = (torch.randn(2, 3, 8, 8),)

    def build(self) -> None:
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def tie(self) -> None:
        self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@case
class PointwiseWithLinear(Reading):
    inputs = (torch.randn(2, COLUMNS, 6),)

    def build(self) -> None:
        self.conv, self.fc = nn.Conv1d(COLUMNS, COLUMNS, 1), nn.Linear(COLUMNS, COLUMNS)
        self.conv.weight = nn.Parameter(self.conv.weight.detach().clone())

    def tie(self) -> None:
        self.fc.bias = self.conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).transpose(1, 2))


@case
class FunctionalPointwise(Reading):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.emb(x)).transpose(1, 2)
        return F.conv1d(h, self.fc.weight.unsqueeze(-1)).transpose(1, 2)


@case
class Deconvolution(Reading):
    inputs = (torch.randn(2, 3, 8, 8),)

    def build(self) -> None:
        self.down, self.up = nn.Conv2d(3, 6, 2, stride=2), nn.ConvTranspose2d(6, 3, 2, stride=2)

    def tie(self) -> None:
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x)))


@case
class FunctionalAutoencoder(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        self.encoder, self.decoder = nn.Linear(COLUMNS, 8), nn.Linear(COLUMNS, 8, bias=False)

    def tie(self) -> None:
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.decoder.weight.t())


@case
class Recurrent(Reading):
    inputs = (torch.randn(2, 5, 8),)

    def build(self) -> None:
        self.a, self.b = (nn.LSTM(8, 8, batch_first=True) for _ in range(2))

    def tie(self) -> None:
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            setattr(self.b, name, getattr(self.a, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)[0])[0]


@case
class RecurrentPart(Reading):
    inputs = (torch.randn(2, 5, 8),)

    def build(self) -> None:
        self.a, self.b = (nn.GRU(8, 8, batch_first=True) for _ in range(2))

    def tie(self) -> None:
        self.b.weight_ih_l0 = self.a.weight_ih_l0

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)[0])[0]


@case
class Gains(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        self.a, self.b = nn.LayerNorm(COLUMNS), nn.LayerNorm(COLUMNS)
        for norm in (self.a, self.b):
            nn.init.normal_(norm.weight)

    def tie(self) -> None:
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.randn(COLUMNS))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.g + self.g


@case
class GainReadTwice(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        self.a, self.b = Doubled(), Doubled()

    def tie(self) -> None:
        self.b.g = self.a.g

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class OneMore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(COLUMNS))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.weight)


@case
class OffsetGains(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        self.a, self.b = OneMore(), OneMore()

    def tie(self) -> None:
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case
class WeightNorm(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        make = parametrizations.weight_norm
        self.a, self.b = (make(nn.Linear(COLUMNS, COLUMNS)) for _ in range(2))

    def tie(self) -> None:
        self.b.parametrizations.weight.original1 = self.a.parametrizations.weight.original1

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case
class OldWeightNorm(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            make = nn.utils.weight_norm
            self.a, self.b = (make(nn.Linear(COLUMNS, COLUMNS)) for _ in range(2))

    def tie(self) -> None:
        self.b.weight_v = self.a.weight_v

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case
class SpectralNorm(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        make = parametrizations.spectral_norm
        self.a, self.b = (make(nn.Linear(COLUMNS, COLUMNS)) for _ in range(2))

    def tie(self) -> None:
        self.b.parametrizations.weight.original = self.a.parametrizations.weight.original

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        spread = self.weight.std(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (spread + 1e-5), self.bias, padding=1)


@case
class StandardisedConvolutions(Reading):
    inputs = (torch.randn(2, 3, 8, 8),)

    def build(self) -> None:
        self.a, self.b = Standardised(3, 3, 3), Standardised(3, 3, 3)

    def tie(self) -> None:
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case
class ListOfWeights(Reading):
    def build(self) -> None:
        self.ws = nn.ParameterList(torch.randn(ROWS, COLUMNS) for _ in range(2))

    def tie(self) -> None:
        self.ws[1] = self.ws[0]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.embedding(x, self.ws[0])), self.ws[1])


@case
class DictOfWeights(Reading):
    def build(self) -> None:
        make = {name: torch.randn(ROWS, COLUMNS) for name in ("into", "out")}
        self.ws = nn.ParameterDict(make)

    def tie(self) -> None:
        self.ws["out"] = self.ws["into"]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.embedding(x, self.ws["into"])) @ self.ws["out"].T


@case
class ThreeWays(Reading):
    def build(self) -> None:
        self.emb, self.fc = nn.Embedding(ROWS, COLUMNS), nn.Linear(COLUMNS, ROWS, bias=False)
        self.aux = nn.Linear(COLUMNS, ROWS, bias=False)

    def tie(self) -> None:
        self.fc.weight = self.aux.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.emb(x))
        return self.fc(h) + h @ self.aux.weight.T


@case
class TiedBias(Reading):
    inputs = (torch.randn(3, COLUMNS),)

    def build(self) -> None:
        self.a, self.b = nn.Linear(COLUMNS, COLUMNS), nn.Linear(COLUMNS, COLUMNS)

    def tie(self) -> None:
        self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case
class CalledTwice(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.emb(x) + self.emb(x.flip(1))))


@case
class Checkpointed(Reading):
    def forward(self, x: Tensor) -> Tensor:
        h = self.emb(x)
        h = checkpoint(torch.tanh, h, use_reentrant=False)
        return self.fc(h)


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROWS, COLUMNS))

    def forward(self, h: Tensor) -> Tensor:
        return torch.einsum("bth,vh->btv", h, self.table)


@case
class CustomForward(Reading):
    def build(self) -> None:
        self.emb, self.out = nn.Embedding(ROWS, COLUMNS), nn.ModuleDict({"score": Scorer()})

    def tie(self) -> None:
        self.out["score"].table = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out["score"](torch.tanh(self.emb(x)))


@case
class SlicesRead(Reading):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.emb(x))
        return torch.cat([h @ self.fc.weight[:10].T, h @ self.fc.weight[10:].T], dim=-1)


@case
class TwoLanguages(Reading):
    """Encoder and decoder, each with an embedding, and one head."""

    inputs = (IDS, IDS.flip(1))

    def build(self) -> None:
        self.source, self.target = nn.Embedding(ROWS, COLUMNS), nn.Embedding(ROWS, COLUMNS)
        self.fc = nn.Linear(COLUMNS, ROWS)

    def tie(self) -> None:
        self.target.weight = self.fc.weight = self.source.weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.source(x) + self.target(y)))


def pair(name: str) -> tuple[Reading, Reading]:
    """Return the tied module, and one that was built apart and has the same values."""
    torch.manual_seed(0)
    tied = CASES[name](True).eval()
    apart = CASES[name](False).eval()
    apart.load_state_dict(tied.state_dict())
    return tied, apart


def losses(module: nn.Module, inputs: tuple[Any, ...], steps: int = 20) -> list[float]:
    """Return what an optimizer reaches, step by step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.005)
    found: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        result = module(*inputs)
        loss = ((result - 0.3) ** 2).mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found
