"""Declarations that contradict what is stored: what ONNX Runtime runs is read, and runs alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tieops
from tests.support.plain_runtime import REFUSALS

info = helper.make_tensor_value_info
FEEDS = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
STORED = {
    "scalar": np.array(2, np.float32),
    "one": np.array([3], np.float32),
    "row": np.array([1, 2, 3, 4], np.float32),
    "matrix": np.array([[1, 2, 3, 4]], np.float32),
}
SHAPES: dict[str, list[int | str] | None] = {
    "none": None, "[]": [], "[1]": [1], "[4]": [4], "[5]": [5], "[1,4]": [1, 4], "[n]": ["n"],
    "[0]": [0], "[-1]": [-1], "[n,4]": ["n", 4],
}  # fmt: skip
DTYPES = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.UNDEFINED)
PLACES = ("value_info", "two value_infos", "input", "output", "branch", "with an input", "sequence")


def model(place: str, array: Any, shape: list[int | str] | None, dtype: int) -> onnx.ModelProto:
    """Return a model that stores ``w`` and declares it, at some place, as something."""
    said = info("w", dtype, shape)
    inputs, outputs, infos = [info("x", 1, ["n", 4])], [info("y", 1, ["n", 4])], []
    stored = [numpy_helper.from_array(array, "w")]
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    if place == "input":
        inputs.append(said)
    elif place == "output":
        outputs.append(said)
    elif place == "branch":
        inner = [helper.make_node("Mul", ["x", "w"], ["a"])], [info("a", 1, None)]
        then = helper.make_graph(inner[0], "then", [], inner[1], stored, value_info=[said])
        other = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["b"])], "else", [], [info("b", 1, None)]
        )
        nodes = [
            helper.make_node("Cast", ["x"], ["c"], to=TensorProto.BOOL),
            helper.make_node("ReduceSum", ["x"], ["r"], keepdims=0),
            helper.make_node("Cast", ["r"], ["d"], to=TensorProto.BOOL),
            helper.make_node("If", ["d"], ["y"], then_branch=then, else_branch=other),
        ]
        stored = []
    elif place == "two value_infos":
        infos = [said, info("w", 1, [7])]
    elif place == "with an input":
        inputs.append(info("w", 1, list(array.shape)))
        infos = [said]
    elif place == "sequence":
        infos = [helper.make_tensor_sequence_value_info("w", 1, shape)]
    else:
        infos = [said]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored, value_info=infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answers(proto: onnx.ModelProto | str) -> Any:
    """Return what ONNX Runtime computes, or None if it refuses the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    data = proto if isinstance(proto, str) else proto.SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(
            None, FEEDS
        )
    except REFUSALS:
        return None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("place", PLACES)
def test_what_the_runtime_takes_is_taken_and_means_the_same(
    place: str, stored: str, dtype: int, tmp_path: Path
) -> None:
    for shape in SHAPES.values():
        proto = model(place, STORED[stored], shape, dtype)
        before = proto.SerializeToString()
        wanted = answers(proto)
        if wanted is None:
            with pytest.raises(tieops.TieopsError, match="is declared with a type"):
                tieops.from_onnx(proto)
            continue
        found = tieops.from_onnx(proto)
        assert proto.SerializeToString() == before
        str(found)
        for graph in found.ir.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                assert tensor is not None
                assert value.dtype == tensor.dtype
                if not value.is_graph_input():
                    assert value.shape == tensor.shape
        written = tieops.to_onnx(found, tmp_path / "m.onnx")
        again = answers(str(written.path))
        assert again is not None
        for one, other in zip(wanted, again, strict=True):
            np.testing.assert_array_equal(one, other)
        assert not tieops.diff(found, tieops.from_onnx(written))


def test_a_graph_of_onnx_ir_is_held_to_the_same() -> None:
    for shape, dtype, refused in (([5], 1, True), ([4], 7, True), ([4], 1, False)):
        proto = model("input", STORED["row"], [4], 1)
        graph = tieops.from_onnx(proto).clone()
        value = graph.graph.initializers["w"]
        value.shape, value.dtype = onnx_ir.Shape(shape), onnx_ir.DataType(dtype)
        if refused:
            with pytest.raises(tieops.TieopsError, match="w is declared with a type"):
                tieops.from_onnx(graph)
        else:
            tieops.from_onnx(graph)


def test_a_negative_size_is_one_that_is_not_known() -> None:
    """Several exporters write -1 for a batch; ONNX Runtime takes any size for it."""
    proto = model("value_info", STORED["row"], [4], 1)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    found = tieops.from_onnx(proto)
    assert "x f32[?,4] -> y f32[?,4]" in str(found)
    assert tieops.verify(found, against=proto)
