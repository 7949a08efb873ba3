"""A weight that is computed from stored tensors has the shape that the runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import tieops

WAYS = [
    "r = ReduceSum<keepdims=0>(w, one)",
    "r = ReduceL2<keepdims=1>(w, zero)",
    "a = Reshape(w, sizes) r = ReduceMax<keepdims=0>(a, one)",
    "t = Transpose<perm=[0, 2, 1]>(w) u = MatMul(w, t) r = ReduceMean<keepdims=0>(u, zero)",
    "r = Tile(u8, two)",
    "s = Shape(w) r0 = Expand(u8, s) r = ReduceSum<keepdims=0>(r0, zero)",
    "a = Concat<axis=1>(u8, u8) r = Tanh(a)",
    "a = ReduceSum<keepdims=0>(w, zero) r = Sqrt(a)",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("opset", [18, 21])
def test_the_shape_is_computed_and_not_guessed(way: str, opset: int) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "w": rng.standard_normal((8, 8, 5)).astype(np.float32),
        "u8": rng.standard_normal((8, 5)).astype(np.float32),
        "sizes": np.array([8, 4, 10]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([1, 2]),
    }
    text = f'<ir_version: 9, opset_import: ["": {opset}]> g (float[n, 8] x) => (y) '
    proto = onnx.parser.parse_model(f"{text} {{ {way} y = MatMul(x, r) }}")
    used = {name for node in proto.graph.node for name in node.input}
    for name in used & tensors.keys():
        proto.graph.initializer.append(numpy_helper.from_array(tensors[name], name))
    shapes = {slot.view.shape for slot in tieops.from_onnx(proto).slots if slot.view.computed}
    del proto.graph.output[:]
    proto.graph.output.add(name="r")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = np.asarray(session.run(["r"], {"x": np.zeros((1, 8), np.float32)})[0])
    assert shapes == {found.shape}
