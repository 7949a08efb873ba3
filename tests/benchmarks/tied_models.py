"""Tied models of real sizes, and the files that different tools make of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from torch import Tensor, nn

import tieops
from fixtures.torch_models import Case, TiedAutoencoder
from tieops.model import TiedModel

__all__ = ["MODELS", "Contender", "contenders", "merged_decoder"]

BEST = {
    "session.disable_prepacking": "1",
    "optimization.constant_folding_max_output_size_in_bytes": "1048576",
}
"""ONNX Runtime's documented settings that avoid copies, for the whole model."""


class Head(nn.Module):
    """Embedding, a square layer, Tanh, and a head that shares the embedding's weight."""

    def __init__(self, vocab: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, width)
        self.mix = nn.Linear(width, width)
        self.fc = nn.Linear(width, vocab, bias=bias)
        self.fc.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.mix(self.emb(ids))))


def _head(vocab: int, width: int, *, bias: bool) -> Case:
    ids = torch.arange(6).reshape(2, 3)
    return Case(Head(vocab, width, bias=bias), {"ids": ids}, {"ids": {0: "batch", 1: "sequence"}})


def _autoencoder() -> Case:
    module = TiedAutoencoder((8192, 4096, 2048))
    return Case(module, {"images": torch.rand(2, 8192)}, {"images": {0: "batch"}})


def _gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=512, n_layer=6, n_head=8, n_positions=256, use_cache=False, vocab_size=50_257
    )
    ids = torch.arange(18).reshape(2, 9)
    shapes = {"input_ids": {0: "batch", 1: "sequence"}}
    return Case(GPT2LMHeadModel(config), {"input_ids": ids}, shapes)


def _t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32_128, d_model=512, num_layers=3, use_cache=False)
    inputs = {
        "input_ids": torch.arange(18).reshape(2, 9),
        "decoder_input_ids": torch.arange(14).reshape(2, 7),
    }
    shapes = {
        "input_ids": {0: "batch", 1: "sequence"},
        "decoder_input_ids": {0: "batch", 1: "target"},
    }
    return Case(T5ForConditionalGeneration(config), inputs, shapes)


def merged_decoder(vocab: int = 32_000, width: int = 1024) -> TiedModel:
    """Return a decoder with and without a past in one graph: an If with the head in each branch."""
    graph = onnx_ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 20]>
    g (int64[b, s] ids, bool past) => (float[b, s, {vocab}] y) <float[1] emb = {{0}}> {{
      e = Gather(emb, ids)
      y = If (past) <
        then_branch = p () => (float[b, s, {vocab}] y1) {{
          t1 = Transpose <perm = [1, 0]> (emb)  y1 = MatMul(e, t1) }},
        else_branch = q () => (float[b, s, {vocab}] y2) {{
          n = Tanh(e)  t2 = Transpose <perm = [1, 0]> (emb)  y2 = MatMul(n, t2) }}> }}""")
    value = graph.graph.initializers["emb"]
    weight = np.random.default_rng(0).standard_normal((vocab, width), np.float32)
    value.const_value = onnx_ir.tensor(weight, name="emb")
    value.shape = onnx_ir.Shape((vocab, width))
    return TiedModel(graph)


MODELS: dict[str, Callable[[], Case]] = {
    "head 128k x 512": lambda: _head(128_000, 512, bias=False),
    "head 32k x 1024, bias": lambda: _head(32_000, 1024, bias=True),
    "autoencoder 8192-4096-2048": _autoencoder,
    "GPT-2, 6 layers": _gpt2,
    "T5, 3 + 3 layers": _t5,
}
"""Modules by name; all tie weights."""


@dataclass(frozen=True)
class Contender:
    """A file and how it is opened.

    Args:
        title: What the tables call it.
        path: The file.
        memory: The mode of ``tieops.session``; "default" is ONNX Runtime's own way.
        options: Session configuration entries.
    """

    title: str
    path: Path
    memory: str = "default"
    options: tuple[tuple[str, str], ...] = ()


def contenders(made: Case | TiedModel, folder: Path) -> tuple[TiedModel, list[Contender]]:
    """Write a module, or a model, as tieops and its peers write it.

    Returns:
        The tied model, and the files with the ways to open them, tieops' own first.
    """
    if isinstance(made, TiedModel):
        model = made
    else:
        made.module.eval()
        shapes = made.dynamic_shapes
        model = tieops.from_torch(made.module, (), made.inputs, dynamic_shapes=shapes)
    files = {
        "tieops": tieops.to_onnx(model, folder / "tied.onnx", external_data=True).path,
        "Transpose + MatMul": tieops.to_onnx(
            model, folder / "portable.onnx", external_data=True, tie_form="portable"
        ).path,
        "untied": tieops.to_onnx(
            tieops.untie(model), folder / "untied.onnx", external_data=True
        ).path,
    }
    for title, write in {"dynamo exporter": _dynamo, "old exporter": _old}.items():
        path = folder / f"{title.split()[0]}.onnx"
        if isinstance(made, Case) and (path := write(made, path)):
            files[title] = path
    best = tuple(BEST.items())
    found = [Contender(f"tieops, {mode}", files["tieops"], mode) for mode in ("packed", "mapped")]
    found.append(Contender("tieops' file (Gemm, Olive's form)", files.pop("tieops")))
    for title, path in files.items():
        found += [Contender(title, path), Contender(f"{title}, no packing", path, options=best)]
    return model, found


def _dynamo(case: Case, path: Path) -> Path:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        program = torch.onnx.export(
            case.module, (), kwargs=case.inputs, dynamic_shapes=case.dynamic_shapes, dynamo=True,
            verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(path, external_data=True)
    return path


def _old(case: Case, path: Path) -> Path | None:
    """Export through TorchScript, which fails on decoder-only models of transformers 5."""
    names = list(case.inputs)
    inline = path.with_suffix(".inline.onnx")
    # Where it fails it prints the whole graph.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                case.module, (case.inputs,) if len(names) > 1 else tuple(case.inputs.values()),
                inline, input_names=names, dynamic_axes=case.dynamic_shapes, dynamo=False,
            )  # fmt: skip
        except RuntimeError:
            return None
    onnx.save(
        onnx.load(inline), path, save_as_external_data=True, location=f"{path.name}.data",
        size_threshold=1024,
    )  # fmt: skip
    inline.unlink()
    return path
