"""Lowering tied reads to Gemm: which are lowered, under which names, with which numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from tests.support.graphs import made, rows
from tests.support.model_facts import outputs
from tieops.model import TiedModel
from tieops.passes.base import Preserves, SurgeryResult, run
from tieops.passes.lower import LowerTiedReadsPass

W = "{" + ", ".join(str(i * 37 % 101 - 50) for i in range(96)) + "}"
EMBED = "e = Gather(w, ids)\nt = Transpose(w)"


def parsed(body: str, x: str, y: str, *, opset: int = 20, dtype: str = "float") -> TiedModel:
    """Return a model with a table w (12, 8), read by a Gather and by ``body``."""
    return TiedModel(
        onnx_ir.from_onnx_text(
            f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
            f"g (int64[3] ids, {x}) => ({y}, {dtype}[3,8] e) <{dtype}[12,8] w = {W}> "
            f"{{ {EMBED}\n{body} }}"
        )
    )


def lowered(model: TiedModel) -> tuple[TiedModel, SurgeryResult]:
    result_model, result = run(LowerTiedReadsPass(), model)
    onnx.checker.check_model(onnx_ir.to_proto(result_model.ir), full_check=True)
    return result_model, result


def ops(model: TiedModel) -> list[str]:
    return [node.op_type for node in model.ir.graph if node.op_type != "Constant"]


def check_numbers(model: TiedModel, other: TiedModel, runtime: Any, **feeds: np.ndarray) -> None:
    feeds = {"ids": np.array([0, 5, 11]), **feeds}
    for one, two in zip(runtime.run(model.ir, feeds), runtime.run(other.ir, feeds), strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-3)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


def test_a_matmul_of_two_axes_is_one_gemm(plain_runtime: Any) -> None:
    model = parsed("y = MatMul(x, t)", "float[2,8] x", "float[2,12] y")
    after, result = lowered(model)
    assert ops(after) == ["Gather", "Gemm"]
    assert [str(change) for change in result.changes] == [
        "MatMul_y.weight: reads its weight through Gemm's transB"
    ]
    check_numbers(model, after, plain_runtime, x=normal(2, 8))


@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        ("2,3,8", (2, 3, 8)),
        ("N,3,8", (2, 3, 8)),
        ("N,M,8", (2, 3, 8)),
        ("N,2,M,8", (2, 2, 5, 8)),
        ("8", (8,)),
    ],
)
def test_other_ranks_are_flattened_around_it(
    declared: str, shape: tuple[int, ...], plain_runtime: Any
) -> None:
    out = ",".join([*declared.split(",")[:-1], "12"])
    model = parsed("y = MatMul(x, t)", f"float[{declared}] x", f"float[{out}] y")
    after, result = lowered(model)
    assert ops(after).count("Gemm") == 1
    assert "Transpose" not in ops(after)
    assert result.modified
    check_numbers(model, after, plain_runtime, x=normal(*shape))


def test_a_gemm_that_reads_a_transpose_reads_the_other_way(plain_runtime: Any) -> None:
    model = parsed("y = Gemm <alpha = 2.0> (x, t)", "float[2,8] x", "float[2,12] y")
    after, _ = lowered(model)
    (gemm,) = [node for node in after.ir.graph if node.op_type == "Gemm"]
    assert gemm.attributes["transB"].as_int() == 1
    assert gemm.attributes["alpha"].as_float() == 2.0
    assert "Transpose" not in ops(after)
    check_numbers(model, after, plain_runtime, x=normal(2, 8))


def test_a_gemm_that_transposes_a_transpose_back_does_neither(plain_runtime: Any) -> None:
    model = parsed("y = Gemm <transB = 1> (x, t)", "float[2,12] x", "float[2,8] y")
    after, _ = lowered(model)
    assert ops(after) == ["Gather", "Gemm"]
    check_numbers(model, after, plain_runtime, x=normal(2, 12))


def test_a_bias_is_added_to_the_same_numbers(plain_runtime: Any) -> None:
    model = parsed(
        "m = MatMul(x, t)\nb = Constant <value_floats = [0.5]> ()\ny = Add(m, b)",
        "float[2,8] x",
        "float[2,12] y",
    )
    after, _ = lowered(model)
    check_numbers(model, after, plain_runtime, x=normal(2, 8))


def test_a_lowered_output_keeps_its_name_type_and_readers(plain_runtime: Any) -> None:
    model = parsed("y = MatMul(x, t)\nz = Relu(y)", "float[2,8] x", "float[2,12] y, float[2,12] z")
    after, _ = lowered(model)
    outputs = [(v.name, str(v.type), str(v.shape)) for v in model.ir.graph.outputs]
    assert [(v.name, str(v.type), str(v.shape)) for v in after.ir.graph.outputs] == outputs
    check_numbers(model, after, plain_runtime, x=normal(2, 8))


def test_the_transpose_stays_for_whoever_else_reads_it() -> None:
    model = parsed("y = MatMul(x, t)\nz = Relu(t)", "float[2,8] x", "float[2,12] y, float[8,12] z")
    after, _ = lowered(model)
    assert ops(after) == ["Gather", "Transpose", "Gemm", "Relu"]


def test_a_read_inside_a_branch_is_lowered_there(plain_runtime: Any) -> None:
    model = parsed(
        "y = If <then_branch = a () => (float[2,12] p) { p = MatMul(x, t) }, "
        "else_branch = b () => (float[2,12] q) { m = MatMul(x, t)\n q = Relu(m) }> (c)",
        "bool c, float[2,8] x", "float[2,12] y",
    )  # fmt: skip
    after, result = lowered(model)
    assert len(result.changes) == 2
    for flag in (True, False):
        check_numbers(model, after, plain_runtime, x=normal(2, 8), c=np.array(flag))


def test_a_weight_that_is_not_shared_is_left_as_it_is() -> None:
    model = TiedModel(
        onnx_ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]>\n'
            f"g (float[2,8] x) => (float[2,12] y) <float[12,8] w = {W}> "
            "{ t = Transpose(w)\n y = MatMul(x, t) }"
        )
    )
    after, result = lowered(model)
    assert ops(after) == ["Transpose", "MatMul"]
    assert not result.modified


def test_what_has_no_gemm_is_skipped_with_a_reason() -> None:
    old = parsed("y = MatMul(x, t)", "float[2,8] x", "float[2,12] y", opset=12)
    _, result = lowered(old)
    assert not result.modified
    assert [skip.target for skip in result.skips] == ["MatMul_y.weight"]
    assert "opset 12" in result.skips[0].reason
    ints = parsed("y = MatMul(x, t)", "int32[2,8] x", "int32[2,12] y", dtype="int32")
    _, result = lowered(ints)
    assert not result.modified
    assert "int32" in result.skips[0].reason


def test_lowering_twice_is_lowering_once() -> None:
    once, _ = lowered(parsed("y = MatMul(x, t)", "float[N,M,8] x", "float[N,M,12] y"))
    twice, result = lowered(once)
    assert not result.modified
    assert onnx_ir.to_proto(twice.ir) == onnx_ir.to_proto(once.ir)


def test_it_preserves_signature_and_numbers() -> None:
    assert LowerTiedReadsPass.preserves == Preserves.SIGNATURE | Preserves.NUMERICS


# -- empty inputs, names that are taken, functions -------------------------------------------------


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
