"""Replace a head at its edges: no value infos, merged axes, branches, pools, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest

import tieops
from fixtures.torch_models import build
from tests.support.checked_passes import as_declared, refused, replaced
from tests.support.graphs import made, rows
from tests.support.head_tails import BAKED, FOLLOWS
from tests.support.heads import LINEAR, head_on, inferred
from tests.support.model_facts import outputs
from tieops.errors import PreconditionError
from tieops.passes.base import run
from tieops.passes.replace_head import ReplaceHeadPass

X = {"x": rows(2, 8)}

# -- graphs without value infos: what people write, and what old exporters write ------------------


def bare(tail: str, outs: str, **tensors: Any) -> tieops.TiedModel:
    text = f"g (float[n,8] x) => ({outs}) {{ h = MatMul(x, w)  k = Add(h, b)  {tail} }}"
    return made(text, w=(8, 10), b=(10,), **tensors)


@pytest.mark.parametrize("name", FOLLOWS)
def test_sizes_follow_without_value_infos(name: str) -> None:
    tail, outs, stored, want = FOLLOWS[name]
    small = replaced(bare(tail, outs, **stored))
    assert as_declared(small, X)["y"].shape == want


@pytest.mark.parametrize("name", BAKED)
def test_baked_sizes_are_named_without_value_infos(name: str) -> None:
    tail, outs, stored, kind = BAKED[name]
    model = bare(tail, outs, **stored)
    head = next(slot.layer for slot in model.slots if slot.node.op_type == "MatMul")
    with pytest.raises(PreconditionError, match=f"{kind} .*depends on it"):
        tieops.replace_head(model, head, out_features=8)


def test_a_head_of_three_axes_without_value_infos():
    model = made(
        "g (float[n,5,8] x) => (float[n,5,10] y) { u = Relu(x)  h = MatMul(u, w)  k = Add(h, b)"
        " y = Softmax(k) }",
        w=(8, 10),
        b=(10,),
    )
    assert as_declared(replaced(model), {"x": rows(2, 5, 8)})["y"].shape == (2, 5, 15)


@pytest.mark.filterwarnings("ignore")  # torch says a lot about its older exporter
def test_the_old_exporter_s_lstm(tmp_path) -> None:
    import torch

    case = build("lstm", 150, 32)
    path = tmp_path / "old.onnx"
    torch.onnx.export(
        case.module, (), path, kwargs=case.inputs, dynamo=False, input_names=["x"],
        dynamic_axes=case.dynamic_shapes, opset_version=17,
    )  # fmt: skip
    small = tieops.replace_head(tieops.tie(tieops.from_onnx(path)), out_features=15)
    got = outputs(small, {"x": case.inputs["x"].numpy()})
    assert [each.shape for each in got.values()] == [(2, 5, 15)]


# -- heads that are not what they look like -------------------------------------------------------


def test_a_gemm_that_transposes_its_input():
    """The new Gemm loses transA."""
    model = made("g (float[8,n] x) => (float[n,10] y) { y = Gemm<transA = 1>(x, w) }", w=(8, 10))
    assert as_declared(replaced(model), {"x": rows(8, 3)})["y"].shape == (3, 15)


def test_a_gemm_whose_bias_is_computed():
    """The computed C is dropped in silence; it has the old size, or is added to all."""
    model = made("g (float[n,8] x, float[1] c) => (float[n,10] y) { y = Gemm(x, w, c) }", w=(8, 10))
    assert "Gemm" in refused(model)


def test_a_batched_weight():
    """One matrix a batch: (5, 8, 10); the new one is a matrix, the output's rank is wrong."""
    model = made("g (float[2,8] x) => (float[5,2,10] y) { y = MatMul(x, w) }", w=(5, 8, 10))
    assert "w" in refused(model)


@pytest.mark.parametrize("sizes", [[-1, 2, 5], [-1, 10, 1]])
def test_reshapes_around_a_gemm_that_are_no_flattening(sizes: list[int]) -> None:
    """x.view(n, 32) -> Linear(32, 10) -> view(n, 2, 5): "lowered" only looks like this."""
    out = ",".join(map(str, ["n", *sizes[1:]]))
    model = inferred(
        made(
            f"g (float[n,4,8] x) => (float[{out}] y)"
            "{ f = Reshape(x, flat)  h = Gemm(f, w, b)  y = Reshape(h, sizes) }",
            w=(32, 10),
            b=(10,),
            flat=np.array([-1, 32]),
            sizes=np.array(sizes),
        )
    )
    if sizes == [-1, 2, 5]:
        assert "Reshape" in refused(model)
    else:
        assert as_declared(replaced(model), {"x": rows(3, 4, 8)})["y"].shape == (3, 15, 1)


# -- sizes that are followed wrongly --------------------------------------------------------------

MERGED: dict[str, tuple[str, str, str, list[int], tuple[int, ...]]] = {
    "to one axis": ("n,8", "m", "float[n,8] x", [-1], (2, 8)),
    "static rows": ("4,8", "2,20", "float[4,8] x", [2, -1], (4, 8)),
    "three axes": ("n,3,8", "n,30", "float[n,3,8] x", [0, -1], (2, 3, 8)),
    "three axes, all": ("n,3,8", "n,30", "float[n,3,8] x", [-1, 30], (2, 3, 8)),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_reshape_that_merges_the_classes(name: str) -> None:
    """The declared size is 15 where the real one is 30 or 45."""
    _, out, given, sizes, shape = MERGED[name]
    model = inferred(
        made(
            f"g ({given}) => (float[{out}] y) {{ k = MatMul(x, w)  y = Reshape(k, c) }}",
            w=(8, 10),
            c=np.array(sizes),
        )
    )
    try:
        small = replaced(model)
    except PreconditionError as error:
        assert "Reshape" in str(error)  # noqa: PT017 - refusing is as right as following
    else:
        as_declared(small, {"x": rows(*shape)})


def test_a_reshape_that_mixes_the_classes_with_rows():
    """[6,10] -> [3,10,2]: the axis of 10 that comes out holds other elements."""
    model = inferred(
        made(
            "g (float[6,8] x) => (float[3,10,2] y) { k = MatMul(x, w)  y = Reshape(k, c) }",
            w=(8, 10),
            c=np.array([3, 10, 2]),
        )
    )
    assert "Reshape" in refused(model)


def test_a_slice_with_a_step():
    model = head_on(
        "y = Slice(k, s, e, a, p)",
        "float[n,5] y",
        s=np.array([0]),
        e=np.array([2**62]),
        a=np.array([1]),
        p=np.array([2]),
    )
    assert "Slice" in refused(model)


def test_a_slice_of_opset_9_has_attributes():
    model = made(
        "g (float[n,8] x) => (float[n,10] y)"
        "{ k = MatMul(x, w)  y = Slice<starts = [0], ends = [1000], axes = [1]>(k) }",
        opset=9,
        w=(8, 10),
    )
    assert as_declared(replaced(inferred(model)), X)["y"].shape == (2, 15)


OLD_HEADS = {
    "a product": "g (float[n,8] x) => (float[n,10] y) { y = MatMul(x, w) }",
    "a Gemm": "g (float[n,8] x) => (float[n,10] y) { y = Gemm(x, w, c) }",
    "a Gemm that turns": "g (float[8,n] x) => (float[n,10] y) { y = Gemm<transA = 1>(x, w, c) }",
}


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", OLD_HEADS)
def test_heads_of_old_opsets_run(name: str, bias: bool, opset: int) -> None:
    model = made(OLD_HEADS[name], opset=opset, w=(8, 10), c=(10,))
    small = tieops.replace_head(model, out_features=15, bias=bias)
    stored = {each.name.rpartition(".")[2]: each.numpy() for each in small.parameters}
    x = rows(8, 3) if "turns" in name else rows(3, 8)
    rows_of_x = x.T if "turns" in name else x
    wanted = rows_of_x @ stored["weight"].T + stored.get("bias", np.float32(0))
    np.testing.assert_allclose(outputs(small, {"x": x})["y"], wanted, atol=1e-5)


def test_opset_6_takes_no_bias():
    model = made("g (float[n,8] x) => (float[n,10] y) { y = MatMul(x, w) }", opset=6, w=(8, 10))
    with pytest.raises(PreconditionError, match="opset 6 cannot broadcast a bias over rows"):
        tieops.replace_head(model, out_features=15)
    small = tieops.replace_head(model, out_features=15, bias=False)
    assert outputs(small, {"x": rows(3, 8)})["y"].shape == (3, 15)


def test_a_convolution_of_opset_6_has_its_bias():
    text = "g (float[n,3,4,4] x) => (float[n,10,4,4] y){ y = Conv<kernel_shape = [1, 1]>(x, w) }"
    model = made(text, opset=6, w=(10, 3, 1, 1))
    small = tieops.replace_head(model, out_features=15)
    assert outputs(small, {"x": rows(2, 3, 4, 4)})["y"].shape == (2, 15, 4, 4)


def test_a_gemm_that_turns_what_a_reshape_made():
    model = made(
        "g (float[2,2,4] x) => (float[2,2,10] y)"
        "{ f = Reshape(x, s)  r = Gemm<transA = 1>(f, w)  y = Reshape(r, t) }",
        w=(4, 10),
        s=np.array([-1, 4]),
        t=np.array([2, 2, 10]),
    )
    small = tieops.replace_head(model, out_features=5)
    assert outputs(small, {"x": rows(2, 2, 4)})["y"].shape == (2, 2, 5)


def test_a_sequence_before_the_head_stays_one():
    model = made(
        "g (float[4,8] x) => (float[2,10] y)"
        "{ q = SplitToSequence<axis = 0>(x, k)  e = SequenceAt(q, i)  y = Gemm(e, w) }",
        k=np.array([2, 2]),
        i=np.array(0),
        w=(8, 10),
    )
    small = tieops.replace_head(model, out_features=5)
    assert outputs(small, {"x": rows(4, 8)})["y"].shape == (2, 5)


def test_a_top_k_of_opset_9_has_an_attribute():
    model = made(
        "g (float[n,8] x) => (float[n,3] y, int64[n,3] i) "
        "{ k = MatMul(x, w)  y, i = TopK<k = 3>(k) }",
        opset=9,
        w=(8, 10),
    )
    assert as_declared(replaced(inferred(model)), X)["y"].shape == (2, 3)


def test_a_shape_that_is_read_downstream():
    """Shape(k) feeds Expand: y has 15 columns, and is declared to have 10."""
    model = head_on("s = Shape(k)  y = Expand(c, s)", "float[n,10] y", c=(1,))
    try:
        small = replaced(model)
    except PreconditionError as error:
        assert "Shape" in str(error)  # noqa: PT017 - refusing is as right as following
    else:
        as_declared(small, X)


def test_a_branch_that_reads_the_head():
    """Softmax(k) in both branches of an If: y's size is not followed out of the branch."""
    model = head_on(
        "z = ReduceSum(k)  c = Cast<to = 9>(z)"
        " y = If<then_branch = a () => (float[n,10] p) { p = Softmax(k) },"
        " else_branch = e () => (float[n,10] r) { r = Sigmoid(k) }>(c)"
    )
    try:
        small = replaced(model)
    except PreconditionError as error:
        assert "If" in str(error)  # noqa: PT017 - refusing is as right as following
    else:
        as_declared(small, X)


BRANCHED = (
    "y = If<then_branch = a () => (float[n,10] p) { p = MatMul(x, w) },"
    " else_branch = e () => (float[n,10] r) { r = MatMul(x, v) }>(c) }"
)


def test_a_head_in_a_branch():
    """The other branch still gives 10, and y is declared to."""
    model = made(f"g (bool c, float[n,8] x) => (float[n,10] y) {{ {BRANCHED}", w=(8, 10), v=(8, 10))
    assert "If" in refused(model, "MatMul_p")


def test_heads_in_branches_are_not_overlooked():
    """The layer that computes the condition was taken for the head, and replaced."""
    model = inferred(
        made(
            "g (float[n,8] x) => (float[n,10] y)"
            "{ k = MatMul(x, u)  z = ReduceSum(k)  c = Cast<to = 9>(z)  " + BRANCHED,
            w=(8, 10),
            v=(8, 10),
            u=(8, 3),
        )
    )
    text = refused(model)
    assert "MatMul_p" in text
    assert "MatMul_r" in text


# -- Conv heads -----------------------------------------------------------------------------------

POOLED = {
    "GlobalAveragePool and Flatten": (
        "r = Relu(c)  p = GlobalAveragePool(r)  y = Flatten(p)",
        "n,10",
    ),
    "GlobalMaxPool": ("y = GlobalMaxPool(c)", "n,10,1,1"),
    "AveragePool": ("y = AveragePool<kernel_shape = [4, 4]>(c)", "n,10,1,1"),
    "MaxPool and Flatten": ("p = MaxPool<kernel_shape = [4, 4]>(c)  y = Flatten(p)", "n,10"),
    "GlobalAveragePool and Reshape": ("p = GlobalAveragePool(c)  y = Reshape(p, s)", "n,10"),
}


@pytest.mark.parametrize("name", POOLED)
def test_conv_heads_are_pooled(name: str) -> None:
    """SqueezeNet: a 1x1 Conv is the head, and its map is averaged and flattened."""
    tail, out = POOLED[name]
    stored = {"s": np.array([0, -1])} if "Reshape" in name else {}
    model = inferred(
        made(
            f"g (float[n,8,4,4] x) => (float[{out}] y) {{ c = Conv(x, w, b)  {tail} }}",
            w=(10, 8, 1, 1),
            b=(10,),
            **stored,
        )
    )
    assert as_declared(replaced(model), {"x": rows(2, 8, 4, 4)})["y"].shape[1] == 15


@pytest.mark.parametrize("tail", ["y = Flatten(c)", "y = Reshape(c, s)"])
def test_a_full_conv_s_ones_are_flattened(tail: str) -> None:
    stored = {"s": np.array([0, -1])} if "Reshape" in tail else {}
    model = inferred(
        made(
            f"g (float[n,8,4,4] x) => (float[n,10] y) {{ c = Conv(x, w)  {tail} }}",
            w=(10, 8, 4, 4),
            **stored,
        )
    )
    assert as_declared(replaced(model), {"x": rows(2, 8, 4, 4)})["y"].shape == (2, 15)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"out_features": 2.5},
        {"out_features": "7"},
        {"out_features": True},
        {"lr_factor": -1},
        {"lr_factor": float("nan")},
        {"lr_factor": float("inf")},
        {"lr_factor": "10"},
        {"lr_factor": 10**400},
        {"bias_lr_factor": -1},
        {"seed": -1},
        {"out_features": 10**15},
        {"init": [[1.0, 2.0], [3.0]]},
        {"bias": "none"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    """TypeErrors from numpy, or a factor that is stored and read back as 1."""
    assert refused(made(LINEAR, w=(8, 10)), **options)


def test_values_that_overflow_the_head_s_dtype():
    model = made(
        "g (float16[n,8] x) => (float16[n,10] y) { y = MatMul(x, w) }",
        w=rows(8, 10).astype(np.float16),
    )
    assert "init" in refused(model, init=np.full((15, 8), 1e9))


def test_a_parameter_s_name_selects_its_layer():
    model = made(LINEAR, w=(8, 10))
    assert as_declared(tieops.replace_head(model, "w", out_features=15), X)["y"].shape == (2, 15)


def test_an_add_of_a_constant_behind_the_bias_is_baked_in():
    """The second Add is taken for a layer of its own, and the error names no baked size."""
    model = head_on("y = Add(k, c)", c=(10,))
    text = refused(model)
    assert "Add" in text
    assert "10" in text


def test_what_the_old_head_read_is_reported_and_nothing_else():
    """Under the name it had, whatever that is; and no sizes that a Reshape downstream read."""
    model = made(
        "g (float[2,8] x) => (float[n,10] y) { h = MatMul(x, val_3)  k = Add(h, tail)"
        " y = Reshape(k, sizes) }",
        val_3=(8, 10),
        tail=(10,),
        sizes=np.array([-1, 10]),
    )
    _, result = run(ReplaceHeadPass(out_features=15, name="fc"), model)
    assert [change.target for change in result.changes[1:]] == [
        "initializer val_3",
        "initializer tail",
    ]
    again, _ = run(ReplaceHeadPass(out_features=15), tieops.replace_head(model, out_features=12))
    _, result = run(ReplaceHeadPass(out_features=9), again)
    assert [change.target for change in result.changes[1:]] == [
        f"initializer {slot.name}" for slot in again.slots
    ]


def test_names_from_a_file_are_printed_safely():
    proto = onnx_ir.to_proto(made(LINEAR, w=(8, 10)).ir)
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "fc\x1b[31m.weight"
    _, result = run(ReplaceHeadPass(out_features=15), tieops.from_onnx(proto))
    assert all(str(change).isprintable() for change in result.changes)
    assert "fc\\x1b" in str(result.changes[0])
