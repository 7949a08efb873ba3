"""Replacing a head: every form of it, exact values, and nothing upstream or beside it touched."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tieops
from tests.support.checked_passes import as_declared, refused, replaced
from tests.support.graphs import IDS, made, rows
from tests.support.head_tails import BAKED, FOLLOWS
from tests.support.heads import LINEAR, head_on, inferred
from tests.support.model_facts import homes, outputs, serialized
from tieops.errors import PreconditionError, SelectionError
from tieops.passes.base import Preserves, run
from tieops.passes.replace_head import ReplaceHeadPass

X = {"x": rows(2, 8)}


def with_upstream(model: tieops.TiedModel, value: str) -> tieops.TiedModel:
    """Make what the head is given an output too."""
    graph = model.clone()
    found = [v for node in graph.graph for v in node.outputs if v.name == value]
    graph.graph.outputs.extend(found)
    return tieops.from_onnx(graph)


def new_values(model: tieops.TiedModel, name: str) -> np.ndarray:
    return next(each for each in model.parameters if each.name == name).numpy()


# -- the forms of a head --------------------------------------------------------------------------

WEIGHT, BIAS = rows(15, 8, seed=5), rows(15, seed=6)
FORMS = {
    "gemm": ("g (float[n,8] x) => (float[n,10] y) { y = Gemm(x, w, b) }", (8, 10)),
    "gemm transposed": (
        "g (float[n,8] x) => (float[n,10] y) { y = Gemm<transB = 1>(x, w, b) }",
        (10, 8),
    ),
    "matmul": (LINEAR, (8, 10)),
    "matmul and add": (
        "g (float[n,8] x) => (float[n,10] y) { h = MatMul(x, w)  y = Add(h, b) }",
        (8, 10),
    ),
    "add from the left": (
        "g (float[n,8] x) => (float[n,10] y) { h = MatMul(x, w)  y = Add(b, h) }",
        (8, 10),
    ),
    "three axes": (
        "g (float[n,5,8] x) => (float[n,5,10] y) { h = MatMul(x, w)  y = Add(h, b) }",
        (8, 10),
    ),
    "four axes": (
        "g (float[n,2,5,8] x) => (float[n,2,5,10] y) { y = MatMul(x, w) }",
        (8, 10),
    ),
    "one axis": ("g (float[8] x) => (float[10] y) { y = MatMul(x, w) }", (8, 10)),
    "transposed on the way": (
        "g (float[n,8] x) => (float[n,10] y) { t = Transpose(w)  y = MatMul(x, t) }",
        (10, 8),
    ),
    "lowered": (
        "g (float[n,5,8] x) => (float[n,5,10] y) { f = Reshape(x, flat)"
        " h = Gemm<transB = 1>(f, w)  u = Reshape(h, sizes)  y = Add(u, b) }",
        (10, 8),
    ),
}
STORED: dict[str, Any] = {
    "b": (10,),
    "flat": np.array([-1, 8]),
    "sizes": np.array([-1, 5, 10]),
}


def form(name: str) -> tuple[tieops.TiedModel, np.ndarray]:
    text, shape = FORMS[name]
    used = {key: value for key, value in STORED.items() if f" {key})" in text or f"({key}," in text}
    sizes = {"one axis": (8,), "three axes": (3, 5, 8), "four axes": (3, 2, 5, 8)}
    x = rows(*sizes.get(name, (3, 5, 8) if name == "lowered" else (3, 8)))
    return made(text, w=shape, **used), x


@pytest.mark.parametrize("name", FORMS)
def test_every_form_computes_what_torch_does(name: str) -> None:
    model, x = form(name)
    small = replaced(model, init=WEIGHT, bias=BIAS, name="fcNew")
    assert [(each.name, each.shape) for each in small.parameters] == [
        ("fcNew.weight", (15, 8)),
        ("fcNew.bias", (15,)),
    ]
    linear = torch.nn.Linear(8, 15)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(WEIGHT))
        linear.bias.copy_(torch.from_numpy(BIAS))
        want = linear(torch.from_numpy(x)).numpy()
    got = as_declared(small, {"x": x})["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert new_values(small, "fcNew.weight").tobytes() == WEIGHT.tobytes()
    assert new_values(small, "fcNew.bias").tobytes() == BIAS.tobytes()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_goes_without_a_bias(name: str) -> None:
    model, x = form(name)
    small = replaced(model, bias=False, init=WEIGHT)
    assert len(small.parameters) == 1
    got = as_declared(small, {"x": x})["y"]
    np.testing.assert_allclose(got, x @ WEIGHT.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["three axes", "matmul and add", "lowered", "gemm transposed"])
def test_a_replaced_head_can_be_replaced(name: str) -> None:
    model, x = form(name)
    small = replaced(replaced(model, name="fc"), name="fc", out_features=7)
    assert [str(each) for each in small.parameters] == ["fc.weight: f32[7,8]", "fc.bias: f32[7]"]
    assert as_declared(small, {"x": x})["y"].shape[-1] == 7


CONVS = {
    "1x1": ((10, 8, 1, 1), "", (4, 4)),
    "full": ((10, 8, 4, 4), "", (1, 1)),
    "padded": ((10, 8, 3, 3), "<pads = [1, 1, 1, 1], strides = [2, 2]>", (2, 2)),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("bias", ["", ", b"])
def test_conv_heads_compute_what_torch_does(name: str, bias: str) -> None:
    shape, attributes, sizes = CONVS[name]
    out = ",".join(map(str, ("n", 10, *sizes)))
    stored = {"b": (10,)} if bias else {}
    model = made(
        f"g (float[n,8,4,4] x) => (float[{out}] y) {{ y = Conv{attributes}(x, w{bias}) }}",
        w=shape,
        **stored,
    )
    weight = rows(15, *shape[1:], seed=7)
    small = replaced(model, init=weight, bias=BIAS)
    x = rows(2, 8, 4, 4)
    options = {"padding": 1, "stride": 2} if attributes else {}
    conv = torch.nn.Conv2d(8, 15, shape[2:], **options)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weight))
        conv.bias.copy_(torch.from_numpy(BIAS))
        want = conv(torch.from_numpy(x)).numpy()
    got = as_declared(small, {"x": x})["y"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_the_new_weight_has_the_head_s_dtype(dtype: str) -> None:
    numpy_dtype = {"double": np.float64, "bfloat16": ml_dtypes.bfloat16}.get(dtype, np.float16)
    model = made(
        f"g ({dtype}[n,8] x) => ({dtype}[n,10] y) {{ y = MatMul(x, w) }}",
        w=rows(8, 10).astype(numpy_dtype),
    )
    small = replaced(model)
    assert {each.numpy().dtype for each in small.parameters} == {np.dtype(numpy_dtype)}


@pytest.mark.parametrize("before", ["", "u = Relu(x) "])
def test_quantized_head_gets_a_weight_in_the_dtype_it_is_multiplied_in(before: str) -> None:
    model = made(
        f"g (float[n,8] x) => (float[n,10] y) {{ {before}d = DequantizeLinear(w, s)"
        f" y = MatMul({'u' if before else 'x'}, d) }}",
        w=np.arange(80, dtype=np.int8).reshape(8, 10),
        s=np.array(0.125, np.float32),
    )
    small = replaced(inferred(model))
    assert [str(each) for each in small.parameters] == [
        "MatMul_y.weight: f32[15,8]",
        "MatMul_y.bias: f32[15]",
    ]
    assert as_declared(small, X)["y"].shape == (2, 15)


# -- values ---------------------------------------------------------------------------------------


def test_values_come_from_the_seed():
    model = made(LINEAR, w=(8, 10))
    one, same, other = (serialized(replaced(model, seed=seed).ir) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_kaiming_uniform_is_torch_s_formula():
    """torch.nn.Linear: uniform within 1/sqrt(in), weight and bias."""
    wide = made(LINEAR.replace("n,8", "n,400"), w=(400, 10))
    small = replaced(wide, out_features=500)
    linear = torch.nn.Linear(400, 500)
    for name, theirs in (("weight", linear.weight), ("bias", linear.bias)):
        mine = new_values(small, f"MatMul_y.{name}")
        bound = 1 / np.sqrt(400)
        assert np.abs(mine).max() <= bound
        assert np.abs(theirs.detach().numpy()).max() <= bound + 1e-9
        assert np.abs(mine).max() == pytest.approx(bound, rel=0.02)
        assert mine.std() == pytest.approx(theirs.detach().numpy().std(), rel=0.15)
        assert abs(mine.mean()) < bound / 5


def test_kaiming_uniform_of_a_conv_counts_the_kernel():
    model = made("g (float[n,8,9,9] x) => (float[n,10,1,1] y) { y = Conv(x, w) }", w=(10, 8, 9, 9))
    small = replaced(model, out_features=50)
    theirs = torch.nn.Conv2d(8, 50, 9).weight.detach().numpy()
    mine = new_values(small, "Conv_y.weight")
    bound = 1 / np.sqrt(8 * 81)
    assert np.abs(mine).max() == pytest.approx(bound, rel=0.01)
    assert np.abs(theirs).max() == pytest.approx(bound, rel=0.01)


def test_other_formulas():
    wide = made(LINEAR.replace("n,8", "n,400"), w=(400, 10))
    xavier = new_values(replaced(wide, init="xavier_uniform", out_features=200), "MatMul_y.weight")
    reference = torch.nn.init.xavier_uniform_(torch.empty(200, 400)).numpy()
    assert np.abs(xavier).max() == pytest.approx(np.sqrt(6 / 600), rel=0.01)
    assert xavier.std() == pytest.approx(reference.std(), rel=0.02)
    normal = new_values(replaced(wide, init="normal", out_features=200), "MatMul_y.weight")
    assert normal.std() == pytest.approx(0.02, rel=0.02)
    zeros = replaced(wide, init="zeros")
    assert not new_values(zeros, "MatMul_y.weight").any()
    for init in ("xavier_uniform", "normal", "zeros"):
        assert not new_values(replaced(wide, init=init), "MatMul_y.bias").any()


def test_learn_rate_factors_are_stored_in_the_file(tmp_path):
    model = made(LINEAR, w=(8, 10))
    small = replaced(model, lr_factor=10, bias_lr_factor=2.5, name="fcNew")
    again = tieops.from_onnx(tieops.to_onnx(small, tmp_path / "m.onnx"))
    for each in (small, again):
        assert {p.name: p.lr_factor for p in each.parameters} == {
            "fcNew.weight": 10.0,
            "fcNew.bias": 2.5,
        }
    both = replaced(model, lr_factor=10)
    assert [each.lr_factor for each in both.parameters] == [10.0, 10.0]
    assert [each.lr_factor for each in replaced(model).parameters] == [1.0, 1.0]


# -- a tied head ----------------------------------------------------------------------------------


def test_the_embedding_of_a_tied_head_is_as_it_was():
    model = made(
        "g (int64[n] ids) => (float[n,12] y) { h = Gather(emb, ids)  t = Transpose(emb)"
        " y = MatMul(h, t) }",
        emb=(12, 8),
    )
    old = model.parameters[0].numpy().tobytes()
    small = replaced(model, name="fcNew", lr_factor=10)
    assert not small.ties
    assert homes(small)["Gather_h.weight"] == "emb"
    assert new_values(small, "emb").tobytes() == old
    assert "Transpose" not in [node.op_type for node in small.ir.graph]
    want = outputs(with_upstream(model, "h"), {"ids": IDS})
    got = outputs(with_upstream(small, "h"), {"ids": IDS})
    assert got["h"].tobytes() == want["h"].tobytes()
    assert got["y"].shape == (4, 15)


def test_a_head_that_shares_with_a_layer_upstream():
    model = made(
        "g (float[n,8] x) => (float[n,8] y) { h = MatMul(x, w)  y = MatMul(h, w) }", w=(8, 8)
    )
    small = replaced(model)
    assert homes(small)["MatMul_h.weight"] == "w"
    want, got = outputs(with_upstream(model, "h"), X), outputs(with_upstream(small, "h"), X)
    assert got["h"].tobytes() == want["h"].tobytes()


def test_the_weights_output_of_the_seed_stays():
    model = made(
        "g (int64[n] ids) => (float[n,12] y, float[8,12] weights)"
        "{ h = Gather(emb, ids)  weights = Transpose(emb)  y = MatMul(h, weights) }",
        emb=(12, 8),
    )
    small = replaced(model)
    want, got = outputs(model, {"ids": IDS}), outputs(small, {"ids": IDS})
    assert got["weights"].tobytes() == want["weights"].tobytes()


# -- downstream -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLLOWS)
def test_sizes_downstream_follow(name: str) -> None:
    tail, outs, stored, want = FOLLOWS[name]
    small = replaced(head_on(tail, outs, **stored))
    assert as_declared(small, X)["y"].shape == want


@pytest.mark.parametrize("name", BAKED)
def test_a_size_that_is_baked_in_is_an_error_that_names_the_node(name: str) -> None:
    tail, outs, stored, kind = BAKED[name]
    model = head_on(tail, outs, **stored)
    graph = model.clone()
    for index, node in enumerate(graph.graph):
        node.name = f"node_{index}_{node.op_type}"
    model = tieops.from_onnx(graph)
    before = serialized(model.ir)
    with pytest.raises(PreconditionError) as caught:
        tieops.replace_head(model, head_name(model), out_features=8)
    text = str(caught.value)
    assert f"{kind} node_" in text
    assert "cannot change the size 10 of" in text
    assert "why: " in text
    assert "fix: " in text
    assert serialized(model.ir) == before


def head_name(model: tieops.TiedModel) -> str:
    """Return the layer of the first product: the head of ``head_on``."""
    return next(slot.layer for slot in model.slots if slot.node.op_type == "MatMul")


# -- which head -----------------------------------------------------------------------------------

TWO = "g (float[n,8] x) => (float[n,10] y, float[n,3] z) { y = MatMul(x, w)  z = MatMul(x, v) }"


def test_several_heads_are_an_error_that_names_them():
    model = made(TWO, w=(8, 10), v=(8, 3))
    with pytest.raises(PreconditionError) as caught:
        tieops.replace_head(model, out_features=15)
    text = str(caught.value)
    assert "the head is ambiguous: 2 layers" in text
    assert "candidates: MatMul_y, MatMul_z" in text
    assert "fix: name the layer" in text


@pytest.mark.parametrize("by", ["name", "object"])
def test_one_of_several_heads_by_name(by: str) -> None:
    model = made(TWO, w=(8, 10), v=(8, 3))
    head: Any = "MatMul_z"
    if by == "object":
        head = next(layer for layer in model.layers if layer.name == head)
    small = replaced(model, head)
    want, got = outputs(model, X), as_declared(small, X)
    assert got["y"].tobytes() == want["y"].tobytes()
    assert got["z"].shape == (2, 15)


def test_a_norm_at_another_output_is_no_head():
    model = made(
        "g (float[n,8] x) => (float[n,10] y, float[n,8] z)"
        "{ z = LayerNormalization(x, scale)  y = MatMul(z, w) }",
        w=(8, 10),
        scale=(8,),
    )
    small = replaced(model)
    want, got = outputs(model, X), as_declared(small, X)
    assert got["z"].tobytes() == want["z"].tobytes()


def test_wrong_names_list_near_ones():
    model = made(LINEAR, w=(8, 10))
    with pytest.raises(SelectionError):
        tieops.replace_head(model, "MatMul", out_features=3)
    assert "nearest: MatMul_y" in refused(model, "Matmul_y")


def test_a_name_that_another_layer_has():
    model = made(TWO, w=(8, 10), v=(8, 3))
    assert "a layer named MatMul_y already exists" in refused(model, "MatMul_z", name="MatMul_y")


def test_layers_without_a_size_to_replace():
    model = made(
        "g (int64[n] ids) => (float[n,10] y) { h = Gather(emb, ids)  y = MatMul(h, w) }",
        emb=(12, 8),
        w=(8, 10),
    )
    text = refused(model, "Gather_h")
    assert "expected a Linear or Conv layer as the head, got Gather_h" in text
    assert "kind: Embedding" in text


def test_a_model_without_learnables():
    text = refused(made("g (float[n,8] x) => (float[n,8] y) { y = Relu(x) }"))
    assert "no layer with learnables on the way to an output" in text


def test_a_grouped_convolution():
    model = made(
        "g (float[n,8,4,4] x) => (float[n,10,4,4] y) { y = Conv<group = 2>(x, w) }", w=(10, 4, 1, 1)
    )
    assert "a grouped convolution" in refused(model)


def test_a_dtype_that_cannot_be_initialised():
    model = made(
        "g (int32[n,8] x) => (int32[n,10] y) { y = MatMul(x, w) }",
        w=np.arange(80, dtype=np.int32).reshape(8, 10),
    )
    text = refused(model)
    assert "the weight of MatMul_y cannot be initialised" in text
    assert "dtype: INT32" in text
    assert "fix: replace the head before the model is quantized" in text


@pytest.mark.parametrize("out_features", [0, -1])
def test_a_head_of_nothing(out_features: int) -> None:
    text = refused(made(LINEAR, w=(8, 10)), out_features=out_features)
    assert "out_features must be a positive integer" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "he"}, "unknown initialisation 'he'"),
        ({"init": np.zeros((8, 15))}, "init does not have the shape that the new head needs"),
        ({"init": np.zeros((15, 8), complex)}, "init does not have the shape"),
        ({"init": np.full((15, 8), "a")}, "init does not have the shape"),
        ({"bias": np.zeros(3)}, "bias does not have the shape"),
    ],
)
def test_values_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    text = refused(made(LINEAR, w=(8, 10)), **options)
    assert message in text
    assert "fix: " in text


def test_what_was_done_is_reported():
    model = made(
        "g (float[n,8] x) => (float[n,10] y) { h = MatMul(x, w)  y = Add(h, b) }",
        w=(8, 10),
        b=(10,),
    )
    _, result = run(ReplaceHeadPass(out_features=15, name="fcNew"), model)
    assert [str(change) for change in result.changes] == [
        "MatMul_h: 10 → 15 features as fcNew (f32[15,8], f32[15])",
        "initializer w: nothing reads it",
        "initializer b: nothing reads it",
    ]
    assert ReplaceHeadPass.preserves == Preserves(0)


def test_names_of_values_that_are_taken():
    model = made(
        "g (float[n,8] x) => (float[n,10] y)"
        "{ fcNew_MatMul_out = Relu(x)  fcNew_Gemm_out = Relu(fcNew_MatMul_out)"
        " y = MatMul(fcNew_Gemm_out, w) }",
        w=(8, 10),
    )
    as_declared(replaced(model, name="fcNew"), X)
