"""What diff tells: each edit's own differences, and nothing where nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from fixtures.torch_models import build
from tests.support.counting import assert_linear
from tests.support.heads import model_of, noise
from tieops.model import TiedModel


def edited(edit: Callable[[onnx_ir.Model], object]) -> TiedModel:
    graph = model_of().clone()
    edit(graph)
    return TiedModel(graph)


def told(before: TiedModel, after: TiedModel) -> list[tuple[str, str, str]]:
    return [(each.subject, each.name, each.change) for each in tieops.diff(before, after).changes]


def test_nothing_changed(tmp_path):
    model = model_of()
    written = tieops.from_onnx(tieops.to_onnx(model, tmp_path / "m.onnx", tie_form="portable"))
    found = tieops.diff(model, written)
    assert not found
    assert str(found) == "nothing changed"
    assert found.to_dict()["changes"] == []


def test_tie_and_back():
    model = model_of()
    tied = tieops.tie(model)
    found = told(model, tied)
    assert found == [
        ("tie", "emb", "added"),
        ("parameter", "head", "removed"),
        ("layer", "MatMul_z", "weight reads"),
        ("bytes", "stored", "changed"),
    ]
    back = told(tied, model)
    assert ("tie", "emb", "removed") in back
    assert ("parameter", "head", "added") in back


def test_a_new_head():
    model = tieops.tie(model_of())
    new = tieops.replace_head(model, "MatMul_z", out_features=5, lr_factor=10)
    found = {(each.subject, each.name): each for each in tieops.diff(model, new).changes}
    output = found["signature", "output y"]
    assert (output.change, output.before, output.after) == ("retyped", "f32[b,60]", "f32[b,5]")
    assert found["tie", "emb"].change == "removed"  # the head's name went with the head
    assert ("parameter", "emb") not in found


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda ir: setattr(ir.graph.initializers["bias"], "name", "shift"),
            ("parameter", "shift", "renamed"),
        ),
        (
            lambda ir: setattr(
                ir.graph.initializers["bias"], "const_value", onnx_ir.tensor(noise(60) + 1)
            ),
            ("parameter", "bias", "other values"),
        ),
        (
            lambda ir: ir.graph.initializers["bias"].metadata_props.update(
                {"tieops.lr_factor": "3"}
            ),
            ("parameter", "bias", "learning-rate factor"),
        ),
        (
            lambda ir: setattr(ir.graph.node("r"), "op_type", "Abs"),
            ("operator", "Relu_r", "removed"),
        ),
        (
            lambda ir: setattr(ir.graph.inputs[0], "name", "tokens"),
            ("signature", "input ids", "removed"),
        ),
        (lambda ir: ir.opset_imports.update({"": 21}), ("signature", "opset ai.onnx", "version")),
    ],
    ids=["renamed", "values", "factor", "operator", "input", "opset"],
)
def test_each_edit_is_told(edit, expected):
    def run(ir: onnx_ir.Model) -> None:
        for node in ir.graph:
            if node.op_type == "Relu":
                node.name = "r"
        edit(ir)
        for node in ir.graph:
            if node.name == "r":
                node.name = ""

    assert expected in told(model_of(), edited(run))


def test_one_bit_of_a_weight_is_another_value():
    bias = noise(60)
    bits = bias.copy()
    bits.view(np.uint32)[7] ^= 1
    assert told(model_of(bias=bias), model_of(bias=bits)) == [("parameter", "bias", "other values")]
    zero, minus = np.zeros(60, np.float32), np.full(60, -0.0, np.float32)
    assert told(model_of(bias=zero), model_of(bias=minus)) == [
        ("parameter", "bias", "other values")
    ]


def test_a_weight_stored_in_another_order_of_axes_is_the_same_weight():
    plain = "g (float[n, 8] x) => (float[n, 60] y) { y = MatMul(x, w) }"
    flipped = """g (float[n, 8] x) => (float[n, 60] y) {
        t = Transpose<perm = [1, 0]>(w)  y = MatMul(x, t) }"""
    before, after = model_of(plain, w=noise(8, 60)), model_of(flipped, w=noise(8, 60).T.copy())
    found = {(each.name, each.change) for each in tieops.diff(before, after).changes}
    assert ("w", "stored transposed") in found
    assert ("MatMul_y", "weight reads") in found


def test_attributes_operands_and_wiring_count():
    text = """g (float[n, 8] x) => (float[n, 8] y) <int64[2] shape = {-1, 8}> {
        a = LeakyRelu<alpha = 0.5>(x)  b = Neg(x)  c = Reshape(a, shape)  y = Add(c, b) }"""
    model = model_of(text)
    for old, new, name, change in (
        ("alpha = 0.5", "alpha = 0.25", "LeakyRelu_a", "computed by"),
        ("{-1, 8}", "{8, -1}", "Reshape_c", "computed by"),
        ("Add(c, b)", "Add(b, c)", "Add_y", "fed by"),
        ("Reshape(a, shape)", "Reshape(b, shape)", "Reshape_c", "fed by"),
    ):
        assert ("operator", name, change) in told(model, model_of(text.replace(old, new))), new


def test_outputs_in_another_order():
    text = "g (float[n] x) => (float[n] y, float[n] z) { y = Neg(x)  z = Abs(x) }"
    swapped = text.replace("(float[n] y, float[n] z)", "(float[n] z, float[n] y)")
    assert told(model_of(text), model_of(swapped)) == [("signature", "outputs", "in another order")]


def test_two_models_with_nothing_in_common():
    one = model_of()
    other = model_of("g (float[n, 3] x) => (float[n, 4] v) { v = MatMul(x, w) }", w=noise(3, 4))
    found = tieops.diff(one, other)
    assert ("layer", "MatMul_v", "added") in told(one, other)
    assert ("layer", "MatMul_z", "removed") in told(one, other)
    assert json.loads(json.dumps(found.to_dict()))["changed"] is True


@pytest.mark.slow
def test_a_real_model_and_what_lowering_does_to_it(tmp_path):
    case = build("gpt2", 100, 16)
    model = tieops.from_torch(case.module, kwargs=case.inputs, dynamic_shapes=case.dynamic_shapes)
    written = tieops.from_onnx(tieops.to_onnx(model, tmp_path / "m.onnx"))
    found = tieops.diff(model, written)
    assert {each.name for each in found.changes if each.subject == "layer"} == {"lm_head"}
    assert found.of("tie") == found.of("parameter") == found.of("signature") == ()


def test_what_is_no_model_is_refused():
    with pytest.raises(tieops.TieopsError, match="expected a TiedModel"):
        tieops.diff(model_of(), 3)


def test_names_from_a_file_do_not_reach_the_terminal_raw():
    after = edited(lambda ir: setattr(ir.graph.initializers["bias"], "name", "b\x1b[31m"))
    assert "\x1b" not in str(tieops.diff(model_of(), after))


@pytest.mark.parametrize("count", [2, 40])
def test_operands_of_strings(count: int) -> None:
    """Few are shown, many by a digest; both see one letter."""

    def texts(last: str) -> tieops.TiedModel:
        words = ", ".join([f'"a{place}"' for place in range(count - 1)] + [f'"{last}"'])
        return tieops.from_onnx(
            onnx.parser.parse_model(
                f"""<ir_version: 10, opset_import: ["": 20]>
                g (string[{count}] x) => (string[{count}] y)
                {{ c = Constant<value = string[{count}] {{{words}}}>()  y = StringConcat(x, c) }}"""
            )
        )

    assert not tieops.diff(texts("b"), texts("b"))
    found = tieops.diff(texts("b"), texts("c"))
    assert [each.change for each in found.changes] == ["computed by"]


def test_work_grows_with_inputs_and_outputs() -> None:
    def compared(count: int) -> Callable[[], object]:
        names = [f"n{place}" for place in range(count)]
        infos = [
            [onnx.helper.make_tensor_value_info(f"{side}{n}", 1, [1]) for n in names]
            for side in "xy"
        ]
        nodes = [onnx.helper.make_node("Neg", [f"x{n}"], [f"y{n}"]) for n in names]
        graph = onnx.helper.make_graph(nodes, "g", *infos)
        opsets = [onnx.helper.make_opsetid("", 20)]
        model = tieops.from_onnx(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
        other = tieops.from_onnx(model.ir)
        other.ir.graph.outputs.reverse()
        return partial(tieops.diff, model, other)

    assert_linear(compared, 100)
