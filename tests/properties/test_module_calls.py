"""One call of a module is one reader of its vectors, however often it computes with them.

Held from the module at hand, and from files of both of torch's exporters.
"""

from __future__ import annotations

import io

import onnx
import pytest
import torch
from torch import Tensor, nn

import tieops

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's older exporter says that it is old
WIDTH = 8
CASES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {}


def case(*readers: int):
    """Add a module and how many readers each of its ties has."""

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        CASES[cls.__name__] = cls, readers
        return cls

    return add


def vector() -> nn.Parameter:
    return nn.Parameter(torch.rand(WIDTH) + 0.1)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, bias=False)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = vector()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.g + self.g


class Loop(nn.Module):
    """A helper of its own reads, a child is called in between."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.key, self.norm = vector(), linear(), Norm()

    def mixed(self, x: Tensor) -> Tensor:
        return x * self.mix + x.roll(1, -1) * self.mix

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.mixed(x)
        return self.norm(self.mixed(self.key(x))) * self.mix


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = vector()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.fc = inner or Twice(), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner(x))


@case()
class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.fc = vector(), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.g + self.g) * self.g


@case()
class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Loop(), nn.ReLU(), Loop())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@case(3)
class CalledBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = Norm(), linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(self.norm(x)))))


@case(2)
class CalledOnTwoLines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Twice()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.inner(x)


@case(2)
class SharedByBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = Twice()
        self.a, self.b = Block(inner), Block(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@case(3, 3)
class BlockCalledAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.block(torch.tanh(x))
        return x


@case(2)
class TwoModulesTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Twice(), Twice()
        self.b.g = self.a.g

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case(2, 2, 2)
class OwnLayersOfTorch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, WIDTH), nn.PReLU(WIDTH)
        for each in self.parameters():
            nn.init.normal_(each)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.act(self.norm(x))))


@case(12, 12)
class OneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(12):
            x = torch.relu(self.norm(x))
        return x


def imported(net: nn.Module, source: str) -> tieops.TiedModel:
    x = (torch.randn(2, WIDTH),)
    if source == "module":
        return tieops.from_torch(net, x)
    if source == "older":
        buffer = io.BytesIO()
        torch.onnx.export(net, x, buffer, dynamo=False)  # pyright: ignore[reportArgumentType]
        return tieops.from_onnx(onnx.load_from_string(buffer.getvalue()))
    program = torch.onnx.export(net, x, dynamo=True, optimize=source == "dynamo", verbose=False)
    assert program is not None
    return tieops.from_onnx(program.model_proto)


@pytest.mark.parametrize(
    "source",
    [
        "module",
        "dynamo",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("unoptimized", "older")),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_one_call_is_one_reader(name: str, source: str) -> None:
    torch.manual_seed(0)
    cls, wanted = CASES[name]
    net = cls().eval()
    model = imported(net, source)
    ties = [*model.ties, *model.accidental_ties]
    assert sorted(len({slot.reader for slot in tie.slots}) for tie in ties) == sorted(wanted)
    if not wanted:
        untied = tieops.untie(model)
        # The older exporter renames matrices, which are not what this is about.
        found = {each.name for each in untied.parameters if len(each.shape) == 1}
        assert found == {n for n, each in net.named_parameters() if each.dim() == 1}


def test_a_constant_state_of_a_program_is_no_tie() -> None:
    """What a recurrence begins with has the shape of its data, as a matrix of gains would have."""

    class Recurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay, self.out = vector(), linear()

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(2, WIDTH)
            for _ in range(3):
                state = torch.maximum(state * self.decay, x) + state
            return self.out(state * x)

    model = imported(Recurrence(), "dynamo")
    assert not model.ties
    assert {each.name for each in model.parameters if len(each.shape) == 1} == {"decay"}
