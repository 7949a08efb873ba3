"""Freezing inputs: what a caller fed, or could override, is a constant of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.graphs import made, rows
from tests.support.model_facts import outputs, serialized
from tieops.errors import PreconditionError, SelectionError
from tieops.model import TiedModel

DTYPES = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "int64": np.int64,
    "int32": np.int32, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip


def frozen(model: TiedModel, inputs: Any) -> TiedModel:
    """Freeze inputs, and check all that always holds."""
    before = serialized(model.ir)
    new = tieops.freeze_inputs(model, inputs)
    assert serialized(model.ir) == before, "the argument was changed"
    onnx.checker.check_model(onnx_ir.to_proto(new.ir), full_check=True)
    assert not {*inputs} & {value.name for value in new.ir.graph.inputs}
    return new


def scaled() -> TiedModel:
    return made("g (float[n,4] x, float[n,4] m, float s) => (float[n,4] y)"
                "{ h = Mul(x, m)  y = Mul(h, s) }")  # fmt: skip


def test_a_value_takes_the_place_of_what_was_fed():
    feeds = {"x": rows(2, 4), "m": rows(2, 4, seed=3), "s": np.array(0.1, np.float32)}
    new = frozen(scaled(), {"s": 0.1, "m": feeds["m"]})
    assert [value.name for value in new.inputs] == ["x"]
    got = outputs(new, {"x": feeds["x"]})["y"]
    assert got.tobytes() == outputs(scaled(), feeds)["y"].tobytes()


def test_a_size_that_is_bound_is_bound_everywhere():
    new = frozen(scaled(), {"m": np.ones((3, 4))})
    shapes = [str(value.shape) for value in (*new.ir.graph.inputs, *new.ir.graph.outputs)]
    assert shapes == ["[3,4]", "[]", "[3,4]"]


@pytest.mark.parametrize("name", DTYPES)
def test_numbers_take_the_dtype_of_the_input(name):
    model = made(f"g ({name}[2] x) => ({name}[2] y) {{ y = Identity(x) }}")
    given = [True, False] if name == "bool" else [1, 3]
    new = frozen(model, {"x": given})
    assert new.ir.graph.initializers["x"].const_value.numpy().dtype == DTYPES[name]
    assert outputs(new, {})["y"].tolist() == given


def test_the_array_stays_the_caller_s():
    array = rows(2, 4)
    new = frozen(scaled(), {"m": array})
    array[:] = 0
    assert new.ir.graph.initializers["m"].const_value.numpy().any()


def test_a_weight_that_a_caller_may_override_becomes_a_constant():
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x, float[4,4] w) => (float[2,4] y)'
    )
    text += " <float[4,4] w = {" + ",".join(map(str, range(16))) + "}> { y = MatMul(x, w) }"
    model = tieops.from_onnx(onnx.parser.parse_model(text))
    assert [value.name for value in model.ir.graph.inputs] == ["x", "w"]
    new = frozen(model, ["w"])
    assert [value.name for value in new.ir.graph.inputs] == ["x"]
    x = rows(2, 4)
    assert np.array_equal(outputs(new, {"x": x})["y"], outputs(model, {"x": x})["y"])
    assert new.parameters[0].is_overridable is False
    other = frozen(model, {"w": np.eye(4)})
    assert np.array_equal(outputs(other, {"x": x})["y"], x)


def test_an_input_that_is_an_output_is_handed_through():
    model = made("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    graph = model.clone()
    graph.graph.outputs.append(graph.graph.inputs[0])
    new = frozen(TiedModel(graph), {"x": np.float32([1, -2])})
    assert {k: v.tolist() for k, v in outputs(new, {}).items()} == {"y": [1, 0], "x": [1, -2]}


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("q", SelectionError, "no input called q"),
        ("x", PreconditionError, "the input x has no stored value"),
        ({"s": [1.0]}, PreconditionError, "does not fit it"),
        ({"m": np.ones((2, 3))}, PreconditionError, "does not fit it"),
        ({"s": True}, PreconditionError, "does not fit it"),
        ({"s": "one"}, PreconditionError, "does not fit it"),
        ({"s": 2**53 + 1}, PreconditionError, "does not fit it"),
        ({3: 1.0}, PreconditionError, "expected names of inputs"),
        (3, PreconditionError, "expected names of inputs, got an int"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, error, message):
    model = scaled()
    before = serialized(model.ir)
    with pytest.raises(error, match=message):
        tieops.freeze_inputs(model, inputs)
    assert serialized(model.ir) == before
