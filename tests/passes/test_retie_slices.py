"""Parts that were cut out of a tensor: put back where they still equal what they were cut from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

import tieops
from tests.support.graphs import made, rows
from tests.support.model_facts import facts, outputs
from tieops.ir.slices import PROVENANCE
from tieops.passes.base import run
from tieops.passes.tie import TiePass

WHOLE_AND_PART = """g (int64[n] ids, float[n, 8] h) => (float[n, 8] e, float[n, 4] y)
    <int64[1] from = {2}, int64[1] to = {6}, int64[1] axis = {0}> {
    e = Gather(emb, ids)
    part = Slice(emb, from, to, axis)
    t = Transpose<perm = [1, 0]>(part)
    y = MatMul(h, t) }"""
FEEDS = {"ids": np.array([0, 3, 7, 1]), "h": rows(4, 8)}


def halves(second: int) -> tieops.TiedModel:
    """Return a model whose only readers overlap: rows 0 to 5, and ``second`` to 7, of 8."""
    text = """g (float[n, 6] a, float[n, K] b) => (float[n, 4] x, float[n, 4] y)
    <int64[1] zero = {0}, int64[1] six = {6}, int64[1] at = {A}, int64[1] end = {8}> {
    low = Slice(w, zero, six, zero)
    high = Slice(w, at, end, zero)
    x = MatMul(a, low)
    y = MatMul(b, high) }""".replace("{A}", f"{{{second}}}")
    return made(text.replace("K]", f"{8 - second}]"), w=(8, 4))


def test_a_slice_reads_the_whole_again_through_the_same_nodes() -> None:
    model = made(WHOLE_AND_PART, emb=(8, 8))
    free = tieops.untie(model)
    assert {p.name: p.shape for p in free.parameters} == {"emb": (8, 8), "MatMul_y.weight": (8, 4)}
    again = tieops.tie(free)
    assert facts(again) == facts(model)
    nodes = {node.op_type: node.outputs[0].name for node in again.ir.graph}
    assert nodes == {node.op_type: node.outputs[0].name for node in model.ir.graph}
    assert {*again.ir.graph.initializers} == {*model.ir.graph.initializers}
    want, got = outputs(model, FEEDS), outputs(again, FEEDS)
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_the_record_survives_a_file(tmp_path: Path) -> None:
    model = made(WHOLE_AND_PART, emb=(8, 8))
    written = tieops.to_onnx(tieops.untie(model), tmp_path / "free.onnx", tie_form="portable")
    assert facts(tieops.tie(tieops.from_onnx(written.path))) == facts(model)


def test_what_is_no_longer_equal_stays_apart() -> None:
    free = tieops.untie(made(WHOLE_AND_PART, emb=(8, 8)))
    graph = free.clone()
    trained = graph.graph.initializers["MatMul_y.weight"]
    trained.const_value = onnx_ir.tensor(rows(8, 4), name="MatMul_y.weight")
    _, result = run(TiePass(), tieops.TiedModel(graph))
    assert not result.changes
    assert [str(skip) for skip in result.skips] == [
        "MatMul_y.weight: not changed, it no longer equals its part of emb"
    ]


def test_parts_that_are_all_of_a_tensor_make_it_again() -> None:
    model = halves(second=4)
    feeds = {"a": rows(3, 6), "b": rows(3, 4)}
    free = tieops.untie(model)
    assert "w" not in free.ir.graph.initializers
    assert sum(p.nbytes for p in free.parameters) == sum(s.logical_bytes for s in model.slots)
    again = tieops.tie(free)
    assert facts(again) == facts(model)
    want, got = outputs(model, feeds), outputs(again, feeds)
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_parts_that_are_not_all_of_it_say_so() -> None:
    free = tieops.untie(halves(second=5))
    stored = {each.name for each in free.parameters}
    rest = tieops.remove_disconnected_outputs(free, keep=["y"])
    again, result = run(TiePass(), rest)
    assert stored == {"MatMul_x.weight", "MatMul_y.weight"}
    assert not again.ties
    assert [str(skip) for skip in result.skips] == [
        "MatMul_y.weight: not changed, what else w held is gone"
    ]


def test_the_whole_may_be_a_constant_node() -> None:
    values = ", ".join(map(str, range(64)))
    constant = f"emb = Constant<value = float[8, 8] {{{values}}}>()"
    model = made(WHOLE_AND_PART.replace("> {", f"> {{ {constant}"))
    again = tieops.tie(tieops.untie(model))
    assert facts(again) == facts(model)
    want, got = outputs(model, FEEDS), outputs(again, FEEDS)
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_the_axes_of_a_squeeze_may_be_a_scalar() -> None:
    model = made(
        """g (float[n, 8] h, float[n, 8] k) => (float[n, 4] y, float[8, n, 8] z)
        <int64[1] from = {2}, int64[1] to = {6}, int64[1] axis = {0}, int64 last = {1}> {
        flat = Squeeze(tall, last)
        part = Slice(flat, from, to, axis)
        t = Transpose<perm = [1, 0]>(part)
        y = MatMul(h, t)
        z = Mul(k, tall) }""",
        tall=(8, 1, 8),
    )
    free = tieops.untie(model)
    assert sorted(p.shape for p in free.parameters) == [(8, 1, 8), (8, 4)]
    assert facts(tieops.tie(free)) == facts(model)


def test_equal_parts_keep_the_way_in_which_each_was_cut() -> None:
    model = made(
        """g (float[n, 8] h, float[n, 8] k) => (float[n, 8] e, float[n, 4] y, float[n, 4] z)
        <int64[1] from = {2}, int64[1] to = {6}, int64[1] zero = {0}, int64[1] one = {1}> {
        e = MatMul(h, w)
        t = Transpose(w)
        a = Slice(t, from, to, one)
        y = MatMul(h, a)
        b = Slice(w, from, to, zero)
        c = Transpose(b)
        z = MatMul(k, c) }""",
        w=(8, 8),
    )
    again = tieops.tie(tieops.untie(model))
    assert facts(again) == facts(model)
    feeds = {"h": rows(3, 8), "k": rows(3, 8, seed=2)}
    want, got = outputs(model, feeds), outputs(again, feeds)
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_a_transposed_copy_of_the_same_shape_is_not_the_whole() -> None:
    model = made(
        """g (float[n, 8] h) => (float[n, 8] e, float[n, 8] f, float[n, 4] y)
        <int64[1] from = {2}, int64[1] to = {6}, int64[1] one = {1}> {
        t = Transpose(w)
        e = MatMul(h, t)
        f = MatMul(h, w)
        a = Slice(w, from, to, one)
        y = MatMul(h, a) }""",
        w=(8, 8),
    )
    free = tieops.untie(model)
    assert len(free.parameters) == 3
    assert facts(tieops.tie(free)) == facts(model)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: "{",
        lambda record: "[]",
        lambda record: "x" * 30_000,
        lambda record: json.dumps({"node": [{"opType": "If"}]}),
        lambda record: record.replace("Slice", "Relu"),
        lambda record: record.replace('"8"', '"9"'),
        lambda record: record.replace('"Transpose"', '"Slice"'),
        lambda record: record.replace('"t"', '"part"'),
        lambda record: record.replace('"emb"', '"t"'),
        lambda record: record.replace('["emb", ', "["),
        lambda record: record.replace('"input": ["emb", "from", "to", "axis"], ', ""),
        lambda record: record.replace('"dims": ["1"]', '"dims": []'),
        lambda record: record.replace('"rawData": "', '"rawData": "AAAAAAAAAAAA'),
        lambda record: record.replace('"node": [', '"node": [{"opType": "Y", "output": ["z"]}, '),
        lambda record: record.replace('"dimValue": "8"', '"dimValue": "-8"'),
    ],
)
def test_a_record_from_elsewhere_is_no_reason_to_fail(spoil) -> None:
    graph = tieops.untie(made(WHOLE_AND_PART, emb=(8, 8))).clone()
    value = graph.graph.initializers["MatMul_y.weight"]
    spoiled = spoil(value.metadata_props[PROVENANCE])
    assert spoiled != value.metadata_props[PROVENANCE]
    value.metadata_props[PROVENANCE] = spoiled
    model = tieops.TiedModel(graph)
    again = tieops.tie(model)
    assert [p.name for p in again.parameters] == [p.name for p in model.parameters]
    want, got = outputs(model, FEEDS), outputs(again, FEEDS)
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_a_record_may_not_ask_for_more_memory_than_its_parts_fill() -> None:
    graph = tieops.untie(halves(second=4)).clone()
    for value in graph.graph.initializers.values():
        if PROVENANCE in value.metadata_props:
            spoiled = value.metadata_props[PROVENANCE].replace(
                '"dimValue": "8"', f'"dimValue": "{10**15}"'
            )
            value.metadata_props[PROVENANCE] = spoiled.replace("BwAAAAAAAAA=", "AICk")
    assert not tieops.tie(tieops.TiedModel(graph)).ties


def test_a_record_in_an_older_opset_is_left_alone() -> None:
    """Slice had its bounds as attributes once: such a node has no place in a converted file."""
    text = WHOLE_AND_PART.replace("Slice(emb, from, to, axis)", "Slice<starts=[2], ends=[6]>(emb)")
    graph = tieops.untie(made(text, opset=9, emb=(8, 8))).clone()
    assert len(tieops.tie(tieops.TiedModel(graph)).ties) == 1
    graph.opset_imports[""] = 20
    again = tieops.tie(tieops.TiedModel(graph))
    assert not again.ties
    assert np.isfinite(outputs(again, FEEDS)["y"]).all()
