"""Lowering at its edges: empty inputs, names that are taken, functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest

from tests.passes.test_lower import W, check_numbers, lowered, normal, parsed
from tests.passes.test_untie import made, outputs, rows
from tieops.model import TiedModel
from tieops.passes.base import run
from tieops.passes.lower import LowerTiedReadsPass


def test_an_empty_sequence_is_computed(plain_runtime: Any) -> None:
    # Reshape takes a 0 in the computed sizes for "as the input has it": allowzero=1 is missing.
    model = parsed("y = MatMul(x, t)", "float[N,M,8] x", "float[N,M,12] y")
    after, _ = lowered(model)
    check_numbers(model, after, plain_runtime, x=normal(2, 0, 8))


def test_new_values_take_free_names(plain_runtime: Any) -> None:
    model = parsed(
        "[y] m = MatMul(x, t)\ny_flat_out = Relu(m)\ny_gemm_out = Relu(m)\n"
        "y = Add(y_flat_out, y_gemm_out)",
        "float[N,M,8] x",
        "float[N,M,12] y",
    )
    after, _ = lowered(model)
    check_numbers(model, after, plain_runtime, x=normal(2, 3, 8))


def test_a_constant_that_a_function_returns_is_not_read_outside_of_it(
    plain_runtime: Any,
) -> None:
    model = TiedModel(
        onnx_ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20, "f" : 1]>\n'
            "g (float[2,8] x) => (float[2,12] y)\n"
            "{ v = f.weight()\n h = MatMul(x, v)\n u = f.weight()\n i = MatMul(x, u)\n"
            "y = Add(h, i) }\n"
            '<opset_import: ["" : 20], domain: "f"> weight () => (o)\n'
            f"{{ w = Constant <value = float[12,8] {W}> ()\n o = Transpose(w) }}"
        )
    )
    after, _ = lowered(model)
    feeds = {"x": normal(2, 8)}
    (one,), (two,) = plain_runtime.run(model.ir, feeds), plain_runtime.run(after.ir, feeds)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-3)


TIED = "h = Gather(w, ids)  t = Transpose<perm = [1, 0]>(w)"


@pytest.mark.parametrize("said", ["N,4,8", "3,N,8", "N,8", "2,2,2,8"])
def test_what_a_file_says_of_values_between_decides_nothing(said: str) -> None:
    # ONNX Runtime warns of a declared shape that is not so, and goes on.
    model = made(
        f"g (int64[N,M] ids) => (float[N,M,12] y) <float[{said}] u, float[{said}] v>"
        f"{{ {TIED}  u = Neg(h)  v = Relu(u)  y = MatMul(v, t) }}",
        w=(12, 8),
    )
    after, _ = run(LowerTiedReadsPass(), model)
    assert "Gemm" in [node.op_type for node in after.ir.graph]
    feeds = {"ids": np.arange(12).reshape(4, 3)}
    expected = outputs(model, feeds)["y"]
    np.testing.assert_allclose(outputs(after, feeds)["y"], expected, rtol=1e-5, atol=1e-5)
    assert expected.shape == (4, 3, 12)


def test_a_matrix_by_inference_is_multiplied_by_one_gemm() -> None:
    model = made(
        f"g (int64[N] ids, float[12,8] r) => (float[N,12] y)"
        f"{{ {TIED}  u = Neg(h)  v = MatMul(u, t)  z = MatMul(v, r)  y = MatMul(z, t) }}",
        w=(12, 8),
    )
    after, _ = run(LowerTiedReadsPass(), model)
    kinds = [node.op_type for node in after.ir.graph]
    assert kinds == ["Gather", "Neg", "Gemm", "MatMul", "Gemm"]
    feeds = {"ids": np.arange(5), "r": rows(12, 8)}
    expected = outputs(model, feeds)["y"]
    np.testing.assert_allclose(outputs(after, feeds)["y"], expected, rtol=1e-4, atol=1e-4)
