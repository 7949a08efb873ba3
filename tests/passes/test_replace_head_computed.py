"""Heads whose weight is computed before it is used: the shape that arrives decides, not a guess."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import tieops
from tieops.errors import PreconditionError


def load(body: str, rows: int, opsets: str = '"": 20') -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: [{opsets}]>"
        f" g (float[2,{rows}] x) => (float[2,?] y) {{ {body} [fc] y = MatMul(x, t) }}"
    )
    tensors = {
        "w": np.arange(24, dtype=np.float32).reshape(4, 6),
        "times": np.array([2, 1]),
        "pads": np.array([1, 0, 0, 0]),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return proto


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ("t = Tile(w, times)", 8),
        ("t = Pad(w, pads)", 5),
        ("n = ReduceL2(w) t = Div(w, n)", 4),
        ("d = Concat<axis = 0>(w, w) t = Relu(d)", 8),
    ],
)
def test_the_new_weight_fits_what_the_layer_reads(body: str, rows: int) -> None:
    small = tieops.replace_head(tieops.from_onnx(load(body, rows)), "fc", out_features=3)
    session = ort.InferenceSession(onnx_ir.to_proto(small.ir).SerializeToString())
    (y,) = session.run(None, {"x": np.ones((2, rows), np.float32)})
    assert y.shape == (2, 3)


def test_a_weight_of_a_shape_that_nobody_knows_is_refused() -> None:
    proto = load("t = my.Widen(w)", 8, '"": 20, "my": 1')
    with pytest.raises(PreconditionError, match="fc is computed, and its shape is not known"):
        tieops.replace_head(tieops.from_onnx(proto), "fc", out_features=3)
