"""Small tied graphs with weights of any size and dtype, without an exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper, parser

import tieops
from tieops.model import TiedModel

__all__ = ["DTYPES", "head", "recurrent", "stored", "weight", "written"]

DTYPES: dict[str, Any] = {
    "float": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def stored(text: str, **tensors: np.ndarray[Any, Any]) -> TiedModel:
    """Return a model of ONNX text with these tensors stored in it."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g {text}')
    proto.graph.initializer.extend(_proto(array, name) for name, array in tensors.items())
    return tieops.from_onnx(proto)


def _proto(array: np.ndarray[Any, Any], name: str) -> onnx.TensorProto:
    if array.dtype != DTYPES["bfloat16"]:
        return numpy_helper.from_array(array, name)
    kind = onnx.TensorProto.BFLOAT16
    return onnx.helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def weight(*shape: int, dtype: str = "float", seed: int = 0) -> np.ndarray[Any, Any]:
    """Return random numbers of a dtype."""
    found = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.05)
    return found.astype(DTYPES[dtype])


def head(vocab: int, width: int, dtype: str = "float", seed: int = 0) -> TiedModel:
    """Return an embedding, a square layer of its own, and the tied output projection."""
    return stored(
        f"""(int64[b, s] ids) => ({dtype}[b, s, {vocab}] y) {{
          e = Gather(table, ids)  l = MatMul(e, w)  h = Tanh(l)
          t = Transpose<perm = [1, 0]>(table)  y = MatMul(h, t) }}""",
        table=weight(vocab, width, dtype=dtype),
        w=weight(width, width, dtype=dtype, seed=seed + 1),
    )


def recurrent(vocab: int, width: int) -> TiedModel:
    """Return an embedding, an LSTM, and the tied output projection."""
    return stored(
        f"""(int64[s, b] ids) => (float[s, b, {vocab}] y) {{
          e = Gather(table, ids)  o = LSTM<hidden_size = {width}>(e, w, r)
          axes = Constant<value_ints = [1]>()  h = Squeeze(o, axes)
          t = Transpose<perm = [1, 0]>(table)  y = MatMul(h, t) }}""",
        table=weight(vocab, width),
        w=weight(1, 4 * width, width, seed=1),
        r=weight(1, 4 * width, width, seed=2),
    )


def written(model: TiedModel, path: Path) -> tuple[Path, int]:
    """Write a model with a data file; return the path, and its unique bytes."""
    return tieops.to_onnx(model, path, external_data=True).path, model.ledger.stored_bytes
