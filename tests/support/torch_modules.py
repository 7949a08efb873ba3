"""Real PyTorch modules: architectures of transformers, the seed's networks, trained weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import tieops
from fixtures.torch_models import TiedAutoencoder, TiedLanguageModel, build
from tests.support.wheels import fetch

UNDER, OVER = (150, 32), (2000, 32)
"""(vocab, width): under and over the 8,192 elements from which torch's optimizer holds off."""


CALLED_12_TIMES = 16
"""Learnables of the one layer that ALBERT calls in the place of twelve."""


@dataclass(frozen=True)
class Wanted:
    """One model, one call of it, and what it shares without having two names for it."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    atol: float = 1e-5
    shared: dict[str, int] = field(default_factory=dict)
    """Tensors with one name that several slots read: how many slots."""


def _architecture(name: str, vocab: int, width: int) -> Wanted:
    case = build(name, vocab, width)
    shared = {}
    if name == "autoencoder":
        shared = {f"encoder.{index}.weight": 2 for index in range(3)}
    elif name == "albert":
        shared = _albert_layer(case.module)
    return Wanted(case.module, (), case.inputs, case.dynamic_shapes, shared=shared)


def _albert_layer(module: torch.nn.Module) -> dict[str, int]:
    names = [name for name, _ in module.named_parameters() if ".albert_layers." in name]
    assert len(names) == CALLED_12_TIMES
    return dict.fromkeys(names, 12)


def _seed_language_model() -> Wanted:
    torch.manual_seed(0)
    tokens = torch.arange(10).reshape(2, 5)
    dims = {"x": {0: "batch", 1: "sequence"}}
    return Wanted(TiedLanguageModel(1000, 300).eval(), (tokens,), {}, dims)


def _seed_autoencoder() -> Wanted:
    torch.manual_seed(0)
    shared = {f"encoder.{index}.weight": 2 for index in range(3)}
    module = TiedAutoencoder((784, 784, 392, 196)).eval()
    return Wanted(module, (torch.rand(2, 784),), {}, {"images": {0: "batch"}}, shared=shared)


def _transformer() -> Wanted:
    torch.manual_seed(0)
    module = torch.nn.Transformer(16, 2, 2, 2, 32, batch_first=True).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    dims = {"src": {0: "batch", 1: "source"}, "tgt": {0: "batch", 1: "target"}}
    return Wanted(module, (torch.rand(2, 5, 16), torch.rand(2, 7, 16)), {}, dims)


def _rxnmapper(config: pytest.Config) -> Wanted:
    from transformers import AlbertConfig, AlbertForMaskedLM

    folder = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    sizes = json.loads(fetch("rxnmapper", f"{folder}/config.json", config).read_text("utf-8"))
    weights = fetch("rxnmapper", f"{folder}/pytorch_model.bin", config)
    module = AlbertForMaskedLM(AlbertConfig(**sizes)).eval()
    state = torch.load(weights, weights_only=True, map_location="cpu")
    missing, _ = module.load_state_dict(state, strict=False)
    assert missing == []
    tokens = torch.arange(18).reshape(2, 9)
    dims = {"input_ids": {0: "batch", 1: "sequence"}}
    # Trained logits reach -19, and many are near 0: they are rounded as the large ones are.
    return Wanted(module, (), {"input_ids": tokens}, dims, atol=1e-4, shared=_albert_layer(module))


NAMES = ("gpt2", "qwen2", "llama", "llama_untied", "bert", "albert", "t5", "bart")


CASES: dict[str, Callable[[pytest.Config], Wanted]] = {
    f"{name}-{vocab}": lambda _, name=name, size=(vocab, width): _architecture(name, *size)
    for name in (*NAMES, "lstm", "autoencoder")
    for vocab, width in (UNDER, OVER)
}


CASES |= {
    "seed language model": lambda _: _seed_language_model(),
    "seed autoencoder": lambda _: _seed_autoencoder(),
    "nn.Transformer": lambda _: _transformer(),
    "rxnmapper": _rxnmapper,
}


def tie_names(model: tieops.TiedModel) -> set[frozenset[str]]:
    return {frozenset(tie.names) for tie in model.ties if len(tie.names) > 1}
