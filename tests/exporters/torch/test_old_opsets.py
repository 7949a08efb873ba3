"""Operators of old opsets in to_torch: as they were defined then, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tieops
from tests.support.model_facts import outputs
from tieops.errors import UnsupportedModelError

RNG = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def one(
    op_type: str, x: np.ndarray, *stored: np.ndarray, opset: int, outs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """Return a model of one node: its first input is the graph's, all others are stored."""
    names = [f"w{place}" for place in range(len(stored))]
    made = [f"y{place}" for place in range(outs)]
    node = helper.make_node(op_type, ["x", *names], made, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, None) for each in made],
        [numpy_helper.from_array(w, n) for w, n in zip(stored, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def computed(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    module = tieops.to_torch(tieops.from_onnx(proto)).eval()
    return module(torch.from_numpy(x)).detach().numpy()


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize(
    ("shape", "slope"),
    [
        ((2, 3, 4), (3,)),
        ((2, 3, 3), (3,)),
        ((2, 3, 4, 5), (3,)),
        ((2, 3), (3,)),
        ((2, 3, 4), (1,)),
        ((2, 3, 4), (3, 1)),
        ((3,), (3,)),
    ],
)
def test_prelu_before_opset_7_has_a_slope_for_each_channel(
    shape: tuple[int, ...], slope: tuple[int, ...], opset: int
) -> None:
    x, w = drawn(*shape), drawn(*slope)
    wide = w.reshape(-1, *(1,) * (len(shape) - 2)) if w.ndim == 1 and len(shape) > 1 else w
    found = computed(one("PRelu", x, w, opset=opset), x)
    assert np.allclose(found, np.where(x < 0, x * wide, x))
    after = one("PRelu", x, np.broadcast_to(wide, shape).copy(), opset=9)
    assert np.allclose(found, outputs(tieops.from_onnx(after), {"x": x})["y0"])


def test_prelu_from_opset_7_on_broadcasts_from_the_end() -> None:
    x, w = drawn(2, 3, 3), drawn(3)
    proto = one("PRelu", x, w, opset=7)
    assert np.allclose(computed(proto, x), outputs(tieops.from_onnx(proto), {"x": x})["y0"])
    assert not np.allclose(computed(proto, x), computed(one("PRelu", x, w, opset=6), x))


@pytest.mark.parametrize("shape", [(3, 4), (12,)])
def test_statistics_of_each_element(shape: tuple[int, ...]) -> None:
    x = drawn(2, 3, 4)
    stored = [drawn(*shape), drawn(*shape), drawn(*shape), np.abs(drawn(*shape))]
    found = computed(one("BatchNormalization", x, *stored, opset=7, spatial=0), x)
    weight, bias, mean, var = (each.reshape(3, 4) for each in stored)
    assert np.allclose(found, (x - mean) / np.sqrt(var + 1e-5) * weight + bias, atol=1e-5)


@pytest.mark.parametrize("opset", [1, 6])
def test_inference_that_an_attribute_asks_for(opset: int) -> None:
    x, stored = drawn(2, 3, 4), [drawn(3), drawn(3), drawn(3), np.abs(drawn(3))]
    legacy: dict[str, Any] = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {}
    old = one("BatchNormalization", x, *stored, opset=opset, is_test=1, **legacy)
    new = one("BatchNormalization", x, *stored, opset=9)
    wanted = outputs(tieops.from_onnx(new), {"x": x})["y0"]
    assert np.allclose(computed(old, x), wanted, atol=1e-5)
    legacy: dict[str, Any] = {"consumed_inputs": [0]} if opset == 1 else {}
    assert np.array_equal(computed(one("Dropout", x, opset=opset, is_test=1, **legacy), x), x)


@pytest.mark.parametrize("opset", [1, 6])
def test_a_bias_that_gemm_spreads(opset: int) -> None:
    x, w, b = drawn(2, 3), drawn(3, 4), drawn(4)
    assert np.allclose(computed(one("Gemm", x, w, b, opset=opset, broadcast=1), x), x @ w + b)


def test_concat_of_opset_1_has_a_default() -> None:
    x, w = drawn(2, 3), drawn(2, 1)
    found = computed(one("Concat", x, w, opset=1), x)
    assert np.array_equal(found, np.concatenate([x, w], axis=1))


REFUSED = {
    "a number of copies along one axis": ("Tile", [np.float32(2), np.float32(1)], {}, 1, 1),
    "a dtype by name": ("Cast", [], {"to": "DOUBLE"}, 1, 1),
    "an axis to begin at": ("Add", [drawn(3)], {"broadcast": 1, "axis": 1}, 6, 1),
    "statistics of the batch": (
        "BatchNormalization",
        [drawn(3), drawn(3), drawn(3), np.abs(drawn(3))],
        {},
        9,
        5,
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(case: tuple[str, list[Any], dict[str, Any], int, int]) -> None:
    op_type, stored, attributes, opset, outs = case
    arrays = [np.asarray(each) for each in stored]
    proto = one(op_type, drawn(2, 3, 4), *arrays, opset=opset, outs=outs, **attributes)
    with pytest.raises(UnsupportedModelError, match=op_type):
        tieops.to_torch(tieops.from_onnx(proto))


@pytest.mark.parametrize(
    ("op_type", "attributes", "opset"),
    [
        ("Elu", {"alpha": 0.5}, 1),
        ("HardSigmoid", {}, 1),
        ("LeakyRelu", {}, 1),
        ("LpPool", {"kernel_shape": [3], "p": 2.0}, 1),
        ("Selu", {}, 1),
        ("Slice", {"starts": [1], "ends": [3], "axes": [2]}, 1),
        ("Squeeze", {"axes": [0]}, 1),
        ("Unsqueeze", {"axes": [0, 2]}, 1),
    ],
)
def test_what_the_reference_of_onnx_computes(
    op_type: str, attributes: dict[str, Any], opset: int
) -> None:
    x = drawn(1, 3, 5)
    proto = one(op_type, x, opset=opset, **attributes)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    assert np.allclose(computed(proto, x), wanted, atol=1e-5)
