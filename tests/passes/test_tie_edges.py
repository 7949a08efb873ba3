"""Tie at its edges: names that are taken, views that come late, copies that cannot move."""

from __future__ import annotations

import onnx
import onnx_ir
from hypothesis import given

import tieops
from tests.support.drawn_graphs import Drawn, check_tie, graphs
from tests.support.plain_runtime import PlainRuntime
from tieops.model import TiedModel

A = "{" + ", ".join(str(i * 37 % 101) for i in range(64)) + "}"
AT = "{" + ", ".join(str((i % 8 * 8 + i // 8) * 37 % 101) for i in range(64)) + "}"
HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def checked(text: str) -> TiedModel:
    tied = tieops.tie(TiedModel(onnx_ir.from_onnx_text(text)))
    onnx.checker.check_model(onnx_ir.to_proto(tied.ir), full_check=True)
    return tied


@given(graphs(views_first=False))
def test_tie_on_graphs_whose_views_come_anywhere(plain_runtime: PlainRuntime, drawn: Drawn) -> None:
    check_tie(drawn, plain_runtime)


def test_a_transpose_that_comes_later_is_not_read_earlier() -> None:
    checked(f"""{HEAD}g (float[2,8] x) => (float[2,8] y) <float[8,8] w = {A}, float[8,8] v = {AT}>
    {{ h = MatMul(x, v)  t = Transpose <perm = [1, 0]> (w)  y = MatMul(h, t) }}""")


def test_constants_that_are_branch_outputs_keep_names_apart() -> None:
    const = f"Constant <value = float[8,8] {A}> ()"
    checked(f"""{HEAD}g (bool c, float[2,8] x) => (float[2,8] y)
    {{ w = If <then_branch = a () => (float[8,8] t) {{ t = {const} }},
               else_branch = b () => (float[8,8] e) {{ e = {const} }}> (c)
       y = MatMul(x, w) }}""")


def test_constant_that_is_a_graph_output_keeps_its_name_apart() -> None:
    const = f"Constant <value = float[8,8] {A}> ()"
    checked(f"""{HEAD}g (float[2,8] x) => (float[2,8] y, float[8,8] w)
    {{ w = {const}  v = {const}  h = MatMul(x, w)  y = MatMul(h, v) }}""")


def test_new_transpose_takes_a_free_name() -> None:
    checked(f"""{HEAD}g (float[2,8] x) => (float[2,8] y) <float[8,8] w = {A}, float[8,8] v = {AT}>
    {{ w_transposed = MatMul(x, w)  y = MatMul(w_transposed, v) }}""")


def test_copies_outside_are_joined_beside_an_equal_constant_in_a_function() -> None:
    tied = checked(f"""<ir_version: 10, opset_import: ["" : 20, "f" : 1]>
    g (float[2,8] x) => (float[2,8] y) <float[8,8] val_1 = {A}, float[8,8] val_2 = {A}>
    {{ h = f.lin(x)  i = MatMul(h, val_1)  y = MatMul(i, val_2) }}
    <opset_import: ["" : 20], domain: "f"> lin (a) => (o)
    {{ w = Constant <value = float[8,8] {A}> ()  o = MatMul(a, w) }}""")
    assert len(tied.ties) == 1


def test_copies_are_joined_beside_an_equal_overridable_one() -> None:
    tied = checked(f"""{HEAD}g (float[2,8] x, float[8,8] w) => (float[2,8] y)
    <float[8,8] w = {A}, float[8,8] v = {A}, float[8,8] u = {A}>
    {{ h = MatMul(x, w)  i = MatMul(h, v)  y = MatMul(i, u) }}""")
    assert len(tied.ties) == 1
