"""Removed outputs at their edges: branches, random functions, names."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.passes.test_disconnected_outputs import CX, SIZES, THREE, left, removed, stored
from tests.passes.test_untie import made, rows


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
    """A string is an iterable of letters: "the model has no output called l"."""
    model = made(THREE.replace(" a", " logits"), **SIZES)
    assert left(tieops.remove_disconnected_outputs(model, keep="logits")) == ["logits"]


@pytest.mark.parametrize("name", ["logit", "Logits"])
def test_near_names_are_listed(name: str) -> None:
    model = made(THREE.replace(" a", " logits"), **SIZES)
    with pytest.raises(tieops.TieopsError, match="nearest: logits"):
        tieops.remove_disconnected_outputs(model, keep=[name])
