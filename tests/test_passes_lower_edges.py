"""Lowering at its edges: empty inputs, names that are taken, functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from tests.test_passes_lower import W, check_numbers, lowered, normal, parsed
from tieops.tied_model import TiedModel


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
