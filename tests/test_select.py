"""Selecting layers and slots: by name, glob, object or predicate, and never by luck."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

import tieops
from tieops.errors import SelectionError
from tieops.select import one_layer, slots_of, weight_slot


@pytest.fixture(scope="module")
def model() -> tieops.TiedModel:
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] x) => (float[n, 8] y) {
            h = Gather(emb, x)  t = Transpose<perm = [1, 0]>(emb)
            a = MatMul(h, first)  b = Gemm(a, second, bias)  y = MatMul(b, t) }""")
    rng = np.random.default_rng(0)
    shapes = {"emb": (8, 4), "first": (4, 4), "second": (4, 4), "bias": (4,)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return tieops.from_onnx(proto)


def names(model: tieops.TiedModel, target: object) -> list[str]:
    return [slot.name for slot in slots_of(model, target)]  # type: ignore[arg-type]


def test_a_layer_is_all_of_its_slots(model):
    assert names(model, "Gemm_b") == ["Gemm_b.weight", "Gemm_b.bias"]


def test_a_slot_is_itself(model):
    assert names(model, "Gemm_b.bias") == ["Gemm_b.bias"]


def test_a_parameter_is_every_slot_that_reads_it(model):
    assert names(model, "emb") == ["Gather_h.weight", "MatMul_y.weight"]


def test_a_glob_matches_layers_slots_and_parameters(model):
    assert names(model, "MatMul_*") == ["MatMul_a.weight", "MatMul_y.weight"]
    assert names(model, "*.bias") == ["Gemm_b.bias"]
    assert names(model, "e?b") == ["Gather_h.weight", "MatMul_y.weight"]
    assert names(model, "[fs]*") == ["MatMul_a.weight", "Gemm_b.weight"]


def test_objects_and_predicates(model):
    layer = one_layer(model, "Gemm_b")
    assert names(model, layer) == ["Gemm_b.weight", "Gemm_b.bias"]
    assert names(model, model.slots[0]) == ["Gather_h.weight"]
    assert names(model, lambda slot: slot.role == "bias") == ["Gemm_b.bias"]


def test_an_object_of_another_copy_of_the_model_is_found_by_its_name(model):
    other = tieops.from_onnx(model.ir)
    assert names(model, other.slots[0]) == ["Gather_h.weight"]
    assert one_layer(model, one_layer(other, "Gemm_b")) in model.layers


def test_names_with_glob_characters_are_found_as_they_are():
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w[0]*"))
    proto.graph.node[0].input[1] = "w[0]*"
    assert names(tieops.from_onnx(proto), "w[0]*") == ["MatMul_y.weight"]


@pytest.mark.parametrize("target", ["Gemm", "gemm_b", "Gemm_b.weigth", "none*", "", "*x*x*"])
def test_what_matches_nothing_is_an_error_with_the_nearest_names(model, target):
    with pytest.raises(SelectionError) as caught:
        slots_of(model, target)
    text = str(caught.value)
    assert text.startswith(f"nothing in the model is named {target}")
    assert "fix: see print(model.layers), or tieops inspect MODEL" in text
    if target.lower().startswith("gemm"):
        assert "nearest: " in text
        assert "Gemm_b" in text
    assert isinstance(caught.value, LookupError)


def test_the_weight_of_a_layer(model):
    assert weight_slot(model, "Gemm_b").name == "Gemm_b.weight"
    assert weight_slot(model, "Gemm_b.bias").name == "Gemm_b.bias"
    assert weight_slot(model, "emb").parameter.name == "emb"


def test_the_weight_of_several_is_an_error_that_names_them(model):
    with pytest.raises(SelectionError) as caught:
        weight_slot(model, "MatMul_*")
    text = str(caught.value)
    assert "expected one slot, but MatMul_* names 2" in text
    assert "slots: MatMul_a.weight, MatMul_y.weight" in text


def test_one_layer(model):
    assert one_layer(model, "MatMul_a").kind == "Linear"
    for target in ("MatMul", "MatMul_*", "emb"):
        with pytest.raises(SelectionError, match="nothing in the model is named"):
            one_layer(model, target)
