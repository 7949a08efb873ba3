"""Weights that wrap other tensors: what they wrap is stored, tied and run as the module has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import tieops
import tieops.errors


class Wrapper(torch.Tensor):
    """A tensor without memory of its own; ``PARTS`` are the tensors that it is made of."""

    PARTS: tuple[str, ...] = ()

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return list(self.PARTS), None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Any], meta: Any, size: Any, stride: Any) -> Any:
        return cls(*(inner[name] for name in cls.PARTS))

    def plain(self) -> torch.Tensor:
        raise NotImplementedError

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(*(getattr(args[0], name) for name in cls.PARTS))
        plain = pytree.tree_map_only(Wrapper, lambda each: each.plain(), (args, kwargs or {}))
        return func(*plain[0], **plain[1])


class Scaled(Wrapper):
    """Bytes and a scale that look like floats."""

    PARTS = ("q", "scale")

    @staticmethod
    def __new__(cls: Any, q: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=torch.float32)

    def __init__(self, q: torch.Tensor, scale: torch.Tensor) -> None:
        self.q, self.scale = q, scale

    def plain(self) -> torch.Tensor:
        return self.q.float() * self.scale


class Shifted(Wrapper):
    """Another wrapper and what is added to it."""

    PARTS = ("shift", "inner")

    @staticmethod
    def __new__(cls: Any, shift: torch.Tensor, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, shift: torch.Tensor, inner: torch.Tensor) -> None:
        self.shift, self.inner = shift, inner

    def plain(self) -> torch.Tensor:
        return (self.inner.plain() if isinstance(self.inner, Wrapper) else self.inner) + self.shift


def scaled(size: int = 8) -> nn.Parameter:
    q = torch.randint(-9, 9, (size, size), dtype=torch.int8)
    return nn.Parameter(Scaled(q, torch.rand(size, 1)), requires_grad=False)


def linear(weight: nn.Parameter) -> nn.Linear:
    layer = nn.Linear(*weight.shape, bias=False)
    layer.weight = weight
    return layer


X = torch.randn(2, 8)


def ran(model: tieops.TiedModel, x: torch.Tensor) -> torch.Tensor:
    (found,) = tieops.session(model, "cpu").run_tensors({str(model.inputs[0].name): x}).values()
    return found


def parts(name: str, count: int = 2) -> list[str]:
    owner, dot, leaf = name.rpartition(".")
    return [f"{owner}{dot}parametrizations.{leaf}.original{i}" for i in range(count)]


@pytest.mark.parametrize("as_program", [False, True])
def test_what_a_weight_wraps_is_stored_in_its_own_dtype(as_program, tmp_path):
    net = nn.Sequential(linear(scaled()), nn.Linear(8, 4)).eval()
    source = torch.export.export(net, (X,)) if as_program else net
    model = tieops.from_torch(source, () if as_program else (X,))
    stored = model.ir.graph.initializers
    q, scale = (stored[name].const_value for name in parts("0.weight"))
    assert q.tobytes() == net[0].weight.q.numpy().tobytes()
    assert scale.tobytes() == net[0].weight.scale.numpy().tobytes()
    for each in (model, tieops.from_onnx(tieops.to_onnx(model, tmp_path / "m.onnx"))):
        torch.testing.assert_close(ran(each, X), net(X))
    torch.testing.assert_close(tieops.to_torch(model)(X), net(X))
    assert type(net[0].weight.data) is Scaled


def test_a_shared_wrapper_is_a_tie_of_what_it_wraps():
    net = nn.Sequential(linear(scaled()), nn.ReLU(), linear(scaled()))
    net[2].weight = net[0].weight
    model = tieops.from_torch(net, X)
    assert [set(tie.names) for tie in model.ties] == [
        set(pair) for pair in zip(parts("0.weight"), parts("2.weight"), strict=True)
    ]
    assert model.ledger.stored_bytes == 8 * 8 + 8 * 4
    torch.testing.assert_close(ran(model, X), net(X))


def test_wrappers_that_share_a_part_and_buffers_are_tied_too():
    net = nn.Sequential(linear(scaled()), linear(scaled()))
    net[1].weight.scale = net[0].weight.scale
    net.register_buffer("kept", net[0].weight.data)
    net.forward = lambda x: net[1](net[0](x)) + net.kept[0]
    model = tieops.from_torch(net, X)
    groups = [set(tie.names) for tie in model.ties]
    q, scale = parts("0.weight")
    assert {q, parts("kept")[0]} in groups
    assert {scale, parts("1.weight")[1], parts("kept")[1]} in groups
    torch.testing.assert_close(ran(model, X), net(X))


class Opaque(torch.Tensor):
    """A wrapper that does not say what it is made of."""

    @staticmethod
    def __new__(cls: Any, kept: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, kept.shape, dtype=torch.float32)

    def __init__(self, kept: torch.Tensor) -> None:
        self.kept = kept

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].kept)
        args, kwargs = pytree.tree_map_only(Opaque, lambda each: each.kept, (args, kwargs or {}))
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "weight",
    [
        Opaque(torch.ones(8, 8)),
        # torch.export cannot look into a wrapper in a wrapper.
        Shifted(torch.rand(8, 8), Shifted(torch.rand(()), scaled().data)),
    ],
    ids=["opaque", "nested"],
)
def test_a_wrapper_that_torch_cannot_export_is_one_clear_error(weight, capfd):
    net = linear(nn.Parameter(weight, requires_grad=False))
    with pytest.raises(tieops.errors.ExportError) as caught:
        tieops.from_torch(net, X)
    assert "fix: " in str(caught.value)
    assert type(net.weight.data) is type(weight)
