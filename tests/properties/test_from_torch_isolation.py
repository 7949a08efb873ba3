"""from_torch leaves the process, the module and the caller's tensors as they were."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack  # pyright: ignore

from tieops import from_torch
from tieops.errors import ExportError


def _ignore(_module: nn.Module, _keys: object) -> None:
    pass


class Rich(nn.Module):
    """Ties, attributes that the forward assigns, hooks, notes and dropout."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.drop = nn.Dropout(0.5)
        self.mix = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4).eval()
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.emb.weight
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
        self.calls: list[int] = []
        self.cache: dict[str, Any] = {"seen": {"n": 0}}
        self.last: Any = None
        self.register_forward_pre_hook(lambda _module, _args: None)
        self.emb.register_forward_hook(lambda _module, _args, _out: None)
        self.register_load_state_dict_post_hook(_ignore)
        self.emb.weight.grad = torch.ones(7, 4)
        self.emb.weight.note = "kept"  # pyright: ignore[reportAttributeAccessIssue]
        self.head.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        self.cache["seen"]["n"] += 1
        hidden = self.mix(self.drop(self.emb(tokens)) * self.scale)
        self.last = hidden
        random.random()
        np.random.rand()  # noqa: NPY002
        return self.head(self.norm(hidden.transpose(1, 2)).transpose(1, 2))


class Branching(Rich):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result = super().forward(tokens)
        return result + 1 if result.sum() > 0 else result


class Raising(Rich):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.last = super().forward(tokens)
        self.extra = nn.Linear(2, 2)
        self.count = self.count + 1
        raise RuntimeError("no")


class Mutating(Rich):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return super().forward(tokens) + self.count


_DYNAMIC: dict[str, Any] = {"tokens": {0: "batch", 1: "length"}}
_CASES: dict[str, tuple[type[Rich], dict[str, Any] | None, bool]] = {
    "success": (Rich, None, True),
    "dynamic": (Rich, _DYNAMIC, True),
    "mutated buffer": (Mutating, None, True),
    "control flow": (Branching, None, False),
    "raising": (Raising, None, False),
    "wrong shapes": (Rich, {"nothing": {0: "batch"}}, False),
    "wrong axis": (Rich, {"tokens": {5: "batch"}}, False),
}


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def _of_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (
        id(tensor),
        type(tensor),
        tensor.data_ptr(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.requires_grad,
        tensor.grad_fn,
        tensor._version,  # pyright: ignore[reportPrivateUsage]
        None if tensor.grad is None else (id(tensor.grad), _bits(tensor.grad)),
        {name: repr(value) for name, value in vars(tensor).items()},
        _bits(tensor),
    )


def _of_value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _of_tensor(value)
    if isinstance(value, dict):
        return id(value), [(key, _of_value(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return id(value), [_of_value(each) for each in value]
    return id(value), repr(value) if isinstance(value, str | int | float | set) else None


def _of_module(module: nn.Module) -> dict[str, Any]:
    """Return every attribute of every module: tensors, hooks, flags and containers among them."""
    return {
        f"{path}:{name}": _of_value(value)
        for path, each in module.named_modules(remove_duplicate=False)
        for name, value in {**vars(each), "class": type(each)}.items()
    }


def _of_process() -> dict[str, Any]:
    loggers = {
        name: (each.level, each.disabled, each.propagate, [*each.handlers], [*each.filters])
        for name, each in logging.root.manager.loggerDict.items()
        if isinstance(each, logging.Logger)
    }
    numpy = np.random.get_state()  # noqa: NPY002
    return {
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "numpy generator": (numpy[0], numpy[1].tobytes(), *numpy[2:]),  # pyright: ignore
        "random": random.getstate(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "attention": (
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        ),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),  # pyright: ignore
        "function modes": _get_current_function_mode_stack(),
        "dynamo": torch._dynamo.config.fake_tensor_cache_enabled,  # pyright: ignore
        "exporting": (torch.compiler.is_exporting(), torch.onnx.is_in_onnx_export()),
        "forwards": [each.forward for each in (nn.LSTM, nn.GRU, nn.RNN, nn.Linear)],
        "decompositions": torch.export.ExportedProgram.run_decompositions,
        "calls": (nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__),
        "warnings": ([*warnings.filters], warnings.showwarning),
        "loggers": loggers,
        "root logger": (logging.root.level, logging.root.disabled, [*logging.root.handlers]),
        "disabled": logging.root.manager.disable,
        "streams": (sys.stdout, sys.stderr),
        "excepthook": (sys.excepthook, threading.excepthook),
    }


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    names = before.keys() | after.keys()
    return {name for name in names if before.get(name, ()) != after.get(name, ())}


@pytest.fixture(autouse=True, scope="module")
def _exported_once() -> None:
    """Let torch import what it imports lazily, whose loggers and state are its own."""
    tokens = torch.zeros(2, 3, dtype=torch.long)
    from_torch(Rich(), tokens)
    with pytest.raises(ExportError):
        from_torch(Branching(), tokens)


_STATES: dict[str, Callable[[], Any]] = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize(
    ("state", "case"),
    [*(("plain", case) for case in _CASES)]
    + [(state, case) for state in ("no_grad", "autocast") for case in ("success", "raising")],
)
def test_nothing_is_changed(state: str, case: str) -> None:
    kind, shapes, works = _CASES[case]
    with _STATES[state]():
        module = kind()
        tokens = torch.randint(0, 7, (2, 3))
        before = _of_process(), _of_module(module), _of_tensor(tokens)
        with contextlib.nullcontext() if works else pytest.raises(ExportError):
            from_torch(module, (tokens,), dynamic_shapes=shapes)
        assert _changed(before[0], _of_process()) == set()
        assert _changed(before[1], _of_module(module)) == set()
        assert _of_tensor(tokens) == before[2]


def test_example_inputs_of_every_kind_are_kept() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, many: list[torch.Tensor], *, y: torch.Tensor):
            return x + many[0] + many[1] + y

    x = torch.ones(2, 3, requires_grad=True)
    x.grad = torch.ones(2, 3)
    y = torch.ones(2, 3)
    y.note = "kept"  # pyright: ignore[reportAttributeAccessIssue]
    args, kwargs = (x, [x, y]), {"y": y}
    before = _of_value(args), _of_value(kwargs)
    batch: dict[int, str] = {0: "batch"}
    shapes: dict[str, Any] = {"x": batch, "many": [batch, batch], "y": batch}
    from_torch(Sum(), args, kwargs, dynamic_shapes=shapes)
    assert (_of_value(args), _of_value(kwargs)) == before
    assert shapes == {"x": {0: "batch"}, "many": [{0: "batch"}] * 2, "y": {0: "batch"}}


@pytest.mark.parametrize("exports", [True, False])
@pytest.mark.slow
def test_after_a_plain_export_the_model_is_the_same(exports: bool) -> None:
    """What torch's own export leaves on the module and in its caches changes no import."""
    module, tokens = Rich(), torch.randint(0, 7, (2, 3))
    first = from_torch(module, (tokens,), dynamic_shapes=_DYNAMIC)
    other = module if exports else Branching()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.suppress(torch.onnx.errors.OnnxExporterError):
            torch.onnx.export(other, (tokens,), dynamo=True, verbose=False)
    before = _of_process(), _of_module(module), _of_tensor(tokens)
    second = from_torch(module, (tokens,), dynamic_shapes=_DYNAMIC)
    assert _changed(before[0], _of_process()) == set()
    assert _changed(before[1], _of_module(module)) == set()
    assert _of_tensor(tokens) == before[2]
    assert str(second.ties) == str(first.ties)
    nodes, expected = ([node.op_type for node in each.ir.graph] for each in (second, first))
    assert nodes == expected
    sizes, expected = ([str(x.shape) for x in each.ir.graph.inputs] for each in (second, first))
    assert sizes == expected


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.slow
def test_two_threads_at_once(shared: bool) -> None:
    module, tokens = Rich(), torch.randint(0, 7, (2, 3))
    modules = [module, module] if shared else [module, Branching()]
    expected = from_torch(module, (tokens,))
    before = _of_process(), [_of_module(each) for each in modules], _of_tensor(tokens)
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        try:
            found[index] = str(from_torch(modules[index], (tokens,)).ties)
        except ExportError as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == str(expected.ties)
    assert found[1] == str(expected.ties) if shared else isinstance(found[1], ExportError)
    assert _changed(before[0], _of_process()) == set()
    for each, was in zip(modules, before[1], strict=True):
        assert _changed(was, _of_module(each)) == set()
    assert _of_tensor(tokens) == before[2]
