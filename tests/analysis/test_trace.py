"""Following stored tensors to their readers: through what, how far, and at what cost."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import onnx
import onnx_ir
import pytest

from tests.support.counting import assert_linear
from tieops.analysis.trace import trace
from tieops.errors import UnsupportedModelError
from tieops.ir.operators.operands import known_ints
from tieops.model import TiedModel

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
HEAD_F = '<ir_version: 10, opset_import: ["" : 20, "f" : 1]>\n'
LOCAL = '\n<opset_import: ["" : 20, "f" : 1], domain: "f"> '
W4 = "float[2,2] w = {1, 2, 3, 4}"


def parsed(text: str) -> TiedModel:
    return TiedModel(onnx_ir.from_onnx_text(text))


def view_of(movement: str, stored: str, opset: int = 20) -> str:
    """Return how the Mul of a one-node movement sees w."""
    model = parsed(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"g (float s) => (float y) <{stored}> {{ v = {movement}\n y = Mul(s, v) }}"
    )
    (slot,) = [slot for slot in model.slots if slot.parameter.name == "w"]
    return f"{slot.node.op_type} {slot.view}".strip()


@pytest.mark.parametrize(
    ("movement", "stored", "seen"),
    [
        ("Identity(w)", W4, "Mul"),
        ("Transpose(w)", W4, "Mul transpose"),
        ("Transpose <perm = [0, 1]> (w)", W4, "Mul"),
        ("Flatten(w)", "float[2,1,2] w = {1, 2, 3, 4}", "Mul reshape[2, 2]"),
        ("Flatten <axis = -1> (w)", "float[2,1,2] w = {1, 2, 3, 4}", "Mul reshape[2, 2]"),
        ("Squeeze(w)", "float[2,1,2,1] w = {1, 2, 3, 4}", "Mul reshape[2, 2]"),
        ("Reshape(w, to)", f"{W4}, int64[2] to = {{0, -1}}", "Mul"),
        ("Reshape(w, to)", f"{W4}, int64[1] to = {{-1}}", "Mul reshape[4]"),
        ("Unsqueeze(w, to)", f"{W4}, int64[2] to = {{0, -1}}", "Mul reshape[1, 2, 2, 1]"),
        ("Cast <to = 10> (w)", W4, "Mul cast f16"),
        (
            "Slice(w, a, b, c)",
            f"{W4}, int64[1] a = {{-1}}, int64[1] b = {{9}}, int64[1] c = {{-1}}",
            "Mul slice[0:2,1:2]",
        ),
        ("Softmax(w)", W4, "Softmax"),
        ("Reshape(w, to)", f"{W4}, int64[2] to = {{3, -1}}", "Reshape"),
    ],
)
def test_movements_are_views_and_the_rest_are_readers(
    movement: str, stored: str, seen: str
) -> None:
    assert view_of(movement, stored) == seen


@pytest.mark.parametrize(
    ("movement", "opset", "seen"),
    [
        ("Squeeze <axes = [1]> (w)", 11, "Mul reshape[2, 2]"),
        ("Unsqueeze <axes = [0]> (w)", 11, "Mul reshape[1, 2, 1, 2]"),
        ("Slice <starts = [1], ends = [2]> (w)", 9, "Mul slice[1:2,0:1,0:2]"),
    ],
)
def test_operands_that_older_opsets_take_as_attributes(
    movement: str, opset: int, seen: str
) -> None:
    assert view_of(movement, "float[2,1,2] w = {1, 2, 3, 4}", opset) == seen


def test_a_reshape_to_a_computed_shape_is_a_reader() -> None:
    model = parsed(
        f"{HEAD}g (float s, int64[2] to) => (float[a,b] y) <{W4}>"
        "{ v = Reshape(w, to)\n y = Mul(s, v) }"
    )
    assert [slot.node.op_type for slot in model.slots] == ["Reshape"]


def test_a_shape_that_a_caller_may_override_is_not_static() -> None:
    value = onnx_ir.Value(name="to", const_value=onnx_ir.tensor([2, 2]))
    assert known_ints(value) == (2, 2)
    onnx_ir.Graph([value], [], nodes=[])
    assert known_ints(value) is None
    assert known_ints(None) is None
    assert known_ints(onnx_ir.Value(const_value=onnx_ir.tensor(np.ones(5000, "i8")))) is None
    assert known_ints(onnx_ir.Value(const_value=onnx_ir.tensor(np.ones(2, "f4")))) is None


def test_a_concat_beside_a_computed_part_is_a_reader() -> None:
    model = parsed(
        f"{HEAD}g (float[2,2] x) => (float[4,2] y) <{W4}> {{ y = Concat <axis = 0> (x, w) }}"
    )
    assert [slot.node.op_type for slot in model.slots] == ["Concat"]


def test_a_stored_tensor_that_is_an_output_is_exposed_with_its_view() -> None:
    model = parsed(
        f"{HEAD}g (float[2,2] x) => (float[2,2] y, float[2,2] t) <{W4}>"
        "{ t = Transpose(w)\n y = MatMul(x, t) }"
    )
    (use,) = model.trace.escaping
    assert (use.parameter.name, str(use.view)) == ("w", "transpose")
    assert use.output.name == "t"


def test_an_operator_of_another_domain_moves_nothing() -> None:
    model = parsed(
        '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>\n'
        f"g (float s) => (float[2,2] y) <{W4}>"
        "{ v = com.microsoft.Transpose(w)\n y = Mul(s, v) }"
    )
    assert [slot.node.domain for slot in model.slots] == ["com.microsoft"]


def test_a_function_called_at_two_places_is_entered_twice() -> None:
    model = parsed(
        f"{HEAD_F}g (float[2,2] x) => (float[2,2] y) <{W4}> {{ h = f.a(x, w)\n y = f.b(h, w) }}"
        f"{LOCAL} b (p, q) => (r) {{ r = MatMul(p, q) }}"
        f"{LOCAL} a (p, q) => (r) {{ t = Transpose(q)\n s = f.b(p, t)\n r = f.b(s, q) }}"
    )
    (tie,) = model.ties
    calls = [[call.op_type for call in slot.path] for slot in tie.slots]
    assert sorted(calls) == [["a", "b"], ["a", "b"], ["b"]]
    assert sorted(str(slot.view) for slot in tie.slots) == ["", "", "transpose"]
    assert len({slot.name for slot in model.slots}) == 3


def test_a_function_that_returns_a_view_passes_it_on() -> None:
    model = parsed(
        f"{HEAD_F}g (float[2,2] x) => (float[2,2] y) <{W4}> {{ t = f.t(w)\n y = MatMul(x, t) }}"
        f"{LOCAL} t (p) => (q) {{ q = Transpose(p) }}"
    )
    (slot,) = model.slots
    assert (slot.node.op_type, slot.path, str(slot.view)) == ("MatMul", (), "transpose")


def test_a_recursive_function_is_refused_by_name() -> None:
    model = parsed(
        f"{HEAD_F}g (float[2,2] x) => (float[2,2] y) <{W4}> {{ y = f.a(w) }}"
        f"{LOCAL} a (p) => (q) {{ q = f.b(p) }}"
        f"{LOCAL} b (p) => (q) {{ q = f.a(p) }}"
    )
    with pytest.raises(UnsupportedModelError, match="function a calls itself"):
        _ = model.ties


def test_two_to_the_fortieth_calls_are_refused_at_once() -> None:
    levels = "".join(
        f"{LOCAL} f{i} (p) => (q) {{ r = f.f{i + 1}(p)\n q = f.f{i + 1}(r) }}" for i in range(40)
    )
    model = parsed(
        f"{HEAD_F}g (float[2,2] x) => (float[2,2] y) <{W4}> {{ y = f.f0(w) }}"
        f"{levels}{LOCAL} f40 (p) => (q) {{ q = Relu(p) }}"
    )
    with pytest.raises(UnsupportedModelError, match="more than 100000 function calls"):
        _ = model.ties


def test_thirty_nested_branches_are_walked() -> None:
    body = "t0 = MatMul(x, w)"
    for depth in range(1, 31):
        last = f"t{depth - 1}"
        body = (
            f"t{depth} = If <then_branch = a{depth} () => (float[2,2] {last}) {{ {body} }}, "
            f"else_branch = b{depth} () => (float[2,2] e{depth}) {{ e{depth} = MatMul(x, w) }}> (c)"
        )
    model = parsed(f"{HEAD}g (bool c, float[2,2] x) => (float[2,2] t30) <{W4}> {{ {body} }}")
    (tie,) = model.ties
    assert len(tie.slots) == 31
    assert len({slot.name for slot in tie.slots}) == 31


def chain(nodes: list[onnx.NodeProto], stored: np.ndarray) -> TiedModel:
    make = onnx.helper
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 8])],
        [make.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, [2, 8])],
        [onnx.numpy_helper.from_array(stored, "w")],
    )
    opset = make.make_opsetid("", 20)
    return TiedModel(onnx_ir.from_proto(make.make_model(graph, opset_imports=[opset])))


@pytest.mark.slow
def test_many_readers_of_one_initializer_are_linear_work() -> None:
    def model(readers: int) -> TiedModel:
        nodes = [onnx.helper.make_node("MatMul", ["x", "w"], [f"o{i}"]) for i in range(readers)]
        return chain(nodes, np.ones((8, 8), "f4"))

    (tie,) = model(20_000).ties
    assert len(tie.slots) == 20_000
    assert_linear(lambda readers: partial(getattr, model(readers), "ties"), 1000)


def test_ten_thousand_aliases_in_a_row_are_followed() -> None:
    names = ["w", *(f"v{i}" for i in range(10_000))]
    nodes = [
        onnx.helper.make_node("Identity", [one], [other])
        for one, other in itertools.pairwise(names)
    ]
    nodes.append(onnx.helper.make_node("MatMul", ["x", names[-1]], ["y"]))
    (slot,) = chain(nodes, np.ones((8, 8), "f4")).slots
    assert slot.view.is_identity


def test_tracing_reads_no_weights() -> None:
    def load() -> onnx_ir.Tensor:
        raise AssertionError("a weight was loaded")

    model = onnx_ir.from_onnx_text(
        f"{HEAD}g (float[2,2] x) => (float[2,2] y) <{W4}>"
        "{ t = Transpose(w)\n h = MatMul(x, t)\n y = MatMul(h, w) }"
    )
    model.graph.initializers["w"].const_value = onnx_ir.LazyTensor(
        load, dtype=onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape((2, 2)), name="w"
    )
    uses = trace(model).uses[model.graph.initializers["w"]]
    assert len(uses) == 2
    assert len(TiedModel(model).ties) == 1
