"""Many rows in batches: the same as in one run, whatever the batch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnxruntime import OrtValue

import tieops
from tests.support.graphs import made, rows
from tieops.errors import PreconditionError, ProviderError, TieopsError


@pytest.fixture(scope="module")
def sess():
    model = made(
        "g (float[n,4] x, float[n,1] m, float[4] c, float[k] rest) => (float[n,4] y, float[k] r)"
        "{ a = MatMul(x, w)  b = Mul(a, m)  y = Add(b, c)  r = Neg(rest) }",
        w=(4, 4),
    )
    with tieops.session(model, "cpu") as session:
        yield session


def feeds(count: int) -> dict[str, np.ndarray]:
    return {"x": rows(count, 4), "m": rows(count, 1, seed=2), "c": rows(4), "rest": rows(3)}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100, np.int64(4)])
@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_batches_joined_are_one_run(sess, size, count):
    got = sess.predict(feeds(count), ["y"], batch_size=size)
    (want,) = sess.run(feeds(count), ["y"]).values()
    np.testing.assert_allclose(got["y"], want, rtol=1e-6, atol=1e-6)
    assert got["y"].shape == (count, 4)


def test_lists_and_torch_tensors_are_cut_too(sess):
    given = feeds(5)
    mixed = {**given, "x": torch.from_numpy(given["x"]), "m": given["m"].tolist()}
    mixed["c"] = OrtValue.ortvalue_from_numpy(given["c"])
    got, want = (sess.predict(each, ["y"], batch_size=2)["y"] for each in (mixed, given))
    assert got.tobytes() == want.tobytes()


def test_an_output_without_rows_is_refused_unless_it_is_left_out(sess):
    with pytest.raises(PreconditionError, match="no row for each row") as failure:
        sess.predict(feeds(3))
    assert failure.value.facts == {"outputs": "r: f32[k]"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"m": rows(4, 1)}, "different numbers of rows"),
        ({"m": np.float32(1)}, "different numbers of rows"),
        ({"x": rows(3, 5), "m": rows(3, 1)}, "do not fit"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(sess, changed, message):
    with pytest.raises(PreconditionError, match=message):
        sess.predict({**feeds(3), **changed}, ["y"])


@pytest.mark.parametrize("size", [0, -1, 1.5, None, True, "8"])
def test_a_batch_size_is_a_number_of_rows(sess, size):
    with pytest.raises(PreconditionError, match="expected a batch size of 1 or more, got"):
        sess.predict(feeds(3), ["y"], batch_size=size)


def test_a_model_of_one_fixed_size_has_no_batches():
    model = made("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    with tieops.session(model, "cpu") as fixed, pytest.raises(PreconditionError, match="any size"):
        fixed.predict({"x": rows(2)})


def test_the_order_of_onnx_runtime_is_told_from_ours(sess):
    for names in (None, ["y"]):
        with pytest.raises(PreconditionError, match="order of ONNX Runtime") as failure:
            sess.run(names, feeds(2))
        assert failure.value.fix == "call run(feeds), or run(feeds, outputs)"


@pytest.mark.parametrize(
    ("name", "ours"), [("CUDAExecutionProvider", "cuda"), ("CPUExecutionProvider", "cpu")]
)
def test_a_provider_by_its_class_is_told_how_it_is_called_here(name, ours):
    model = made("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    with pytest.raises(TieopsError) as failure:
        tieops.session(model, provider=name)
    assert not isinstance(failure.value, ProviderError)
    assert failure.value.fix == f'use provider="{ours}"'
