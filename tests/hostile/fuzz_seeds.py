"""Small models with something of everything, for the mutator to start from."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.hostile.models import external, model, small, tensor

__all__ = ["seeds"]


def seeds() -> list[onnx.ModelProto]:
    """Return the models; ``w.bin`` of 48 bytes is to lie beside those with external data."""
    outside = small()
    outside.graph.initializer[0].CopyFrom(
        external({"location": "w.bin", "offset": "0", "length": "48"})
    )
    return [
        small(),
        outside,
        _views(),
        _control(),
        _functions(),
        _recurrent(),
        _kinds(),
        _metadata(),
    ]


def _with(proto: onnx.ModelProto, **arrays: np.ndarray) -> onnx.ModelProto:
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return proto


def _floats(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3


def _views() -> onnx.ModelProto:
    """Tied and duplicate weights, read through views."""
    text = """(int64[n] ids, float[n, 4] x) => (float[n, 6] y, float[n, 6] z, float[n, 2] u) {
        e = Gather<axis = 0>(table, ids)  t = Transpose<perm = [1, 0]>(table)  y = MatMul(e, t)
        a = Add(x, e)  z = Gemm<transB = 1>(a, copy, bias)
        s = Slice(table, begin, end, axes)  r = Reshape(s, shape)  q = Squeeze(r, axes)
        k = Unsqueeze(q, axes)  f = Reshape(k, two)  u = MatMul(x, f)
        c = Concat<axis = 0>(s, s)  g = Cast<to = 1>(c)  h = MatMul(x, g) }"""
    ints = {"begin": [0], "end": [2], "axes": [0], "shape": [1, 8], "two": [4, 2]}
    return _with(model(text), table=_floats(6, 4), copy=_floats(6, 4), bias=_floats(6),
                 **{name: np.array(value) for name, value in ints.items()})  # fmt: skip


def _control() -> onnx.ModelProto:
    text = """(bool b, float[2, 3] x, int64 n) => (float[2, 4] y, float[2, 4] z) {
        y = If(b) <then_branch = t () => (float[2, 4] p) { p = MatMul(x, w) },
                   else_branch = e () => (float[2, 4] q) <float[3, 4] v = {1, 2, 3, 4, 5, 6, 7, 8,
                   9, 10, 11, 12}> { q = MatMul(x, v) }>
        z = Loop(n, b, y) <body = o (int64 i, bool c, float[2, 4] s) => (bool d, float[2, 4] r) {
            d = Identity(c)  m = MatMul(x, w)  r = Add(s, m) }> }"""
    return _with(model(text), w=_floats(3, 4))


def _functions() -> onnx.ModelProto:
    proto = model(
        "(float[2, 3] x) => (float[2, 4] y, float[2, 4] z)"
        "{ y = local.linear<alpha = 2.0>(x, w)  z = local.twice(x, w) }",
        """<opset_import: ["" : 20], domain: "local"> linear <alpha> (a, b) => (c) {
            t = Transpose<perm = [1, 0]>(b)  u = Transpose<perm = [1, 0]>(t)
            c = Gemm<alpha: float = @alpha>(a, u) }
        <opset_import: ["" : 20, "local" : 1], domain: "local"> twice (a, b) => (c) {
            d = local.linear<alpha = 1.0>(a, b)  e = local.linear<alpha = 1.0>(a, b)
            c = Add(d, e) }""",
        '"" : 20, "local" : 1',
    )
    return _with(proto, w=_floats(3, 4))


def _recurrent() -> onnx.ModelProto:
    text = """(float[s, b, 2] x) => (float[s, d, b, 3] y, float[s, d, b, 3] z) {
        y = LSTM<hidden_size = 3>(x, w, r, bias)  z = GRU<hidden_size = 3>(x, gw, gr) }"""
    return _with(model(text), w=_floats(1, 12, 2), r=_floats(1, 12, 3), bias=_floats(1, 24),
                 gw=_floats(1, 9, 2), gr=_floats(1, 9, 3))  # fmt: skip


def _kinds() -> onnx.ModelProto:
    """Data types, ways to store them, and quantized weights."""
    text = """(float[2, 4] x) => (float[2, 3] y, float[2, 3] z) {
        d = DequantizeLinear<axis = 1>(q, scale, zero)  y = MatMul(x, d)
        h = Cast<to = 1>(half)  z = MatMul(x, h)
        c = Constant<value = float[4] {1, 2, 3, 4}>()  e = Add(x, c)
        i = Constant<value_ints = [1, 2]>()  j = Identity(four)  k = Identity(texts) }"""
    proto = _with(model(text, opsets='"" : 21'), q=np.ones((4, 3), np.int8),
                  scale=np.ones(3, np.float32), zero=np.zeros(3, np.int8),
                  half=np.ones((4, 3), np.float16))  # fmt: skip
    four = helper.make_tensor("four", onnx.TensorProto.INT4, [3], [1, 2, 3])
    texts = helper.make_tensor("texts", onnx.TensorProto.STRING, [2], [b"a", b"b"])
    proto.graph.initializer.extend([four, texts, tensor("list", (2,), float_data=[1.0, 2.0])])
    return proto


def _metadata() -> onnx.ModelProto:
    """What exporters and tieops leave behind the values."""
    proto = small()
    for props in (proto.metadata_props, proto.graph.initializer[0].metadata_props,
                  proto.graph.node[0].metadata_props):  # fmt: skip
        for key, value in {
            "tieops.names": '["w", "fc.weight"]',
            "tieops.evidence": "object",
            "tieops.lr_factor": "10",
            "pkg.torch.onnx.name_scopes": "['', 'fc', 'linear']",
            "pkg.torch.onnx.class_hierarchy": "['Net', 'torch.nn.Linear', 'aten.linear']",
        }.items():
            props.add(key=key, value=value)
    proto.graph.value_info.append(helper.make_tensor_value_info("w", 1, [3, 4]))
    return proto
