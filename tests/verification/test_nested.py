"""Outputs that are no tensors, and loops of old opsets: verify compares them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tieops
from tieops.errors import VerificationError
from tieops.verification import OutputComparison, Report
from tieops.verification.nested_values import compare_values, flatten, unflatten

SEQ = "g (float[2] x) => (seq(float[2]) y) "
ONE = SEQ + "{ h = Neg(x)  y = SequenceConstruct(x, h) }"
SAME = SEQ + "{ z = Constant<value_float = 0.0>()  h = Sub(z, x)  y = SequenceConstruct(x, h) }"
OTHER = SEQ + "{ h = Abs(x)  y = SequenceConstruct(x, h) }"
SHORTER = SEQ + "{ y = SequenceConstruct(x) }"
WIDER = (
    "g (float[2] x) => (seq(float[n]) y)"
    " { h = Concat<axis = 0>(x, x)  y = SequenceConstruct(x, h) }"
)
TENSOR = "g (float[2] x) => (float[2] y) { y = Neg(x) }"
EMPTY = "g (float[2] x) => (seq(float) y, float[2] z) { y = SequenceEmpty()  z = Neg(x) }"
FULL = "g (float[2] x) => (optional(float[2]) y) { y = Optional(x) }"
NEGATED = "g (float[2] x) => (optional(float[2]) y) { n = Neg(x)  y = Optional(n) }"


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')


def checked(one: Any, other: Any, **options: Any) -> Report:
    return tieops.verify(one, against=other, raises=False, **options)


@pytest.mark.parametrize("sandbox", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sequences_element_by_element(sandbox: bool) -> None:
    report = checked(parsed(SAME), parsed(ONE), sandbox=sandbox)
    assert report.verdict in ("equal bitwise", "equal within tolerance")
    assert {(o.name, o.dtype, o.shape) for run in report.runs for o in run.outputs} == {
        ("y", "seq(float32)", (2,))
    }
    assert all(output.elements == 4 for run in report.runs for output in run.outputs)
    report = checked(parsed(OTHER), parsed(ONE), sandbox=sandbox)
    assert report.verdict == "different"
    worst = report.worst()
    assert worst is not None
    assert worst[1].worst is not None
    assert worst[1].worst[0] == 1  # the second element
    with pytest.raises(VerificationError, match=r"y differs[^$]*max_abs_diff"):
        tieops.verify(parsed(OTHER), against=parsed(ONE))


@pytest.mark.parametrize(
    ("text", "mismatch"),
    [
        (SHORTER, "1 element instead of 2"),
        (WIDER, "at [1]: shape [4] instead of [2]"),
        (TENSOR, "float32 instead of seq(float32)"),
    ],
)
def test_sequences_that_cannot_be_compared_element_by_element(text: str, mismatch: str) -> None:
    report = checked(parsed(text), parsed(ONE))
    assert report.verdict == "different"
    assert mismatch in str(report)
    assert report.to_dict()["equal"] is False


def test_a_sequence_within_tolerances() -> None:
    near = SEQ + "{ e = Constant<value_float = 0.00001>()  m = Neg(x)  h = Sub(m, e)"
    near += "  y = SequenceConstruct(x, h) }"
    assert checked(parsed(near), parsed(ONE), atol=1e-3).verdict == "equal within tolerance"
    assert checked(parsed(near), parsed(ONE), atol=0, rtol=0).verdict == "different"


def test_an_empty_sequence_is_equal_to_an_empty_one() -> None:
    assert checked(parsed(EMPTY), parsed(EMPTY)).verdict == "equal bitwise"
    alone = "g (float[2] x) => (seq(float) y) { y = SequenceEmpty() }"
    with pytest.raises(VerificationError, match="every output is empty"):
        checked(parsed(alone), parsed(alone))


def test_optionals() -> None:
    assert checked(parsed(FULL), parsed(FULL)).verdict == "equal bitwise"
    assert checked(parsed(NEGATED), parsed(FULL)).verdict == "different"


def exact(candidate: Any, reference: Any) -> OutputComparison:
    return compare_values(candidate, reference, name="y", rtol=0.0, atol=0.0)


def test_maps_key_by_key() -> None:
    """ONNX Runtime's classifiers give lists of these; tieops imports no graph that does."""
    one: Any = [{"cat": 0.5, "dog": 0.25}]
    found = exact([{"dog": 0.25, "cat": 0.5}], one)
    assert (found.bitwise, found.elements, found.dtype) == (True, 2, "seq(map(string,float64))")
    found = exact([{"cat": 0.5, "dog": 0.5}], one)
    assert (found.ok, found.worst, found.max_abs_diff) == (False, (0, 1), 0.25)
    found = exact([{"cat": 0.5, "cow": 0.25}], one)
    assert found.mismatch == "at [0]: other keys: cow instead of dog"


def test_no_value_is_equal_to_none_alone() -> None:
    assert exact(None, None).ok
    x = np.ones(2, np.float32)
    assert exact(None, x).mismatch == "no value instead of float32"
    assert exact([x, None], [x, x]).mismatch.startswith("at [1]: no value")


@pytest.mark.parametrize(
    "form", [7, {"list": 3}, {"map": [[1.5, None]]}, "tensor", {"list": ["x"]}]
)
def test_what_a_sandbox_answers_is_checked(form: Any) -> None:
    with pytest.raises(ValueError, match="neither a tensor, a list nor a map"):
        unflatten(form, iter([]))
    deep: Any = None
    for _ in range(100):
        deep = {"list": [deep]}
    with pytest.raises(ValueError, match="neither"):
        unflatten(deep, iter([]))


def test_values_are_taken_apart_and_put_together() -> None:
    value: Any = [np.ones(2), {"a": None, "b": [np.zeros(1)]}]
    arrays: list[Any] = []
    form = json.loads(json.dumps(flatten(value, arrays)))
    assert str(unflatten(form, iter(arrays))) == str(value)


def test_a_module_against_a_model_that_returns_a_sequence() -> None:
    model = tieops.from_onnx(parsed(ONE))
    report = checked(tieops.to_torch(model), model)
    assert report
    assert [each.name for each in report.runs[0].outputs] == ["y[0]", "y[1]"]


def scan(lengths: bool, add: str = "Add") -> onnx.ModelProto:
    """Return a Scan of opset 8, whose first input says how long each sequence is."""
    state = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s", "a")]
    body = helper.make_graph(
        [helper.make_node(add, ["s", "a"], ["s2"]), helper.make_node("Identity", ["s2"], ["o"])],
        "b",
        state,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s2", "o")],
    )
    inputs = ["lengths" if lengths else "", "first", "x"]
    node = helper.make_node("Scan", inputs, ["last", "all"], body=body, num_scan_inputs=1)
    shapes = {"first": [1, 2], "x": [1, 3, 2], "last": [1, 2], "all": [1, 3, 2]}
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    graph = helper.make_graph(
        [node],
        "g",
        [infos["first"], infos["x"]],
        [infos["last"], infos["all"]],
        [helper.make_tensor("lengths", TensorProto.INT64, [1], [2])] if lengths else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)


@pytest.mark.parametrize("lengths", [False, True])
def test_a_scan_of_opset_8(lengths: bool) -> None:
    assert checked(scan(lengths), scan(lengths)).verdict == "equal bitwise"
    assert checked(scan(lengths, "Sub"), scan(lengths)).verdict == "different"
