"""Tie: what is declared, what is declined, and what becomes of names."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.counting import assert_linear
from tieops.errors import PreconditionError, SelectionError, TieMismatchError
from tieops.ir.evidence import Evidence
from tieops.model import TiedModel
from tieops.passes.base import Preserves, run
from tieops.passes.tie import TiePass

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
W = "{" + ", ".join(str(i * 37 % 101) for i in range(64)) + "}"
WT = "{" + ", ".join(str((i % 8 * 8 + i // 8) * 37 % 101) for i in range(64)) + "}"
OTHER = "{" + ", ".join(str(i * 41 % 103) for i in range(64)) + "}"
TWO = "[a] h = MatMul(x, w)\n[b] y = MatMul(h, v)"


def parsed(stored: str, body: str = TWO, inputs: str = "float[2,8] x") -> TiedModel:
    return TiedModel(
        onnx_ir.from_onnx_text(f"{HEAD}g ({inputs}) => (float[2,8] y) <{stored}> {{ {body} }}")
    )


def two(first: str = W, second: str = W) -> TiedModel:
    return parsed(f"float[8,8] w = {first}, float[8,8] v = {second}")


def stored(model: TiedModel) -> dict[str, np.ndarray]:
    return {name: v.const_value.numpy() for name, v in model.ir.graph.initializers.items()}


def test_a_tie_remembers_both_names_and_why() -> None:
    (tie,) = tieops.tie(two()).ties
    assert tie.names == ("w", "v")
    assert tie.evidence is Evidence.CONTENT
    assert tie.saved_bytes == 256


def test_a_declared_tie_says_so() -> None:
    for model in (two(), tieops.tie(two())):
        (tie,) = tieops.tie(model, "a", "b").ties
        assert tie.names == ("w", "v")
        assert tie.evidence is Evidence.DECLARED


@pytest.mark.parametrize("targets", [("v", "w"), ("b", "a"), ("b.weight", "a.weight")])
def test_the_first_target_is_kept(targets: tuple[str, str]) -> None:
    tied = tieops.tie(two(), *targets)
    assert list(stored(tied)) == ["v"]
    assert tied.ties[0].names == ("v", "w")


def test_the_tied_weight_is_shared_and_not_copied() -> None:
    model = tieops.from_onnx(two().ir)
    kept = model.ir.graph.initializers["w"].const_value
    tied = tieops.tie(model).ir.graph.initializers["w"].const_value
    assert tied is not kept  # it has a name of its own
    assert np.shares_memory(tied.numpy(), kept.numpy())


@pytest.mark.parametrize(
    ("keep", "kept", "numbers"), [(True, "w", W), ("v", "v", OTHER), ("b", "v", OTHER)]
)
def test_keep_says_whose_values_stay(keep: bool | str, kept: str, numbers: str) -> None:
    tied = tieops.tie(two(W, OTHER), "a", "b", keep=keep)
    ((name, array),) = stored(tied).items()
    assert name == kept
    assert array.ravel().tolist() == [float(each) for each in numbers.strip("{}").split(",")]
    assert len(tied.ties[0].slots) == 2


def test_a_kept_name_that_is_no_target_is_refused() -> None:
    model = parsed(
        f"float[8,8] w = {W}, float[8,8] v = {OTHER}, float[8,8] u = {W}",
        "[a] h = MatMul(x, w)\n[b] i = MatMul(h, v)\n[c] y = MatMul(i, u)",
    )
    with pytest.raises(
        PreconditionError, match="expected keep to name one of the targets, got 'c'"
    ):
        tieops.tie(model, "a", "b", keep="c")


def test_different_values_are_refused() -> None:
    model = two(W, OTHER)
    with pytest.raises(TieMismatchError, match="cannot tie v to w: values differ"):
        tieops.tie(model, "a", "b")
    assert len(tieops.tie(model).ties) == 0


def test_one_bit_is_a_different_value() -> None:
    model = two()
    array = model.ir.graph.initializers["v"].const_value.numpy().copy()
    array[7, 7] = np.nextafter(array[7, 7], np.float32(np.inf))
    model.ir.graph.initializers["v"].const_value = onnx_ir.tensor(array, name="v")
    with pytest.raises(TieMismatchError, match="values differ"):
        tieops.tie(TiedModel(model.ir), "a", "b")
    assert len(tieops.tie(TiedModel(model.ir)).ties) == 0


def test_different_shapes_and_dtypes_are_refused_with_both_sides() -> None:
    model = parsed(
        f"float[8,8] w = {W}, float[4] v = {{1, 2, 3, 4}}, float16[8,8] u = {W}",
        "[a] h = MatMul(x, w)\n[b] i = Mul(s, v)\nu2 = Cast <to = 1> (u)\n[c] y = MatMul(h, u2)",
        "float[2,8] x, float s",
    )
    with pytest.raises(TieMismatchError, match=r"shapes differ\n +w: f32\[8,8\] +v: f32\[4\]"):
        tieops.tie(model, "a", "b")
    with pytest.raises(TieMismatchError, match=r"dtypes differ\n +w: f32\[8,8\] +u: f16\[8,8\]"):
        tieops.tie(model, "a", "c", keep=True)


def test_one_target_and_unknown_targets_are_refused() -> None:
    with pytest.raises(PreconditionError, match="expected at least two targets to tie, got only a"):
        tieops.tie(two(), "a")
    with pytest.raises(SelectionError, match="nothing in the model is named q"):
        tieops.tie(two(), "a", "q")


def test_an_overridable_target_is_refused() -> None:
    model = parsed(f"float[8,8] w = {W}, float[8,8] v = {W}", TWO, "float[2,8] x, float[8,8] v")
    with pytest.raises(PreconditionError, match="a graph input too"):
        tieops.tie(model, "a", "b")


def test_refusing_changes_nothing() -> None:
    model = two(W, OTHER)
    before = onnx_ir.to_proto(model.ir).SerializeToString(deterministic=True)
    with pytest.raises(TieMismatchError):
        tieops.tie(model, "a", "b")
    assert onnx_ir.to_proto(model.ir).SerializeToString(deterministic=True) == before


def test_declined_edits_say_why() -> None:
    _, result = run(TiePass(), parsed("float[2,2] w = {1,2,3,4}, float[2,2] v = {1,2,3,4}"))
    assert not result.modified
    assert [str(skip) for skip in result.skips] == ["w: not changed, fewer than 64 elements"]


def test_small_duplicates_are_joined_on_request() -> None:
    model = parsed("float[2,2] w = {1,2,3,4}, float[2,2] v = {1,3,2,4}")
    assert len(tieops.tie(model).ties) == 0
    (tie,) = tieops.tie(model, include_small=True).ties
    assert sorted(str(slot.view) for slot in tie.slots) == ["", "transpose"]


def test_edits_are_listed() -> None:
    _, result = run(TiePass(), two(W, WT))
    assert result.modified
    assert [str(change) for change in result.changes] == [
        "v: reads w transposed, 256 B less stored"
    ]


def test_the_pass_is_a_value_that_says_what_it_preserves() -> None:
    assert TiePass() == TiePass()
    assert "include_small=False" in repr(TiePass())
    assert TiePass.preserves == Preserves.SIGNATURE | Preserves.BITS
    with pytest.raises(TypeError):
        TiePass(("a", "b"))


def test_the_pass_runs_in_an_onnx_ir_pipeline() -> None:
    result = onnx_ir.passes.Sequential(TiePass())(two().ir)
    assert list(result.model.graph.initializers) == ["w"]


def test_a_permuted_copy_read_through_another_permutation_composes_both(
    plain_runtime: Any,
) -> None:
    cube = np.arange(80, dtype="f4").reshape(4, 4, 5) ** 1.5
    tensors = [("w", cube), ("v", cube.transpose(1, 0, 2).copy())]
    make = onnx.helper
    graph = make.make_graph(
        [
            make.make_node("Mul", ["s", "w"], ["a"]),
            make.make_node("Transpose", ["v"], ["u"], perm=[0, 2, 1]),
            make.make_node("Mul", ["s", "u"], ["b"]),
        ],
        "g",
        [make.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [])],
        [
            make.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [4, 4, 5]),
            make.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [4, 5, 4]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors],
    )
    opsets = [make.make_opsetid("", 20)]
    model = TiedModel(
        onnx_ir.from_proto(make.make_model(graph, opset_imports=opsets, ir_version=10))
    )
    tied = tieops.tie(model)
    (tie,) = tied.ties
    assert [slot.view.permutation for slot in tie.slots] == [(0, 1, 2), (1, 2, 0)]
    feeds = {"s": np.array(3, "f4")}
    before, after = plain_runtime.run(model.ir, feeds), plain_runtime.run(tied.ir, feeds)
    assert [each.tobytes() for each in after] == [each.tobytes() for each in before]


def copies(count: int) -> TiedModel:
    base = np.arange(64, dtype="f4").reshape(8, 8)
    x = onnx_ir.Value(
        name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([2, 8])
    )
    weights, nodes = [], []
    for i in range(count):
        tensor = onnx_ir.tensor((base.T if i % 2 else base).copy())
        weights.append(onnx_ir.Value(name=f"w{i}", const_value=tensor))
        nodes.append(onnx_ir.node("MatMul", [x, weights[-1]], name=f"n{i}"))
        nodes[-1].outputs[0].name = f"o{i}"
    graph = onnx_ir.Graph(
        [x], nodes[-1].outputs, nodes=nodes, initializers=weights, opset_imports={"": 20}
    )
    return TiedModel(onnx_ir.Model(graph, ir_version=10))


def test_two_thousand_copies_are_joined() -> None:
    tied = tieops.tie(copies(2_000))
    assert len(tied.ties[0].slots) == 2_000
    assert list(tied.ir.graph.initializers) == ["w0"]
    assert [node.op_type for node in tied.ir.graph].count("Transpose") == 1
    assert_linear(lambda count: partial(tieops.tie, copies(count)), 200)
