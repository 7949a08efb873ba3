"""Tied products as ONNX Runtime's own operator: which are fused, which are not, and the results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import tieops
from tests.support.heads import head_read_by
from tieops.runtime.memory.fused_matmul import fuse_products

SHAPES = {"w": (5, 4)}
HEAD = '<ir_version: 10, opset_import: ["": 20]>'
TABLE = "float[5, 4] w = {" + ", ".join(str(value) for value in range(20)) + "}"
GEMM = "f = Reshape(x, a)  g = Gemm<transB = 1>(f, w)  y = Reshape(g, s)"
COMPUTED = """n = Shape(x)  l = Slice(n, zero, minus)  s = Concat<axis = 0>(l, five)
              f = Reshape(x, a)  g = Gemm<transB = 1>(f, w)  y = Reshape<allowzero = 1>(g, s)"""
FIXED = "int64[2] a = {-1, 4}, int64[3] s = {2, 3, 5}"
INTS = "int64[1] zero = {0}, int64[1] minus = {-1}, int64[1] five = {5}, int64[2] a = {-1, 4}"


def model(x: str, body: str, stored: str, y: str = "float[] y") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"{HEAD} g (float[{x}] x) => ({y}) <{TABLE}, {stored}> {{{body}}}"
    )


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return tieops.session(proto, "cpu").run({"x": x})["y"]


@pytest.mark.parametrize(
    ("x", "body", "stored", "sizes"),
    [
        ("b, s, 4", COMPUTED, INTS, [(2, 3, 4), (0, 3, 4), (1, 1, 4)]),
        ("2, s, 4", GEMM, "int64[2] a = {-1, 4}, int64[3] s = {2, -1, 5}", [(2, 3, 4), (2, 0, 4)]),
        ("2, 3, 4", GEMM, FIXED, [(2, 3, 4)]),
        ("b, s, 4", "t = Transpose<perm = [1, 0]>(w)  y = MatMul(x, t)", INTS, [(2, 3, 4)]),
        ("n, 4", "t = Transpose(w)  y = MatMul(x, t)", INTS, [(3, 4), (0, 4)]),
    ],
    ids=["computed sizes", "one size left", "fixed sizes", "transpose", "transpose without perm"],
)
def test_a_product_becomes_one_node_with_the_same_result(
    x: str, body: str, stored: str, sizes: list[tuple[int, ...]]
) -> None:
    plain = model(x, body, stored)
    fused = onnx.ModelProto()
    fused.CopyFrom(plain)
    assert fuse_products(fused, SHAPES)
    assert operators(fused) == {"FusedMatMul": 1}
    for shape in sizes:
        array = np.random.default_rng(0).standard_normal(shape, np.float32)
        np.testing.assert_allclose(run(fused, array), run(plain, array), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "body", "stored"),
    [
        ("b, 2, 2", GEMM, "int64[2] a = {-1, 4}, int64[2] s = {-1, 5}"),  # folds two axes into one
        ("2, 3, 4", GEMM, "int64[2] a = {-1, 4}, int64[3] s = {3, 2, 5}"),  # other rows
        ("b, s, 4", GEMM, "int64[2] a = {-1, 4}, int64[3] s = {2, -1, 5}"),  # fixes what varies
        ("2, s, 4", GEMM, "int64[2] a = {-1, 4}, int64[3] s = {0, -1, 5}"),  # 0 reads another shape
        ("2, 3, 4", GEMM.replace("transB = 1", "transB = 1, alpha = 2.0"), FIXED),
        ("2, 3, 4", GEMM.replace("f, w", "f, w, b"), "float[5] b = {1, 2, 3, 4, 5}, " + FIXED),
        ("2, 3, 4", GEMM + "  z = Neg(g)", FIXED),  # read twice
        ("n, 5", "y = MatMul(x, w)", INTS),
        ("n, 5", "t = Transpose<perm = [0, 1]>(w)  y = MatMul(x, t)", INTS),
    ],
)
def test_what_is_another_product_stays(x: str, body: str, stored: str) -> None:
    outputs = "float[] y" + (", float[] z" if "Neg" in body else "")
    proto = model(x, body, stored, outputs)
    before = proto.SerializeToString(deterministic=True)
    assert not fuse_products(proto, SHAPES)
    assert proto.SerializeToString(deterministic=True) == before


def test_what_others_read_stays() -> None:
    stored = FIXED
    body = GEMM + "  t = Transpose(w)  u = MatMul(x, t)  z = Neg(t)  v = Neg(f)"
    outputs = "float[] y, float[] u, float[] z, float[] v"
    proto = model("2, 3, 4", body, stored, outputs)
    assert fuse_products(proto, SHAPES)
    assert operators(proto) == {"FusedMatMul": 2, "Transpose": 1, "Neg": 2, "Reshape": 1}


def test_a_branch_reads_the_weight_of_the_graph_around_it() -> None:
    proto = onnx.parser.parse_model(f"""{HEAD}
    g (float[2, 3, 4] x, bool c) => (float[2, 3, 5] y) <{TABLE}, int64[2] a = {{-1, 4}}> {{
      y = If (c) <
        then_branch = p () => (float[2, 3, 5] y1) <int64[3] s = {{2, 3, 5}}> {{
          f = Reshape(x, a)  g = Gemm<transB = 1>(f, w)  y1 = Reshape(g, s) }},
        else_branch = q () => (float[2, 3, 5] y2) {{ t = Transpose(w)  y2 = MatMul(x, t) }}> }}""")
    array = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    assert fuse_products(proto, SHAPES)
    for branch in proto.graph.node[0].attribute:
        assert [node.op_type for node in branch.g.node] == ["FusedMatMul"]
    for flag in (True, False):
        feeds = {"x": array, "c": np.array(flag)}
        one, other = (tieops.session(each, "cpu").run(feeds)["y"] for each in (proto, plain))
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_branch_that_has_a_weight_of_that_name_is_left() -> None:
    proto = onnx.parser.parse_model(f"""{HEAD}
    g (float[2, 4] x, bool c) => (float[2, 4] y) <{TABLE}> {{
      y = If (c) <
        then_branch = p () => (float[2, 4] y1) <
          float[4, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}> {{
          t = Transpose(w)  y1 = MatMul(x, t) }},
        else_branch = q () => (float[2, 4] y2) {{ y2 = Neg(x) }}> }}""")
    assert not fuse_products(proto, SHAPES)


@pytest.mark.parametrize("form", ["gemm", "portable"])
def test_packed_gives_what_a_plain_session_gives_bit_for_bit(form: str, tmp_path: Path) -> None:
    tied = head_read_by(5000, 64)
    path = tieops.to_onnx(tied, tmp_path / "m.onnx", external_data=True, tie_form=form).path
    plain = tieops.to_onnx(
        tied, tmp_path / "plain.onnx", external_data=True, tie_form="portable"
    ).path
    ids = np.random.default_rng(1).integers(0, 5000, (2, 16))
    wanted = tieops.session(plain, "cpu", memory="default").run({"ids": ids})["y"]
    session = tieops.session(path, "cpu")
    np.testing.assert_array_equal(session.run({"ids": ids})["y"], wanted)
    assert "FusedMatMul" in {node.op_type for node in session.placement().nodes}


def test_without_optimizations_nothing_is_fused(tmp_path: Path) -> None:
    path = tieops.to_onnx(head_read_by(5000, 64), tmp_path / "m.onnx", external_data=True).path
    with tieops.session(path, "cpu", optimize=False) as session:
        assert "FusedMatMul" not in {node.op_type for node in session.placement().nodes}
