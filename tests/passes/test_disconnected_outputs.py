"""Removing outputs: what no input reaches, what is named, and all that only they kept alive."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.checked_passes import removed
from tests.support.graphs import IDS, made, rows
from tests.support.model_facts import left, operators, serialized, stored
from tieops.errors import PreconditionError, SelectionError
from tieops.passes.base import Preserves, run
from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass

X = {"x": rows(2, 8)}
CX = {**X, "c": np.array(True)}


# -- what no input reaches ------------------------------------------------------------------------


def matlab(name: str = '"emb/weights"') -> tieops.TiedModel:
    """The seed's embedding with a weights output, whose transpose has another reader."""
    return made(
        f"g (int64[n] ids) => (float[n,12] y, float[12,8] {name})"
        f"{{ h = Gather(emb, ids)  {name} = Identity(emb)  t = Transpose(emb)  y = MatMul(h, t) }}",
        emb=(12, 8),
    )


def test_matlab_s_weights_output_goes():
    small = removed(matlab(), {"ids": IDS})
    assert left(small) == ["y"]
    assert operators(small) == ["Gather", "Transpose", "MatMul"]
    assert stored(small) == ["emb"]


def test_a_stored_tensor_that_is_an_output_goes():
    model = made(
        "g (int64[n] ids) => (float[n,8] y, float[3,4] w) { y = Gather(emb, ids) }",
        emb=(12, 8),
        w=(3, 4),
    )
    assert stored(removed(model, {"ids": IDS})) == ["emb"]


def test_an_input_that_is_an_output_is_connected():
    model = made(
        "g (float[2,8] x, float[2,8] u) => (float[2,8] u, float[2,8] y, float[8,2] z)"
        "{ y = Relu(x)  z = Transpose(w) }",
        w=(2, 8),
    )
    assert left(removed(model, {**X, "u": rows(2, 8)})) == ["u", "y"]


def test_an_input_that_overrides_a_stored_tensor_does_not_connect():
    model = made(
        "g (float[2,8] x, float[2,8] w) => (float[2,8] y, float[8,2] z)"
        "{ y = Relu(x)  z = Transpose(w) }",
        w=(2, 8),
    )
    small = removed(model, X)
    assert left(small) == ["y"]
    assert [value.name for value in small.ir.graph.inputs] == ["x", "w"]
    smaller = removed(model, X, unused_inputs=True)
    assert [value.name for value in smaller.ir.graph.inputs] == ["x"]
    assert stored(smaller) == []


@pytest.mark.parametrize(
    "made_of",
    [
        "z = Shape(x)",
        "z = RandomNormal<shape = [2, 8], seed = 1.0>()",
        "z = RandomUniformLike<seed = 1.0>(w)",
        "z = Loop<body = b (int64 i, bool k, float[8,8] s) => (bool l, float[8,8] r)"
        " { l = Identity(k)  m = ReduceSum(x)  r = Add(s, m) }>(n, , w)",
    ],
)
def test_what_is_no_constant_stays(made_of: str) -> None:
    dtype = "int64[2]" if "Shape" in made_of else "float[a,b]"
    used = {"w": (8, 8)} if "w)" in made_of else {}
    used |= {"n": np.array(2)} if "(n," in made_of else {}
    model = made(
        f"g (float[2,8] x) => (float[2,8] y, {dtype} z) {{ y = Relu(x)  {made_of} }}", **used
    )
    small = tieops.remove_disconnected_outputs(model)
    assert serialized(small.ir) == serialized(model.ir)


def test_a_condition_from_outside_connects():
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y, float[8,8] z) { y = Relu(x)"
        " z = If<then_branch = a () => (float[8,8] p) { p = Identity(w) },"
        " else_branch = b () => (float[8,8] q) { q = Identity(v) }>(c) }",
        w=(8, 8),
        v=(8, 8),
    )
    assert left(removed(model, CX)) == ["y", "z"]


def test_a_loop_over_constants_goes_with_its_weights():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[8,8] z) { y = Relu(x)"
        " z = Loop<body = b (int64 i, bool k, float[8,8] s) => (bool l, float[8,8] r)"
        " { l = Identity(k)  r = MatMul(s, w) }>(n, , w) }",
        w=(8, 8),
        n=np.array(2),
    )
    small = removed(model, X)
    assert stored(small) == []
    assert operators(small) == ["Relu"]


def test_a_function_of_constants_goes():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[8,8] z) { y = Relu(x)  z = f.turn(w) }",
        ["turn (v) => (o) { o = Transpose(v) }"],
        w=(8, 8),
    )
    small = removed(model, X)
    assert not small.ir.functions
    assert stored(small) == []


# -- named ones -----------------------------------------------------------------------------------

THREE = (
    "g (float[2,8] x, float[2,8] u) => (float[2,8] a, float[2,8] b, float[2,8] c)"
    "{ h = MatMul(x, w)  a = MatMul(h, v)  b = MatMul(x, o)  c = MatMul(u, o) }"
)
SIZES: dict[str, Any] = {"w": (8, 8), "v": (8, 8), "o": (8, 8)}
XU = {**X, "u": rows(2, 8, seed=2)}


@pytest.mark.parametrize(
    ("options", "names", "tensors"),
    [
        ({"outputs": ["a"]}, ["b", "c"], ["o"]),
        ({"outputs": ["c", "b"]}, ["a"], ["w", "v"]),
        ({"keep": ["b"]}, ["b"], ["o"]),
        ({"keep": ["c", "a"]}, ["a", "c"], ["w", "v", "o"]),
        ({"keep": iter(["a"])}, ["a"], ["w", "v"]),
        ({"outputs": ("a", "a")}, ["b", "c"], ["o"]),
    ],
)
def test_named_outputs(options: Any, names: list[str], tensors: list[str]) -> None:
    small = removed(made(THREE, **SIZES), XU, **options)
    assert left(small) == names
    assert stored(small) == tensors
    assert [value.name for value in small.ir.graph.inputs] == ["x", "u"]


def test_unused_inputs_go_only_on_request():
    model = made(THREE, **SIZES)
    small = removed(model, XU, keep=["a"], unused_inputs=True)
    assert [value.name for value in small.ir.graph.inputs] == ["x"]
    _, result = run(RemoveDisconnectedOutputsPass(keep=("a",)), model)
    assert [str(skip) for skip in result.skips] == [
        "input u: not changed, nothing reads it; unused_inputs=True removes it"
    ]


def test_all_that_is_left_stays():
    model = made(THREE, **SIZES)
    assert serialized(tieops.remove_disconnected_outputs(model).ir) == serialized(model.ir)


# -- what only they kept alive --------------------------------------------------------------------


def test_an_if_goes_with_what_its_branches_capture():
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y, float[2,8] z) { y = Relu(x)"
        " z = If<then_branch = a () => (float[2,8] p) {"
        "  p = If<then_branch = a2 () => (float[2,8] p2) { p2 = MatMul(x, w) },"
        "  else_branch = b2 () => (float[2,8] q2) { q2 = MatMul(x, v) }>(c) },"
        " else_branch = b () => (float[2,8] q) { q = MatMul(x, v) }>(c) }",
        w=(8, 8),
        v=(8, 8),
    )
    small = removed(model, CX, outputs=["z"], unused_inputs=True)
    assert stored(small) == []
    assert operators(small) == ["Relu"]
    assert [value.name for value in small.ir.graph.inputs] == ["x"]


def test_dead_nodes_inside_a_branch_go():
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y, float[8,8] t) { t = Transpose(w)"
        " y = If<then_branch = a () => (float[2,8] p) { d = MatMul(x, v)  p = MatMul(x, w) },"
        " else_branch = b () => (float[2,8] q) { q = MatMul(x, w) }>(c) }",
        w=(8, 8),
        v=(8, 8),
    )
    small = removed(model, CX)
    assert stored(small) == ["w"]
    assert operators(small).count("MatMul") == 2


def test_functions_that_nobody_calls_any_more_go():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z) { y = f.one(x)  z = f.two(x, w) }",
        [
            "one (a) => (o) { o = Relu(a) }",
            "two (a, v) => (o) { h = f.three(a, v)  o = f.one(h) }",
            "three (a, v) => (o) { o = MatMul(a, v) }",
        ],
        w=(8, 8),
    )
    small = removed(model, X, keep=["y"])
    assert [key[1] for key in small.ir.functions] == ["one"]
    assert stored(small) == []


TRAILING = {
    "LSTM": (
        "float[5,1,2,4] y, float[1,2,4] h, float[1,2,4] c",
        "y, h, c = LSTM<hidden_size = 4>(x, W, R)",
        {"W": (1, 16, 8), "R": (1, 16, 4)},
        (5, 2, 8),
    ),
    "Dropout": ("float[2,8] y, bool[2,8] m", "y, m = Dropout(x)", {}, (2, 8)),
    "MaxPool": (
        "float[1,1,3,3] y, int64[1,1,3,3] i",
        "y, i = MaxPool<kernel_shape = [2, 2]>(x)",
        {},
        (1, 1, 4, 4),
    ),
    "LayerNormalization": (
        "float[2,8] y, float[2,1] m, float[2,1] v",
        "y, m, v = LayerNormalization(x, s)",
        {"s": (8,)},
        (2, 8),
    ),
}


@pytest.mark.parametrize("name", TRAILING)
def test_optional_outputs_at_the_end_go(name: str) -> None:
    outs, body, tensors, shape = TRAILING[name]
    sizes = ",".join(map(str, shape))
    model = made(f"g (float[{sizes}] x) => ({outs}) {{ {body} }}", **tensors)
    small = removed(model, {"x": rows(*shape)}, keep=["y"])
    assert [len(node.outputs) for node in small.ir.graph] == [1]
    names = left(model)
    if len(names) == 3:
        second = removed(model, {"x": rows(*shape)}, keep=[names[1]])
        assert [len(node.outputs) for node in second.ir.graph] == [2]


@pytest.mark.parametrize(
    ("outs", "body", "tensors"),
    [
        ("float[2,4] y, float[2,4] z", "y, z = Split<axis = 1, num_outputs = 2>(x)", {}),
        ("float[2,4] y, int64[2,4] z", "y, z = TopK(x, k)", {"k": np.array([4])}),
    ],
)
def test_outputs_that_an_operator_needs_stay(outs: str, body: str, tensors: Any) -> None:
    model = made(f"g (float[2,8] x) => ({outs}) {{ {body} }}", **tensors)
    small = removed(model, X, keep=["y"])
    assert [len(node.outputs) for node in small.ir.graph] == [2]


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"outputs": ["a", "b", "c"]}, {"outputs": ["c", "a", "b"]}])
def test_never_the_last_one(options: Any) -> None:
    model = made(THREE, **SIZES)
    before = serialized(model.ir)
    with pytest.raises(PreconditionError, match="no output would be left") as caught:
        tieops.remove_disconnected_outputs(model, **options)
    assert "outputs: a, b, c" in str(caught.value)
    assert serialized(model.ir) == before


def test_not_the_last_one_either_if_no_input_reaches_it():
    model = made("g (float[2,8] x) => (float[8,2] y) { y = Transpose(w) }", w=(2, 8))
    with pytest.raises(PreconditionError, match="no output would be left"):
        tieops.remove_disconnected_outputs(model)


@pytest.mark.parametrize("which", ["outputs", "keep"])
def test_wrong_names(which: str) -> None:
    with pytest.raises(SelectionError, match="no output named d") as caught:
        tieops.remove_disconnected_outputs(made(THREE, **SIZES), **{which: ["a", "d"]})
    assert "outputs: a, b, c" in str(caught.value)
    assert "fix: " in str(caught.value)


def test_outputs_and_keep_exclude_each_other():
    with pytest.raises(PreconditionError, match="outputs= and keep= cannot be combined"):
        tieops.remove_disconnected_outputs(made(THREE, **SIZES), outputs=["a"], keep=["b"])


# -- reports --------------------------------------------------------------------------------------


def test_what_went_is_reported_with_its_reason():
    _, result = run(RemoveDisconnectedOutputsPass(), matlab("weights"))
    assert str(result.changes[0]) == "output weights: no graph input reaches it"
    assert [str(change) for change in result.changes[1:]] == [
        "node Identity: nothing needs it any more"
    ]
    _, result = run(RemoveDisconnectedOutputsPass(outputs=("a",)), made(THREE, **SIZES))
    assert [str(change) for change in result.changes] == [
        "output a: removed as asked",
        "node MatMul: nothing needs it any more",
        "node MatMul: nothing needs it any more",
        "initializer w: nothing needs it any more",
        "initializer v: nothing needs it any more",
    ]
    assert RemoveDisconnectedOutputsPass.preserves == Preserves.BITS


# -- branches, random functions and names ----------------------------------------------------------


def test_a_branch_computes_nothing_for_an_output_that_is_gone():
    """z's weights in both branches stay, for the If still has two outputs."""
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y, float[2,8] z)"
        "{ y, z = If<then_branch = a () => (float[2,8] p, float[2,8] q)"
        " { p = MatMul(x, w)  q = MatMul(x, v) },"
        " else_branch = b () => (float[2,8] r, float[2,8] s)"
        " { r = MatMul(x, w)  s = MatMul(x, u) }>(c) }",
        w=(8, 8),
        v=(8, 8),
        u=(8, 8),
    )
    assert stored(removed(model, CX, keep=["y"])) == ["w"]


def test_random_numbers_in_a_function_are_no_constant():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z) { y = Relu(x)  z = f.noise() }",
        ["noise () => (o) { o = RandomNormal<shape = [2, 8], seed = 1.0>() }"],
    )
    assert left(tieops.remove_disconnected_outputs(model)) == ["y", "z"]


def test_a_norm_in_training_mode_needs_its_three_outputs():
    """Taking two of them away makes the model invalid."""
    model = made(
        "g (float[2,3,4,4] x) => (float[2,3,4,4] y, float[3] m, float[3] v)"
        "{ y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s) }",
        s=np.ones(3, np.float32),
    )
    small = tieops.remove_disconnected_outputs(model, keep=["y"])
    onnx.checker.check_model(onnx_ir.to_proto(small.ir), full_check=True)
    assert rows(2, 3, 4, 4).any()


def test_one_name_is_one_name():
    """A string is an iterable of letters: "the model has no output named l"."""
    model = made(THREE.replace(" a", " logits"), **SIZES)
    assert left(tieops.remove_disconnected_outputs(model, keep="logits")) == ["logits"]


@pytest.mark.parametrize("name", ["logit", "Logits"])
def test_near_names_are_listed(name: str) -> None:
    model = made(THREE.replace(" a", " logits"), **SIZES)
    with pytest.raises(tieops.TieopsError, match="nearest: logits"):
        tieops.remove_disconnected_outputs(model, keep=[name])
