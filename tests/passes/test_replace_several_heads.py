"""Which layer is the head: by an output's name, beside caches, and several at once."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.graphs import made, rows
from tests.support.model_facts import outputs, serialized
from tieops.errors import PreconditionError, SelectionError
from tieops.model import TiedModel


def two_heads() -> TiedModel:
    return made(
        "g (float[n,8] x) => (float[n,10] age, float[n,6] kind)"
        "{ h = Relu(x)  a = Gemm<transB = 1>(h, w, b)  age = Softmax(a)  kind = MatMul(h, v) }",
        w=(10, 8), b=(10,), v=(8, 6),
    )  # fmt: skip


def shapes(model: TiedModel) -> dict[str, str]:
    onnx.checker.check_model(onnx_ir.to_proto(model.ir), full_check=True)
    return {str(value.name): str(value.shape) for value in model.outputs}


@pytest.mark.parametrize("head", ["age", "Gemm_a", "w"])
def test_a_head_is_found_by_its_output_its_layer_and_its_parameter(head):
    new = tieops.replace_head(two_heads(), head, 8)
    assert shapes(new) == {"age": "[n,8]", "kind": "[n,6]"}
    x = {"x": rows(3, 8)}
    assert outputs(new, x)["kind"].tobytes() == outputs(two_heads(), x)["kind"].tobytes()


def test_several_heads_are_replaced_at_once_as_one_after_the_other():
    model = two_heads()
    before = serialized(model.ir)
    both = tieops.replace_head(model, {"age": 8, "kind": 15}, lr_factor=10, seed=3)
    assert serialized(model.ir) == before
    assert shapes(both) == {"age": "[n,8]", "kind": "[n,15]"}
    one = tieops.replace_head(model, "age", 8, lr_factor=10, seed=3)
    other = tieops.replace_head(one, "kind", out_features=15, lr_factor=10, seed=3)
    assert serialized(both.ir) == serialized(other.ir)
    assert {p.lr_factor for p in both.parameters} == {10.0}


def test_the_head_is_the_logits_layer_beside_caches():
    model = made(
        """g (int64[n,s] ids, float[n,p,8] past) => (float[n,s,12] logits, float[n,q,8] present) {
          e = Gather(w, ids)  k = MatMul(e, wk)  present = Concat<axis = 1>(past, k)
          a = ReduceMean<keepdims = 1>(present, axis)  c = Add(e, a)
          t = Transpose<perm = [1, 0]>(w)  logits = MatMul(c, t) }""",
        w=(12, 8), wk=(8, 8), axis=np.array([1]),
    )  # fmt: skip
    assert shapes(tieops.replace_head(model, out_features=3)) == {
        "logits": "[n,s,3]", "present": "[n,q,8]",
    }  # fmt: skip


def test_a_file_in_gemm_form_has_one_head(tmp_path):
    model = made(
        """g (int64[b,s] ids) => (float[b,s,60] y) {
          e = Gather(w, ids)  l = MatMul(e, v)  h = Tanh(l)
          t = Transpose<perm = [1, 0]>(w)  y = MatMul(h, t) }""",
        w=(60, 16), v=(16, 16),
    )  # fmt: skip
    written = tieops.from_onnx(tieops.to_onnx(model, tmp_path / "m.onnx", tie_form="gemm"))
    assert "Gemm" in [node.op_type for node in written.ir.graph]
    assert shapes(tieops.replace_head(written, out_features=3)) == {"y": "[b,s,3]"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), PreconditionError, "the head is ambiguous: 2 layers"),
        (("agee", 3), SelectionError, "agee"),
        (("age",), PreconditionError, "out_features must be a positive integer, got None"),
        (({},), PreconditionError, "expected heads with their sizes"),
        (({"age": 3}, 4), PreconditionError, "expected heads with their sizes"),
        (({"age": 3, "kind": 0},), PreconditionError, "out_features must be a positive integer"),
        (({"age": 3, "knid": 4},), SelectionError, "knid"),
    ],
)
def test_what_is_no_head_or_size_is_refused(arguments, error, message):
    model = two_heads()
    before = serialized(model.ir)
    given = arguments or (None, 3)
    with pytest.raises(error, match=message):
        tieops.replace_head(model, *given)
    assert serialized(model.ir) == before
