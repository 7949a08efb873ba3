"""Untie through functions: which calls are inlined, and which stay calls."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

import tieops
from tests.support.checked_passes import all_freed, and_back, freed
from tests.support.graphs import CONSTANT, made, rows
from tests.support.model_facts import facts, homes, outputs, same_bits, ties_of, unread
from tieops.passes.base import run
from tieops.passes.tie import TiePass
from tieops.passes.untie import UntiePass

X = rows(2, 8)

TWICE = "twice (a, v) => (o) { b = MatMul(a, v)  o = MatMul(b, v) }"


def test_a_call_may_leave_out_what_another_hands_in():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z) { y = f.lin(x, w, v)  z = f.lin(x, w) }",
        ["lin (a, w, v) => (o) { b = Gemm(a, w, v)  o = Gemm(b, w, v) }"],
        w=(8, 8),
        v=(8,),
    )
    free = tieops.untie(model)
    assert not free.ties
    assert sorted(p.nbytes for p in free.parameters) == [32, 32, 256, 256, 256, 256]
    assert facts(tieops.tie(free, include_small=True)) == facts(model)
    want, got = outputs(model, {"x": X}), outputs(free, {"x": X})
    assert all(np.array_equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize(
    "given",
    [
        "n = Neg(u)",
        "n = Concat<axis = 0>(u)",
        "n = f.same(u)",
        "r = RandomNormal<shape = [8, 8]>()  n = Sub(r, r)",
        "c = Constant<value_float = 2.0>()  s = Constant<value_ints = [8, 8]>()  n = Expand(c, s)",
    ],
)
def test_another_call_hands_in_what_its_body_computes(given: str):
    model = made(
        "g (float[2,8] x, float[8,8] u) => (float[2,8] y) { y = f.outer(x, w, u) }",
        [
            TWICE,
            "same (a) => (o) { o = Sin(a) }",
            f"outer (a, w, u) => (o) {{ b = f.twice(a, w)  {given}  o = f.twice(b, n) }}",
        ],
        w=(8, 8),
    )
    feeds = {"x": X, "u": rows(8, 8)}
    free = tieops.untie(model)
    assert not free.ties
    assert not unread(free)
    assert facts(tieops.tie(free)) == facts(model)
    # The call that nothing leaves of stays one, and what it is handed in is computed once.
    assert [n.op_type for n in free.ir.graph].count("twice") == 1
    assert [key[1] for key in free.ir.functions if key[1] != "same"] == ["twice"]
    assert np.array_equal(outputs(free, feeds)["y"], outputs(model, feeds)["y"])


def test_a_function_may_return_the_tensor_that_is_taken_out_of_it():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h, k = f.both(x)  y = MatMul(h, k) }",
        ["both (a) => (o, w) { " + CONSTANT + "b = MatMul(a, w)  o = MatMul(b, w) }"],
    )
    and_back(model, {"x": X})


def test_a_branch_in_a_function_may_return_it():
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y) { y = f.both(x, c) }",
        [
            "both (a, c) => (o) { " + CONSTANT + "b = MatMul(a, w)  k = If(c) <"
            "then_branch = t () => (p) { p = Neg(w) }, else_branch = e () => (q) {"
            + CONSTANT.replace("w =", "q =")
            + "r = Neg(q) }>  o = MatMul(b, k) }"
        ],
    )
    freed(model, {"x": X, "c": np.array(False)})


def test_a_constant_that_an_inner_function_returns_is_taken_out_of_it():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { y = f.outer(x) }",
        [
            "inner (a) => (w) { " + CONSTANT + "}",
            "outer (a) => (o) { k = f.inner(a)  b = MatMul(a, k)  o = MatMul(b, k) }",
        ],
    )
    and_back(model, {"x": X})
    assert not freed(model, {"x": X}, model.slots[1]).ties


def test_functions_that_stand_in_for_operators_keep_their_inputs():
    """A runtime that has the operator would refuse the call; so what is read through it stays."""
    proto = onnx_ir.to_proto(made("g (float[2,8] x) => (float[2,8] y) { y = f.BiasGelu(x, w) }", [
        "BiasGelu (a, v) => (o) { b = Add(a, v)  o = Mul(b, v) }"], w=(8,)).ir)  # fmt: skip
    proto.graph.node[0].domain = proto.functions[0].domain = "com.microsoft"
    proto.opset_import[1].domain = "com.microsoft"
    model = tieops.from_onnx(proto)
    free, result = run(UntiePass(), model)
    assert ties_of(free) == ties_of(model)
    assert not result.modified
    assert result.skips
    outputs(free, {"x": X})


def test_a_slice_within_a_function_is_all_that_is_stored():
    model = made(
        "g (float[2,8] x) => (float[2,4] y, float[2,4] z) { y = f.half(x, w)  z = f.half(x, w) }",
        [
            "half (a, v) => (o) { s = Constant<value_ints = [2]>()"
            " e = Constant<value_ints = [6]>()  d = Constant<value_ints = [1]>()"
            " c = Slice(v, s, e, d)  o = MatMul(a, c) }"
        ],
        w=(8, 8),
    )
    free = all_freed(model, {"x": X})
    assert sorted(homes(free).values()) == ["half/MatMul_o.weight", "half/MatMul_o@1.weight"]
    _, result = run(TiePass(), free)
    assert [str(each) for each in result.skips] == [
        f"{name}: not changed, what else w held is gone, so equal parts are tied under a name of "
        "theirs"
        for name in ("half/MatMul_o.weight", "half/MatMul_o@1.weight")
    ]


FRONT = "s = Constant<value = int64[1] {0}>() e = Constant<value = int64[1] {4}>()"
HALVES = {
    "rows": f"half (a, v) => (o) {{ {FRONT} c = Slice(v, s, e, s)  o = MatMul(a, c) }}",
    "turned": f"half (a, v) => (o) {{ t = Transpose(v) {FRONT} c = Slice(t, s, e, s)"
    "  o = MatMul(a, c) }",
    "behind": f"half (a, v) => (o) {{ {FRONT} d = Constant<value = int64[1] {{1}}>()"
    " c = Slice(v, s, e, d) t = Transpose(c)  o = MatMul(a, t) }",
    "split": "half (a, v) => (o) { c, d = Split<axis = 0, num_outputs = 2>(v)  o = MatMul(a, d) }",
    "flat": "half (a, v) => (o) { s = Constant<value_ints = [16]>()"
    " e = Constant<value_ints = [48]>() z = Constant<value_ints = [0]>()"
    " f = Constant<value_ints = [-1]>() r = Reshape(v, f)"
    " c = Slice(r, s, e, z) q = Constant<value_ints = [4, 8]>() k = Reshape(c, q)"
    "  o = MatMul(a, k) }",
}


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("half", HALVES)
def test_who_leaves_owns_just_what_the_function_reads(half: str, outer: bool):
    """The other call stays one; what is inlined has operands of its own."""
    call = "outer" if outer else "half"
    model = made(
        "g (float[2,8] x, float[2,4] r, float[8,8] u) => (float[2,8] y) {"
        f" h = MatMul(x, w)  i = f.{call}(r, w)  j = f.half(r, u)  k = Add(i, j)  y = Add(h, k) }}",
        [HALVES[half], "outer (a, v) => (o) { t = Identity(v)  o = f.half(a, t) }"],
        w=(8, 8),
    )
    feeds = {"x": X, "r": rows(2, 4), "u": rows(8, 8)}
    free = all_freed(model, feeds)
    assert [key[1] for key in free.ir.functions] == ["half"]
    again = tieops.tie(free)
    assert facts(again)[:2] == facts(model)[:2]
    assert [p.nbytes for p in again.parameters] == [p.nbytes for p in model.parameters]
    assert same_bits([*outputs(again, feeds).values()], [*outputs(model, feeds).values()])


def test_a_slice_in_a_branch_of_a_function_is_all_that_is_stored():
    model = made(
        "g (float[2,8] x, bool c) => (float[2,8] y) { h = MatMul(x, w)  y = f.some(h, w, c) }",
        [
            "some (a, v, c) => (o) { o = If(c) <then_branch = t () => (p) {"
            " s = Constant<value_ints = [0]>() e = Constant<value_ints = [2]>()"
            " k = Slice(v, s, e, s)  p = Add(a, k) }, else_branch = e () => (q) { q = Neg(a) }> }"
        ],
        w=(8, 8),
    )
    free = and_back(model, {"x": X, "c": np.array(True)})
    assert sorted(p.shape for p in free.parameters) == [(2, 8), (8, 8)]


def test_a_slice_of_what_a_function_returns_comes_back():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h, k = f.both(x, w)"
        " s = Constant<value_ints = [6]>() e = Constant<value_ints = [-100]>()"
        " z = Constant<value_ints = [0]>() b = Constant<value_ints = [-3]>()"
        " c = Slice(k, s, e, z, b)  q = Constant<value_ints = [2]>()"
        " d = Slice(c, z, q, z)  y = Add(h, d) }",
        ["both (a, w) => (o, k) { o = MatMul(a, w)  k = Transpose(w) }"],
        w=(8, 8),
    )
    and_back(model, {"x": X})


def test_a_weight_that_is_computed_after_a_move_keeps_the_move_in_its_values():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { y = f.all(x, w) }",
        [
            "all (a, v) => (o) { t = Transpose(v)  h = MatMul(a, t)  i = MatMul(h, v)"
            "  n = Neg(t)  o = MatMul(i, n) }"
        ],
        w=(8, 8),
    )
    and_back(model, {"x": X})


def test_a_body_with_a_constant_of_its_own_behind_a_call_that_is_inlined_first():
    k = "k = Constant<value = float[2,8] {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}>()"
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { y = f.outer(x, w) }",
        [
            f"inner (a, v) => (o) {{ {k}  b = Add(a, k)  o = MatMul(b, v) }}",
            "outer (a, v) => (o) { t = Transpose(v)  h = MatMul(a, t)  i = f.inner(h, v)"
            "  o = MatMul(i, v) }",
        ],
        w=(8, 8),
    )
    and_back(model, {"x": X})


def test_all_calls_on_the_path_of_a_slot_are_inlined_where_one_input_serves_several():
    """Only those: another call of the same inner function stays one."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w)  i = f.lin(h, u)"
        "  y = f.outer(i, w) }",
        [
            "lin (a, v) => (o) { o = MatMul(a, v) }",
            "outer (a, v) => (o) { t = Transpose(v)  b = f.lin(a, t)  o = f.lin(b, t) }",
        ],
        w=(8, 8),
        u=(8, 8),
    )
    free = and_back(model, {"x": X})
    assert [key[1] for key in free.ir.functions] == ["lin"]
    assert [n.op_type for n in free.ir.graph].count("lin") == 1


RETURNS = "both (a, w, v) => (o, k) { b = MatMul(a, w)  o = MatMul(b, v)  k = Transpose(w) }"


def test_a_reader_within_a_function_leaves_one_that_reads_what_it_returns():
    """One input of the call serves both; giving it another tensor would move both."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h, k = f.both(x, w, v)  y = MatMul(h, k) }",
        [RETURNS],
        w=(8, 8),
        v=(8, 8),
    )
    inner = next(slot for slot in model.slots if slot.path)
    free = freed(model, {"x": X}, inner)
    assert not free.ties
    assert homes(free) == {
        "both/MatMul_b.weight": "both/MatMul_b.weight",
        "both/MatMul_o.weight": "v",
        "MatMul_y.weight": "w",
    }
    assert facts(tieops.tie(free)) == facts(model)
    and_back(model, {"x": X})


def test_what_a_call_returns_goes_into_the_next():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h, k = f.both(x, w, v)  y = f.twice(h, k) }",
        [RETURNS, TWICE],
        w=(8, 8),
        v=(8, 8),
    )
    and_back(model, {"x": X})


def test_a_constant_that_only_outer_readers_leave_is_taken_out():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h, k = f.held(x)  y = MatMul(h, k) }",
        ["held (a) => (o, k) { " + CONSTANT + "o = MatMul(a, w)  k = Identity(w) }"],
    )
    and_back(model, {"x": X})


@pytest.mark.parametrize("computed", ["n = Neg(k)", "n = f.turn(k)"])
def test_what_is_computed_behind_a_call_that_returns_the_weight_leaves_too(computed: str):
    """The body that returns it serves every call, so its nodes cannot be copied alone."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h, k = f.both(x, w)  "
        f"{computed}  i = MatMul(h, n)  y = MatMul(i, w) }}",
        [
            "both (a, w) => (o, k) { o = MatMul(a, w)  k = Identity(w) }",
            "turn (w) => (o) { o = Neg(w) }",
        ],
        w=(8, 8),
    )
    free = all_freed(model, {"x": X})
    assert len(free.parameters) == len(model.slots)
    assert facts(tieops.tie(free)) == facts(model)
