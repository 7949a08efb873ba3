"""What analyze finds: layers with shapes, who owns which bytes, and problems with their fixes."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import shlex
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

import tieops
from fixtures.torch_models import build
from tieops.analysis.report.as_text import as_text
from tieops.cli import app
from tieops.model import TiedModel

MINIMUM = 1_000_000  # bytes from which on a second copy in memory is worth a word


def model_of(text: str, **weights: np.ndarray) -> tieops.TiedModel:
    opsets = '"" : 20, "com.other" : 1'
    proto = parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]> {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return tieops.from_onnx(proto)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def gpt2() -> tieops.TiedModel:
    case = build("gpt2", 100, 16)
    return tieops.from_torch(case.module, kwargs=case.inputs, dynamic_shapes=case.dynamic_shapes)


HEAD = """g (int64[b] ids) => (float[b, 60] y) {
    e = Gather(emb, ids)  t = Transpose<perm = [1, 0]>(emb)  z = MatMul(e, t)  y = Add(z, bias) }"""


def head() -> tieops.TiedModel:
    return model_of(HEAD, emb=noise(60, 8), bias=noise(60))


# Layers


@pytest.mark.slow
def test_every_stored_byte_is_owned_once_and_every_read_is_counted(gpt2):
    found = tieops.analyze(gpt2)
    assert sum(row.owned_bytes for row in found.rows) == sum(p.nbytes for p in gpt2.parameters)
    assert sum(row.read_bytes for row in found.rows) == gpt2.ledger.logical_bytes
    assert [row.name for row in found.rows] == [layer.name for layer in gpt2.layers]
    tie = gpt2.ties[0].parameter.elements
    assert found.totals.learnables_read - found.totals.learnables_stored == tie
    assert found.totals.saved_bytes == 4 * tie


def test_a_tied_learnable_says_to_what_and_how():
    rows = [row for row in tieops.analyze(head()).rows if row.learnables]
    assert [[str(each) for each in row.learnables] for row in rows] == [
        ["weight f32[60,8] (tied, 2 readers)"],
        ["weight f32[8,60] (tied to emb, transposed)", "bias f32[60]"],
    ]
    assert [row.owned_bytes for row in rows] == [60 * 8 * 4, 60 * 4]
    assert [row.read_bytes for row in rows] == [60 * 8 * 4, (60 * 8 + 60) * 4]


def test_shapes_that_the_file_does_not_say_are_inferred_and_the_model_is_left_alone():
    model = head()
    inner = [out for node in model.ir.graph for out in node.outputs]
    for value in inner[:-1]:
        value.shape = None
    gather, linear = (row for row in tieops.analyze(model).rows if row.learnables)
    assert [port.shape for port in (*gather.inputs, *gather.outputs)] == [("b",), ("b", 8)]
    assert [port.shape for port in (*linear.inputs, *linear.outputs)] == [("b", 8), ("b", 60)]
    assert gather.outputs[0].type == "f32[b,8]"
    assert all(value.shape is None for value in inner[:-1])


def test_what_nobody_can_infer_stays_unknown():
    model = model_of("g (float[n, 4] x) => (y) { h = com.other.Odd(x)  y = MatMul(h, w) }",
                     w=noise(4, 6))  # fmt: skip
    odd = tieops.analyze(model).rows[0]
    assert odd.outputs[0].shape is None
    assert "?" in str(tieops.analyze(model))


def test_a_joined_weight_counts_each_part():
    model = model_of(
        "g (float[n, 4] x) => (float[n, 8] y) { w = Concat<axis = 1>(a, b)  y = MatMul(x, w) }",
        a=noise(4, 3), b=noise(4, 5),
    )  # fmt: skip
    (row,) = tieops.analyze(model).rows
    assert row.owned_bytes == row.read_bytes == 4 * 8 * 4
    assert str(row.learnables[0]).endswith("(joined of 2 parts)")


def test_buffers_and_tables_are_no_learnables():
    model = model_of(
        "g (float[n, 64] x) => (float[n, 64] y) { i = GatherElements<axis = 1>(x, at)  "
        "y = Mul(i, w) }",
        at=np.zeros((1, 64), np.int64), w=noise(64),
    )  # fmt: skip
    assert tieops.analyze(model).totals.learnables_stored == 64


def test_an_if_is_fed_by_what_its_branches_read():
    model = model_of("""g (bool c, float[2] x) => (float[2] y) {
        h = Relu(x)
        y = If(c) <then_branch = a () => (float[2] p) { p = Neg(h) },
                   else_branch = b () => (float[2] q) { q = Abs(h) }> }""")
    branch = next(row for row in tieops.analyze(model).rows if row.kind == "If")
    assert [port.name for port in branch.inputs] == ["c", "h"]


# Problems

TROUBLED = """g (int64[b] ids, float[b] idle) => (float[b, 60] y, float[8, 60] fixed) {
    e = Gather(emb, ids)  y = MatMul(e, head)  fixed = Transpose<perm = [1, 0]>(emb)
    dead = Mul(e, unread) }"""


def troubled() -> tieops.TiedModel:
    emb = noise(60, 8)
    return model_of(TROUBLED, emb=emb, head=emb.T.copy(), unread=noise(8), lost=noise(9))


def large(text: str) -> tieops.TiedModel:
    return model_of(text, emb=noise(MINIMUM // 32, 16))


def gemm() -> tieops.TiedModel:
    return large("""g (int64[b] ids) => (float[b, 31250] y) {
        e = Gather(emb, ids)  y = Gemm<transB = 1>(e, emb) }""")


def branched() -> tieops.TiedModel:
    return model_of("""g (float[n, 64] x) => (float[n, 64] y) {
        h = MatMul(x, w)
        y = If(never) <then_branch = a () => (float[n, 64] p) { p = MatMul(h, lost) },
                       else_branch = b () => (float[n, 64] q) { q = MatMul(h, w) }> }""",
        w=noise(64, 64), lost=2 * noise(64, 64), never=np.array(False))  # fmt: skip


CASES = {
    "dead branch": branched,
    "duplicate": troubled,
    "disconnected output": troubled,
    "unneeded": troubled,
    "unused input": troubled,
    "folded copy": lambda: large(
        """g (int64[b] ids) => (float[b, 31250] y) {
            e = Gather(emb, ids)  t = Transpose<perm = [1, 0]>(emb)  y = MatMul(e, t) }"""
    ),
    "packed copy": gemm,
    "quantizer": gemm,
}


COPIES = {"folded copy", "packed copy"}


def assert_mended(kind: str, again: tieops.TiedModel) -> None:
    """Hold that a problem is gone; what fixes one copy in memory leaves no other."""
    gone = COPIES if kind in COPIES else {kind}
    assert not gone & {each.kind for each in tieops.analyze(again).problems}


@pytest.mark.parametrize("kind", CASES)
def test_the_call_that_is_told_mends_the_problem(kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = CASES[kind]()
    problem = next(each for each in tieops.analyze(model).problems if each.kind == kind)
    fixed: Any = eval(problem.call, {"tieops": tieops, "model": model})
    again = fixed if isinstance(fixed, tieops.TiedModel) else tieops.from_onnx(fixed.path)
    assert_mended(kind, again)
    if problem.severity == "waste":
        saved = model.ledger.stored_bytes - again.ledger.stored_bytes
        assert saved == problem.nbytes > 0


@pytest.mark.parametrize("kind", CASES)
def test_the_command_that_is_told_mends_the_problem(kind, tmp_path):
    model = CASES[kind]()
    path = tieops.to_onnx(model, tmp_path / "m.onnx", tie_form="portable", external_data=False).path
    problems = tieops.analyze(tieops.from_onnx(path)).problems
    command = next(each.command for each in problems if each.kind == kind)
    words = {"MODEL": str(path), "OUT": str(tmp_path / "out.onnx")}
    program, *args = [words.get(word, word) for word in shlex.split(command)]
    assert program == "tieops"
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert_mended(kind, tieops.from_onnx(tmp_path / "out.onnx"))


def test_a_packed_copy_is_told_where_an_embedding_keeps_the_original_alive(tmp_path):
    model = gemm()
    packed = next(e for e in tieops.analyze(model).problems if e.kind == "packed copy")
    assert packed.nbytes == 31250 * 16 * 4
    fixed: Any = eval(packed.call.replace("out.onnx", str(tmp_path / "out.onnx")),
                       {"tieops": tieops, "model": model})  # fmt: skip
    (held,) = tieops.resident_bytes(tieops.session(fixed.path, "cpu")).ties
    assert held.verdict == "kept"
    two_products = large("""g (float[b, 16] x) => (float[b, 31250] y, float[b, 31250] z) {
        y = Gemm<transB = 1>(x, emb)  h = Neg(x)  z = Gemm<transB = 1>(h, emb) }""")
    assert "packed copy" not in [each.kind for each in tieops.analyze(two_products).problems]


def test_a_model_without_problems_has_none():
    found = tieops.analyze(model_of("g (float[n, 4] x) => (float[n, 6] y) { y = MatMul(x, w) }",
                                    w=noise(4, 6)))  # fmt: skip
    assert found.problems == ()
    assert "wrong   nothing\n" in str(found)
    assert "wasted  nothing\n" in str(found)


def test_duplicates_that_tie_leaves_apart_are_no_problem():
    zeros = np.zeros(96, np.float32)
    found = tieops.analyze(
        model_of("g (float[n, 96] x) => (float[n, 96] y) { h = Add(x, a)  y = Mul(h, b) }",
                 a=zeros, b=zeros.copy())
    )  # fmt: skip
    assert found.problems == ()
    assert len(found.duplicates) == 1
    assert "nothing (1 small or constant duplicate left apart)" in str(found)


def test_a_model_that_is_a_constant_says_so_and_still_loses_what_is_dead():
    model = model_of("""g (float[2] x) => (float[3] y) { y = Neg(w)  dead = Abs(v) }""",
                     w=noise(3), v=noise(4))  # fmt: skip
    problems = {each.kind: each for each in tieops.analyze(model).problems}
    assert "no input reaches any output" in problems["disconnected output"].what
    smaller = eval(problems["unneeded"].call, {"tieops": tieops, "model": model})
    assert smaller.ledger.stored_bytes == 12


# As text


@pytest.mark.slow
def test_the_first_screen_answers_and_keeps_to_its_columns(gpt2):
    lines = str(tieops.analyze(gpt2)).splitlines()
    assert max(map(len, lines)) <= 80
    screen = lines[:24]
    assert "tied    1 parameter, read in 2 slots, saves 6.40 kB" in screen
    assert "wasted  nothing" in "\n".join(screen)
    assert any(line.startswith("wrong ") for line in screen)
    (head,) = [i for i, line in enumerate(lines) if line.startswith("layer ")]
    assert head < 24


@pytest.mark.slow
def test_repeated_blocks_are_told_once(gpt2):
    text = str(tieops.analyze(gpt2))
    (fold,) = [line for line in text.splitlines() if "×2" in line]
    assert fold.startswith("transformer.h.0 … 1 ")
    block = sum(p.nbytes for p in gpt2.parameters if p.name.startswith("transformer.h."))
    assert fold.endswith(f"{block / 1000:.1f} kB")
    assert text.count(".attn.c_attn") == 1
    whole = as_text(tieops.analyze(gpt2), everything=True)
    assert whole.count(".attn.c_attn ") == 2
    assert "×" not in whole


@pytest.mark.slow
def test_calls_of_one_module_fold_and_their_readers_are_one_line():
    case = build("albert", 100, 16)
    model = tieops.from_torch(case.module, kwargs=case.inputs, dynamic_shapes=case.dynamic_shapes)
    text = str(tieops.analyze(model))
    assert "albert_layers.0.ffn.weight (transposed) ×12\n" in text
    (fold,) = [line for line in text.splitlines() if "  ×12 " in line]
    assert fold.split()[0].endswith(".albert_layers.0")
    rows = {row.name: row for row in tieops.analyze(model).rows}
    again = next(row for name, row in rows.items() if name.endswith(".ffn@11"))
    assert again.learnables[0].note == "tied to its module's first call, transposed"
    assert len(text.splitlines()) < 120


def test_a_long_list_of_ties_and_problems_is_cut_and_all_of_it_is_there_if_asked_for():
    weights = {f"w{i}": noise(9, 9) * (i + 1) for i in range(20)}
    body = "".join(f"a{i} = MatMul(x, w{i})  b{i} = MatMul(a{i}, w{i}) " for i in range(20))
    names = ", ".join(f"b{i}" for i in range(20))
    model = model_of(f"g (float[n, 9] x) => (float[n, 9] y) {{ {body} y = Sum({names}) }}",
                     **weights)  # fmt: skip
    found = tieops.analyze(model)
    lines = str(found).splitlines()
    assert next(i for i, line in enumerate(lines) if line.startswith("layer ")) <= 24
    assert any(line.endswith(" more") and "…" in line for line in lines[:24])
    assert as_text(found, everything=True).count("(storage), saves 324 B") == 20


# As data


def test_records_are_a_table_with_the_same_columns(gpt2):
    records = tieops.analyze(gpt2).records()
    assert len({tuple(record) for record in records}) == 1
    assert sum(record["owned_bytes"] for record in records) == sum(
        parameter.nbytes for parameter in gpt2.parameters
    )
    scalars = (str, int)
    assert all(isinstance(cell, scalars) for record in records for cell in record.values())
    assert {"layer", "kind", "input", "output", "role", "tied_to"} <= {*records[0]}


def test_everything_is_json(gpt2):
    data = json.loads(json.dumps(tieops.analyze(gpt2).to_dict()))
    assert len(data["layers"]) == len(gpt2.layers)
    linear = next(layer for layer in data["layers"] if layer["name"] == "lm_head")
    assert linear["slots"][0]["tied_to"] == "transformer.wte.weight"
    assert linear["outputs"][0]["shape"] == ["batch", "sequence", 100]
    assert data["totals"]["stored_bytes"] == data["ledger"]["stored_bytes"]


def test_an_analysis_cannot_be_changed_and_what_is_no_model_is_refused():
    found = tieops.analyze(head())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = ()
    with pytest.raises(tieops.TieopsError, match="expected a TiedModel, got an int"):
        tieops.analyze(3)


# In a notebook


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = '<script>alert("x")</script>&\x1b[31m\n"\' onload=x'


def hostile() -> tieops.TiedModel:
    model = troubled()
    for value in (*model.ir.graph.inputs, *model.ir.graph.outputs):
        value.name = HOSTILE + (value.name or "")
    for value in [*model.ir.graph.initializers.values()]:
        value.name = HOSTILE + (value.name or "")
    for node in model.ir.graph:
        node.name = HOSTILE + node.op_type
    return TiedModel(model.ir)


def test_names_cannot_inject_markup_or_control_the_terminal():
    model = hostile()
    tags = _Tags()
    tags.feed(model._repr_html_())
    assert tags.open == []
    assert tags.tags <= {"style", "div", "p", "b", "pre", "br", "details", "summary", "table",
                         "tr", "th", "td"}  # fmt: skip
    found = tieops.analyze(model)
    for text in (str(found), as_text(found, path="m.onnx", everything=True)):
        assert all(line.isprintable() for line in text.split("\n"))
    assert "\x1b" not in model._repr_html_()


def test_a_notebook_shows_the_same(gpt2):
    page = gpt2._repr_html_()
    assert page == tieops.analyze(gpt2)._repr_html_()
    for words in ("saves 6.40 kB", "transformer.wte.weight", "×2", "&nbsp;.attn.c_attn"):
        assert words in page
    assert "http" not in page
    assert "<script" not in page


def test_any_path_can_be_pasted_into_a_shell(tmp_path):
    path = Path("dir with space") / "it's.onnx"
    text = as_text(tieops.analyze(troubled()), path=str(path), everything=True)
    (line,) = [line for line in text.splitlines() if "tieops tie " in line]
    assert shlex.split(line.partition("fix: ")[2]) == ["tieops", "tie", str(path), "OUT"]
    assert set(text) <= {*string.printable, "…", "×", "–"}
