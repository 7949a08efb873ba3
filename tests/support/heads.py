"""Embeddings with heads: tied, copied, in two models, and heads with something behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import numpy_helper, parser

import tieops
from tests.support.graphs import made, stored, weight
from tieops.model import TiedModel


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


RNG = np.random.default_rng(0)


def tied_head(
    vocab: int = 200,
    width: int = 16,
    *,
    shape: str = "n, s",
    bias: bool = False,
    dtype: Any = np.float32,
) -> tieops.TiedModel:
    """Return Gather(w) -> MatMul(Transpose(w)) [-> Add(b)]."""
    kind = {np.float32: "float", np.float16: "float16", np.float64: "double"}[dtype]
    tail = "y = MatMul(h, t)" if not bias else "m = MatMul(h, t)  y = Add(m, b)"
    proto = parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[{shape}] x) => ({kind}[{shape}, {vocab}] y) {{
            h = Gather(w, x)  t = Transpose<perm = [1, 0]>(w)  {tail} }}""")
    weight = RNG.standard_normal((vocab, width)).astype(dtype)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    if bias:
        values = RNG.standard_normal(vocab).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(values, "b"))
    return tieops.from_onnx(proto)


def weight_of(model: tieops.TiedModel, name: str = "w") -> np.ndarray:
    return model.ir.graph.initializers[name].const_value.numpy()


def ids(*shape: int, vocab: int = 200) -> np.ndarray:
    return RNG.integers(0, vocab, shape)


def head_read_by(vocab: int, width: int, form: str = "MatMul(h, t)") -> TiedModel:
    """Embedding, a small layer of its own, and a head that reads the embedding transposed."""
    graph = onnx_ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 20]>
    g (int64[b, s] ids) => (float[b, s, {vocab}] y) <float[1] emb = {{0}}, float[1] w = {{0}}>
    {{ e = Gather(emb, ids)  l = MatMul(e, w)  h = Tanh(l)
       t = Transpose<perm = [1, 0]>(emb)  y = {form} }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("emb", (vocab, width)), ("w", (width, width))):
        value = graph.graph.initializers[name]
        array = rng.standard_normal(shape, np.float32) * np.float32(0.05)
        value.const_value = onnx_ir.tensor(array, name=name)
        value.shape = onnx_ir.Shape(shape)
    return TiedModel(graph)


TEXT = """g (int64[b] ids) => (float[b, 60] y) {
    e = Gather(emb, ids)  r = Relu(e)  z = MatMul(r, head)  y = Add(z, bias) }"""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def model_of(text: str = TEXT, **weights: np.ndarray) -> TiedModel:
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> ' + text)
    emb = noise(60, 8)
    stored = {"emb": emb, "head": emb.T.copy(), "bias": noise(60)} | weights
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in stored.items())
    return tieops.from_onnx(proto)


ENCODER = "{ e = Gather(table, ids)  l = MatMul(e, w)  y = Tanh(l) }"


DECODER = """{ e = Gather(table, ids)  a = Add(e, memory)  l = MatMul(a, w)  h = Tanh(l)
    t = Transpose<perm = [1, 0]>(table)  y = MatMul(h, t) }"""


def encoder(table: np.ndarray[Any, Any], name: str = "table", opset: int = 20) -> TiedModel:
    width = table.shape[1]
    text = f"(int64[b, s] ids) => (float[b, s, {width}] y) {ENCODER.replace('table', name)}"
    return stored(text, opset, **{name: table, "w": weight(width, width, seed=1)})


def decoder(table: np.ndarray[Any, Any], name: str = "table", opset: int = 20) -> TiedModel:
    vocab, width = table.shape
    text = f"(int64[b, s] ids, float[b, s, {width}] memory) => (float[b, s, {vocab}] y) "
    text += DECODER.replace("table", name)
    return stored(text, opset, **{name: table, "w": weight(width, width, seed=2)})


LINEAR = "g (float[n,8] x) => (float[n,10] y) { y = MatMul(x, w) }"


def inferred(model: tieops.TiedModel) -> tieops.TiedModel:
    """Give every value its shape, as exporters do."""
    return tieops.from_onnx(onnx.shape_inference.infer_shapes(onnx_ir.to_proto(model.ir)))


def head_on(tail: str, outs: str = "float[n,10] y", **tensors: Any) -> tieops.TiedModel:
    """Return a model whose head's result ``k``, of 10 classes, goes through ``tail``."""
    text = f"g (float[n,8] x) => ({outs}) {{ h = MatMul(x, w)  k = Add(h, b)  {tail} }}"
    return inferred(made(text, w=(8, 10), b=(10,), **tensors))
