"""Untie: every form of sharing comes apart, exactly, under the right names, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import parser

import tieops
from tests.support.checked_passes import all_freed, and_back, freed
from tests.support.golden_graphs import CASES, load
from tests.support.graphs import CONSTANT, IDS, made, rows
from tests.support.model_facts import (
    Arrays,
    dead,
    homes,
    operators,
    outputs,
    same_bits,
    serialized,
    ties_of,
    unread,
)
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.metadata.keys import set_lr_factor
from tieops.model import TiedModel
from tieops.passes.base import Preserves, run
from tieops.passes.untie import UntiePass

X = rows(2, 8)


def written_outputs(model: tieops.TiedModel, path: Path, feeds: Arrays) -> dict[str, np.ndarray]:
    """Run what ``to_onnx`` writes in its default form, with packing and all."""
    written = tieops.to_onnx(model, path)
    return dict(tieops.session(written, provider="cpu", optimize=False).run(dict(feeds)))


# -- every form of sharing ------------------------------------------------------------------------

EMBEDDING = "g (int64[4] ids) => (float[4,12] y) { h = Gather(emb, ids) "


def test_one_initializer_with_many_readers():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) {"
        " h = MatMul(x, w)  i = MatMul(h, w)  y = MatMul(i, w) }",
        w=(8, 8),
    )
    free = and_back(model, {"x": X})
    assert homes(free) == {
        "MatMul_h.weight": "w",
        "MatMul_i.weight": "MatMul_i.weight",
        "MatMul_y.weight": "MatMul_y.weight",
    }


def test_transpose_is_applied_to_the_values_and_goes():
    model = made(EMBEDDING + "t = Transpose(emb)  y = MatMul(h, t) }", emb=(12, 8))
    free = and_back(model, {"ids": IDS})
    assert operators(free) == ["Gather", "MatMul"]
    emb, head = (each.numpy() for each in free.parameters)
    assert head.shape == (8, 12)
    assert np.array_equal(head, emb.T)


def test_identities_and_transposes_that_nobody_reads_go():
    model = made(
        EMBEDDING + "a = Identity(emb)  t = Transpose(a)  b = Identity(t)  y = MatMul(h, b) }",
        emb=(12, 8),
    )
    assert operators(and_back(model, {"ids": IDS})) == ["Gather", "MatMul"]


def test_a_transpose_that_another_reads_stays():
    model = made(
        "g (int64[4] ids) => (float[4,12] y, float[8,12] w)"
        "{ h = Gather(emb, ids)  w = Transpose(emb)  y = MatMul(h, w) }",
        emb=(12, 8),
    )
    free = and_back(model, {"ids": IDS})
    assert operators(free) == ["Gather", "Transpose", "MatMul"]
    assert [value.name for value in free.ir.graph.outputs] == ["y", "w"]


def test_gemm_that_transposes_by_itself():
    model = made(EMBEDDING + "y = Gemm<transB = 1>(h, emb, bias) }", emb=(12, 8), bias=(12,))
    free = and_back(model, {"ids": IDS})
    assert homes(free)["Gemm_y.weight"] == "Gemm_y.weight"
    assert [each.shape for each in free.parameters] == [(12, 8), (12,), (12, 8)]


def test_cast_is_read_through_a_copy_of_its_own():
    half = rows(8, 8).astype(np.float16)
    model = made(
        "g (float[2,8] x) => (float[2,8] y)"
        "{ c = Cast<to = 1>(w)  t = Transpose(c)  h = MatMul(x, t)  y = MatMul(h, c) }",
        w=half,
    )
    free = and_back(model, {"x": X})
    assert [str(each) for each in free.parameters] == ["w: f16[8,8]", "MatMul_y.weight: f16[8,8]"]
    assert operators(free).count("Cast") == 2


def test_moves_before_a_cast_are_applied_to_what_is_stored():
    half = rows(12, 8).astype(np.float16)
    model = made(
        "g (int64[4] ids) => (float[4,12] y) { e = Cast<to = 1>(emb)  h = Gather(e, ids)"
        " t = Transpose(emb)  c = Cast<to = 1>(t)  y = MatMul(h, c) }",
        emb=half,
    )
    free = and_back(model, {"ids": IDS})
    assert sorted(operators(free)) == ["Cast", "Cast", "Gather", "MatMul"]
    assert np.array_equal(free.parameters[1].numpy(), half.T)


def test_bfloat16_stays_what_it_is():
    brain = rows(8, 8).astype(ml_dtypes.bfloat16)
    model = made(
        "g (float[2,8] x) => (float[2,8] y)"
        "{ c = Cast<to = 1>(w)  h = MatMul(x, c)  d = Cast<to = 1>(w)  y = MatMul(h, d) }",
        w=brain,
    )
    free = and_back(model, {"x": X})
    assert [each.dtype.name for each in free.parameters] == ["BFLOAT16", "BFLOAT16"]


def test_constant_nodes():
    values = ", ".join(str(each) for each in rows(64).tolist())
    model = made(
        f"g (float[2,8] x) => (float[2,8] y) {{ w = Constant<value = float[8,8] {{{values}}}>()"
        " t = Transpose(w)  h = MatMul(x, t)  y = MatMul(h, w) }"
    )
    free = all_freed(model, {"x": X})
    assert [each.is_constant_node for each in free.parameters].count(True) == 1


@pytest.mark.parametrize("taken", [True, False])
def test_if_captures(taken: bool):
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y) { t = Transpose(w)"
        " y = If<then_branch = a () => (float[2,8] p) { p = MatMul(x, t) },"
        " else_branch = b () => (float[2,8] q) { q = MatMul(x, w) }>(c) }",
        w=(8, 8),
    )
    free = and_back(model, {"x": X, "c": np.array(taken)})
    assert homes(free)["MatMul_q.weight"] == "MatMul_q.weight"


def test_loop_captures():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) {"
        " h = Loop<body = b (int64 i, bool k, float[2,8] s) => (bool l, float[2,8] r)"
        " { l = Identity(k)  t = Transpose(w)  r = MatMul(s, t) }>(n, , x)"
        " y = MatMul(h, w) }",
        w=(8, 8),
        n=np.array(2),
    )
    assert "Transpose" not in operators(and_back(model, {"x": X}))


def test_scan_captures():
    model = made(
        "g (float[3,8] x) => (float[3,8] y) {"
        " h = Scan<num_scan_inputs = 1, body = b (float[8] s) => (float[8] r)"
        " { r = MatMul(s, w) }>(x)  y = MatMul(h, w) }",
        w=(8, 8),
    )
    and_back(model, {"x": rows(3, 8)})


def test_weight_as_input_of_a_function_that_is_called_again():
    model = made(
        "g (float[2,8] x) => (float[2,8] y){ h = f.lin(x, w)  i = f.lin(h, w)  y = f.lin(i, w) }",
        ["lin (a, v) => (o) { o = MatMul(a, v) }"],
        w=(8, 8),
    )
    free = and_back(model, {"x": X})
    assert len(free.ir.functions) == 1
    assert len({*free.ir.graph.initializers}) == 3


def test_weight_as_input_of_a_function_that_transposes_it():
    model = made(
        "g (float[2,8] x) => (float[2,8] y)"
        "{ t = Transpose(w)  h = f.lin(x, t)  i = MatMul(h, t)  y = MatMul(i, w) }",
        ["lin (a, v) => (o) { u = Transpose(v)  o = MatMul(a, u) }"],
        w=(8, 8),
    )
    all_freed(model, {"x": X})


def test_calls_in_branches():
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y) {"
        " y = If<then_branch = a () => (float[2,8] p) { k = f.lin(x, w)  p = f.lin(k, w) },"
        " else_branch = b () => (float[2,8] q) { q = f.lin(x, w) }>(c) }",
        ["lin (a, v) => (o) { o = MatMul(a, v) }"],
        w=(8, 8),
    )
    for taken in (True, False):
        and_back(model, {"x": X, "c": np.array(taken)})


def test_constant_inside_a_function_that_is_called_again():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = f.lin(x)  i = f.lin(h)  y = f.lin(i) }",
        ["lin (a) => (o) { " + CONSTANT + "o = MatMul(a, w) }"],
    )
    free = and_back(model, {"x": X})
    assert not free.ir.functions  # a body has one Constant for all of its calls


def test_constant_in_a_branch_inside_a_function_that_is_called_again():
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y) { h = f.lin(x, c)  y = f.lin(h, c) }",
        [
            "lin (a, c) => (o) { o = If<then_branch = t () => (float[2,8] p)"
            " { " + CONSTANT + "p = MatMul(a, w) },"
            " else_branch = e () => (float[2,8] q) { q = Identity(a) }>(c) }"
        ],
    )
    and_back(model, {"x": X, "c": np.array(True)})


def test_one_weight_that_a_function_reads_twice():
    """Both readers are behind one input of one call, which is inlined."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { y = f.outer(x, w) }",
        [
            "lin (a, v) => (o) { o = MatMul(a, v) }",
            "outer (a, v) => (o) { b = f.lin(a, v)  o = f.lin(b, v) }",
        ],
        w=(8, 8),
    )
    and_back(model, {"x": X})


def test_one_of_two_readers_behind_one_input_leaves():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = f.two(x, w)  y = f.two(h, w) }",
        ["two (a, v) => (o) { t = Transpose(v)  b = MatMul(a, t)  o = MatMul(b, v) }"],
        w=(8, 8),
    )
    leaving = model.slots[1].name
    free = freed(model, {"x": X}, leaving)
    assert len(free.ties) == 1
    assert leaving not in [slot.name for slot in free.ties[0].slots]
    and_back(model, {"x": X})


RETURNED = [
    "turn (v) => (o) { o = Transpose(v) }",
    "two (a, v) => (o) { t = f.turn(v)  b = MatMul(a, t)  o = MatMul(b, t) }",
]


def test_readers_of_what_an_inner_function_returns_leave_alone():
    model = made("g (float[2,8] x) => (float[2,8] y) { y = f.two(x, w) }", RETURNED, w=(8, 8))
    and_back(model, {"x": X})
    free = freed(model, {"x": X}, model.slots[0])
    assert not free.ties
    assert homes(free)["two/MatMul_o.weight"] == "w"


@pytest.mark.parametrize("together", [False, True])
def test_readers_of_what_an_inner_function_returns_leave_one_that_stays(together: bool):
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = f.two(x, w)  y = MatMul(h, w) }",
        RETURNED,
        w=(8, 8),
    )
    inner = [slot for slot in model.slots if slot.path]
    assert len(inner) == 2
    free = freed(model, {"x": X}, *inner, together=together)
    assert [len(tie.slots) for tie in free.ties] == [2] * together
    assert homes(free)["MatMul_y.weight"] == "w"


def test_slot_that_reads_parts_joined_keeps_the_parts_if_it_comes_first():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,4] z, float[2,4] v)"
        "{ c = Concat<axis = 1>(p, q)  y = MatMul(x, c)  z = MatMul(x, p)  v = MatMul(x, q) }",
        p=(8, 4),
        q=(8, 4),
    )
    free = and_back(model, {"x": X})
    assert len(free.parameters) == 4


def test_module_that_is_called_again_owns_three_tensors_a_call():
    model = made(
        "g (float[5,2,8] x) => (float[5,1,2,4] y, float[5,1,2,4] z)"
        "{ y = LSTM<hidden_size = 4>(x, W, R, B)  z = LSTM<hidden_size = 4>(x, W, R, B) }",
        W=(1, 16, 8),
        R=(1, 16, 4),
        B=(1, 32),
    )
    free = and_back(model, {"x": rows(5, 2, 8)})
    assert len(free.parameters) == 6


def test_one_node_that_reads_one_tensor_twice():
    model = made("g (float[2,8] x) => (float[2,8] y) { y = LayerNormalization(x, a, a) }", a=(8,))
    free = and_back(model, {"x": X})
    assert homes(free)["LayerNormalization_y.bias"] == "LayerNormalization_y.bias"


# -- who leaves -----------------------------------------------------------------------------------


def three() -> tieops.TiedModel:
    return made(
        "g (int64[4] ids) => (float[4,8] y, float[4,8] z)"
        "{ h = Gather(w, ids)  t = Transpose(w)  y = MatMul(h, t)  z = MatMul(h, w) }",
        w=(8, 8),
    )


def layer(model: tieops.TiedModel, name: str) -> Any:
    return next(each for each in model.layers if each.name == name)


@pytest.mark.parametrize(
    "target",
    [
        "MatMul_y",
        "MatMul_y.weight",
        "*_y",
        "MatMul_[y]*",
        lambda slot: slot.layer == "MatMul_y",
        lambda slot: "transpose" in str(slot.view),
    ],
)
def test_one_slot_leaves_and_the_others_stay(target):
    free = freed(three(), {"ids": IDS}, target)
    assert ties_of(free) == {"w": [["Gather_h.weight", "MatMul_z.weight"]]}
    assert homes(free)["MatMul_y.weight"] == "MatMul_y.weight"
    assert "Transpose" not in operators(free)


def test_objects_of_the_model_are_targets():
    model = three()
    by_name = freed(model, {"ids": IDS}, "MatMul_y")
    slot = next(each for each in model.slots if each.layer == "MatMul_y")
    for target in (layer(model, "MatMul_y"), slot):
        assert serialized(tieops.untie(model, target).ir) == serialized(by_name.ir)


def test_two_leave_apart():
    free = freed(three(), {"ids": IDS}, "MatMul_y", "MatMul_z")
    assert not free.ties
    assert len(free.parameters) == 3


def test_the_first_one_can_be_the_one_that_leaves():
    free = freed(three(), {"ids": IDS}, "Gather_h")
    assert ties_of(free) == {"w": [["MatMul_y.weight", "MatMul_z.weight"]]}


def test_all_named_is_as_none_named():
    model = three()
    everyone = tieops.untie(model, "Gather_h", "MatMul_y", "MatMul_z")
    assert serialized(everyone.ir) == serialized(tieops.untie(model).ir)
    assert serialized(tieops.untie(model, "w").ir) == serialized(everyone.ir)


def test_two_leave_together_and_share_one_new_tensor():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z)"
        "{ h = MatMul(x, w)  t = Transpose(w)  y = MatMul(h, t)  z = MatMul(h, t) }",
        w=(8, 8),
    )
    free = freed(model, {"x": X}, "MatMul_y", "MatMul_z", together=True)
    (tie,) = free.ties
    assert len(tie.slots) == 2
    assert tie.parameter.name == "MatMul_y.weight"
    assert np.array_equal(tie.parameter.numpy(), model.parameters[0].numpy().T)
    assert free.ledger.stored_bytes == 2 * model.ledger.stored_bytes


def test_together_through_different_views_keeps_the_views():
    free = freed(three(), {"ids": IDS}, "MatMul_y", "MatMul_z", together=True)
    (tie,) = free.ties
    assert [slot.view.permutation for slot in tie.slots] == [(1, 0), (0, 1)]
    assert len(free.parameters) == 2
    assert operators(free).count("Transpose") == 1


# -- names ----------------------------------------------------------------------------------------


def test_a_taken_name_is_not_taken_again():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w)  k = Add(h, v)  y = MatMul(k, w) }",
        w=(8, 8),
        v=(8,),
    )
    graph = model.clone()
    graph.graph.initializers["v"].name = "MatMul_y.weight"
    renamed = tieops.from_onnx(graph)
    free = freed(renamed, {"x": X}, lambda slot: slot.node.outputs[0].name == "y")
    assert len({*free.ir.graph.initializers}) == 3


def test_learn_rate_factor_goes_with_those_who_leave():
    model = three()
    graph = model.clone()
    set_lr_factor(graph.graph.initializers["w"], 10.0)
    free = tieops.untie(tieops.from_onnx(graph))
    assert {each.lr_factor for each in free.parameters} == {10.0}
    assert len(free.parameters) == 3


# -- what is refused ------------------------------------------------------------------------------


def refused(model: tieops.TiedModel, *targets: Any) -> str:
    before = serialized(model.ir)
    with pytest.raises(tieops.TieopsError) as caught:
        tieops.untie(model, *targets)
    assert serialized(model.ir) == before
    return str(caught.value)


def test_what_is_not_tied():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w)  y = MatMul(h, v) }",
        w=(8, 8),
        v=(8, 8),
    )
    with pytest.raises(PreconditionError, match=r"MatMul_y\.weight is not tied"):
        tieops.untie(model, "MatMul_y")
    text = refused(model, "MatMul_y")
    assert "reads: v: f32[8,8]    ties: 0" in text
    assert "fix: see print(model.ties)" in text
    assert serialized(tieops.untie(model).ir) == serialized(model.ir)


def test_one_that_is_tied_beside_one_that_is_not():
    model = made(
        "g (float[2,8] x) => (float[2,8] y)"
        "{ h = MatMul(x, w)  i = MatMul(h, w)  y = MatMul(i, v) }",
        w=(8, 8),
        v=(8, 8),
    )
    assert "MatMul_y.weight is not tied" in refused(model, "MatMul_i", "MatMul_y")


def test_wrong_names_list_near_ones():
    with pytest.raises(SelectionError):
        tieops.untie(three(), "Matmul_y")
    text = refused(three(), "Matmul_y")
    assert "nothing in the model is named Matmul_y" in text
    assert "nearest: MatMul_y" in text


@pytest.mark.parametrize("target", ["", "nothing*", lambda slot: False, None, 5, ["MatMul_y"]])
def test_targets_that_select_nothing(target):
    assert refused(three(), target)


def test_what_a_caller_may_override():
    model = made(
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { h = MatMul(x, w)  y = MatMul(h, w) }",
        w=(8, 8),
    )
    text = refused(model, "MatMul_y")
    assert "cannot untie MatMul_y.weight" in text
    assert "a graph input too, which a caller may override" in text
    free, result = run(UntiePass(), model)
    assert serialized(free.ir) == serialized(model.ir)
    assert "which a caller may override" in str(result.skips[0])


# -- the pass -------------------------------------------------------------------------------------


def test_what_was_done_is_reported():
    _, result = run(UntiePass(targets=("MatMul_y",)), three())
    assert [str(change) for change in result.changes] == [
        "MatMul_y.weight: owns MatMul_y.weight: f32[8,8], 256 B"
    ]
    assert result.modified
    assert UntiePass.preserves == Preserves.SIGNATURE | Preserves.BITS


def test_old_ir_versions_get_initializers_of_their_own():
    proto = parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 9]> g (float[2,8] x) => (float[2,8] y)'
        "{ t = Transpose(w)  h = MatMul(x, t)  y = MatMul(h, w) }"
    )
    values = ", ".join(map(str, rows(64).tolist()))
    constant = parser.parse_node(f"w = Constant<value = float[8,8] {{{values}}}>()")
    proto.graph.node.insert(0, constant)
    free = freed(tieops.from_onnx(proto), {"x": X})
    assert free.ir.ir_version == 4


def test_weights_are_not_copied(tmp_path):
    model = made(EMBEDDING.replace("12]", "512]") + "y = Gemm<transB = 1>(h, emb) }", emb=(512, 8))
    written = tieops.to_onnx(model, tmp_path / "tied.onnx", external_data=True)
    free = tieops.untie(tieops.from_onnx(written))
    emb, head = (each.numpy() for each in free.parameters)
    assert np.shares_memory(emb, head)
    assert free.ledger.stored_bytes == 2 * emb.nbytes


@pytest.mark.parametrize("tie_form", ["gemm", "portable"])
@pytest.mark.parametrize("external", [True, False])
def test_the_file_holds_what_each_slot_reads(tmp_path, tie_form, external):
    model = made(
        "g (int64[n,4] ids) => (float[n,4,50] y)"
        "{ h = Gather(emb, ids)  t = Transpose(emb)  y = MatMul(h, t) }",
        emb=(50, 8),
    )
    free = tieops.untie(model)
    written = tieops.to_onnx(
        free, tmp_path / "free.onnx", tie_form=tie_form, external_data=external
    )
    again = tieops.from_onnx(written)
    assert not again.ties
    assert sum(each.nbytes for each in again.parameters) == 2 * 50 * 8 * 4
    assert sum(each.nbytes for each in again.parameters) == sum(
        slot.logical_bytes for slot in again.slots
    )
    back = tieops.tie(again)
    assert sum(each.nbytes for each in back.parameters) == 50 * 8 * 4
    feeds = {"ids": np.arange(8).reshape(2, 4)}
    want = written_outputs(model, tmp_path / "tied.onnx", feeds)
    for other in (free, again, back):
        got = written_outputs(other, tmp_path / "other.onnx", feeds)
        if tie_form == "gemm":
            assert got["y"].tobytes() == want["y"].tobytes()
        else:
            np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5, atol=1e-6)


GOLDEN_TIED = [
    case
    for case in CASES
    if len(TiedModel(load(case, "before")).ties)
    and "slices" not in case
    and case not in ("c_dequantize_feeds_many", "h_lstm_gates")
]


@pytest.mark.parametrize("case", GOLDEN_TIED)
def test_every_tied_fixture_comes_apart(case: str, plain_runtime: Any) -> None:
    model = TiedModel(load(case, "before"))
    free = tieops.untie(model)
    onnx.checker.check_model(onnx_ir.to_proto(free.ir), full_check=True)
    assert not [tie for tie in free.ties if not tie.parameter.is_overridable]
    assert not unread(free)
    assert not dead(free)
    for seed in (0, 1):
        feeds = plain_runtime.feeds(model.ir, seed)
        want, got = outputs(model, feeds), outputs(free, feeds)
        assert same_bits([*got.values()], [*want.values()])
