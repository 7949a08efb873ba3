"""What ONNX Runtime's quantizer does to a shared weight: reproduced, warned of, and avoided."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnxruntime.quantization import quantize_dynamic
from typer.testing import CliRunner

import tieops
from tieops.cli import app
from tieops.errors import UnsupportedModelError
from tieops.model import TiedModel


def model_of(text: str, **weights: np.ndarray) -> TiedModel:
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> ' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return tieops.from_onnx(proto)


def head(vocab: int, width: int) -> TiedModel:
    rng = np.random.default_rng(0)
    return model_of(
        f"""g (int64[b, s] x) => (float[b, s, {vocab}] y) {{
            e = Gather(w, x)  h = MatMul(e, v)
            t = Transpose<perm = [1, 0]>(w)  y = MatMul(h, t) }}""",
        w=rng.standard_normal((vocab, width), np.float32),
        v=rng.standard_normal((width, width), np.float32) / 8,
    )


def quantized(model: TiedModel, folder: Path, **form: str) -> Path:
    path = tieops.to_onnx(model, folder / "float.onnx", **form).path
    logging.disable(logging.WARNING)  # it recommends a preprocessing step
    try:
        quantize_dynamic(str(path), str(folder / "quantized.onnx"))
    finally:
        logging.disable(logging.NOTSET)
    return folder / "quantized.onnx"


def correlation(path: Path, model: TiedModel, vocab: int) -> float:
    ids = np.random.default_rng(1).integers(0, vocab, (4, 7))
    found, wanted = (tieops.session(each, "cpu").run({"x": ids})["y"] for each in (path, model))
    return float(np.corrcoef(found.ravel(), wanted.ravel())[0, 1])


def test_a_square_tied_weight_is_broken_silently_and_inspect_says_so_before(tmp_path):
    model = head(64, 64)
    assert abs(correlation(quantized(model, tmp_path), model, 64)) < 0.1
    written = tieops.from_onnx(tmp_path / "float.onnx")
    (warning,) = written.warnings
    assert warning.startswith("quantize_dynamic of ONNX Runtime would transpose w for ")
    assert 'fix it with tieops.untie(model, "' in warning
    assert "quantize_dynamic of ONNX Runtime would transpose w for " in str(written)


def test_a_tied_weight_that_is_not_square_opens_no_more(tmp_path):
    path = quantized(head(200, 32), tmp_path)
    with pytest.raises(UnsupportedModelError):
        tieops.session(path, "cpu")
    assert len(tieops.from_onnx(tmp_path / "float.onnx").warnings) == 1


def test_untied_first_it_works(tmp_path):
    model = head(200, 32)
    file = tieops.to_onnx(model, tmp_path / "tied.onnx").path
    free = tieops.untie(tieops.from_onnx(file))
    assert list(free.warnings) == []
    assert correlation(quantized(free, tmp_path), model, 200) > 0.999


def test_the_portable_form_is_quantized_once_and_stays_tied(tmp_path):
    model = head(200, 32)
    path = quantized(model, tmp_path, tie_form="portable")
    assert correlation(path, model, 200) > 0.999
    assert list(tieops.from_onnx(tmp_path / "float.onnx").warnings) == []
    large = [t.name for t in onnx.load(path).graph.initializer if np.prod(t.dims) == 200 * 32]
    assert large == ["w_quantized"]


GEMM = "g (float[b, 8] x) => (float[b, 8] y, float[b, 8] z) "


@pytest.mark.parametrize(
    ("readers", "count"),
    [
        ("{ y = Gemm<transB = 1>(x, w)  z = Gemm<transB = 1>(x, w) }", 1),
        ("{ y = Gemm<transB = 1>(x, w)  z = MatMul(x, w) }", 1),
        ("{ y = Gemm(x, w)  z = MatMul(x, w) }", 0),
        ("{ y = Gemm<transB = 1, alpha = 0.5>(x, w)  z = MatMul(x, w) }", 0),
        ("{ y = Gemm<transB = 1>(x, w)  z = Neg(y) }", 0),
        ("{ t = Transpose<perm = [1, 0]>(w)  y = Gemm<transB = 1>(x, t)  z = MatMul(x, w) }", 0),
    ],
)
def test_only_what_is_transposed_in_place_is_warned_of(readers, count, tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    model = model_of(GEMM + readers, w=weight)
    assert len(model.warnings) == count
    path = quantized(model, tmp_path, tie_form="portable")
    feeds = {"x": np.random.default_rng(1).standard_normal((64, 8), np.float32)}
    found, wanted = (tieops.session(each, "cpu").run(feeds) for each in (path, model))
    wrong = [
        name
        for name in wanted
        if np.corrcoef(found[name].ravel(), wanted[name].ravel())[0, 1] < 0.99
    ]
    assert bool(wrong) == bool(count)


def test_inspect_warns_in_text_and_in_json(tmp_path):
    path = tieops.to_onnx(head(64, 64), tmp_path / "tied.onnx").path
    text = CliRunner().invoke(app, ["inspect", str(path)]).stdout
    assert "quantize_dynamic of ONNX Runtime would transpose w" in text
    data = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert len(data["warnings"]) == 1
