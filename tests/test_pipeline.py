"""Passes in a row: one report, an argument left alone, and the same edits from a shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from typer.testing import CliRunner, Result

import tieops
from tests.support.graphs import made
from tests.support.model_facts import serialized
from tieops.cli import app, main
from tieops.errors import PreconditionError, SelectionError
from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass
from tieops.passes.replace_head import ReplaceHeadPass
from tieops.passes.tie import TiePass
from tieops.passes.untie import UntiePass

SEED = """g (int64[n] x) => (float[n,50] y, float[8,50] weights) {
    h = Gather(emb, x)  t = Transpose<perm = [1, 0]>(emb)  y = MatMul(h, t)
    weights = Identity(t) }"""
EMB_BYTES = 50 * 8 * 4
IDS = np.array([0, 3, 49])


def seed() -> tieops.TiedModel:
    return made(SEED, emb=(50, 8))


def transfer(**options: Any) -> ReplaceHeadPass:
    return ReplaceHeadPass(**{"out_features": 15, "name": "fcNew"} | options)


# -- the pipeline ---------------------------------------------------------------------------------


def test_the_report_says_what_each_pass_did_and_compares() -> None:
    report = tieops.Pipeline([transfer(), RemoveDisconnectedOutputsPass()])(seed())
    assert str(report).splitlines() == [
        "ReplaceHead",
        "  MatMul_y: 50 → 15 features as fcNew (f32[15,8], f32[15])",
        "RemoveDisconnectedOutputs",
        "  output weights: no graph input reaches it",
        "  node Identity: nothing needs it any more",
        "  node Transpose: nothing needs it any more",
        "layers  2 → 2",
        "ties    1 → 0",
        "stored  1.60 kB → 2.14 kB",
    ]
    assert [type(each) for each, _ in report.results] == [
        ReplaceHeadPass,
        RemoveDisconnectedOutputsPass,
    ]


def test_the_report_says_what_was_declined() -> None:
    gain = np.ones(8, np.float32)
    model = made(
        "g (float[n,8] x) => (float[n,8] y) { h = Mul(x, a)  y = Mul(h, b) }", a=gain, b=gain
    )
    report = tieops.Pipeline([TiePass(), UntiePass()])(model)
    text = str(report).splitlines()
    assert text[:2] == ["Tie", "  a: not changed, fewer than 64 elements"]
    assert text[2:4] == ["Untie", "  no change"]
    assert not report.modified
    assert [result.modified for _, result in report.results] == [False, False]


def test_modified_tells_whether_any_pass_changed_anything() -> None:
    report = tieops.Pipeline([TiePass(), UntiePass()])(seed())
    assert [result.modified for _, result in report.results] == [False, True]
    assert report.modified
    assert not tieops.Pipeline([])(seed()).modified


def test_a_pipeline_does_what_the_functions_do_one_by_one() -> None:
    model = seed()
    report = tieops.Pipeline([UntiePass(), transfer(), RemoveDisconnectedOutputsPass()])(model)
    stepwise = tieops.remove_disconnected_outputs(
        tieops.replace_head(tieops.untie(model), out_features=15, name="fcNew")
    )
    assert serialized(report.model.ir) == serialized(stepwise.ir)
    assert report.before is model


def test_the_argument_is_left_alone() -> None:
    model = seed()
    before = serialized(model.ir)
    report = tieops.Pipeline([UntiePass(), RemoveDisconnectedOutputsPass()])(model)
    assert serialized(model.ir) == before
    assert serialized(report.model.ir) != before


def test_an_error_in_a_later_pass_comes_as_it_is_and_leaves_the_argument_alone() -> None:
    model = seed()
    before = serialized(model.ir)
    pipeline = tieops.Pipeline([UntiePass(), UntiePass(targets=("fcc",)), transfer()])
    with pytest.raises(SelectionError, match="nothing in the model is named fcc"):
        pipeline(model)
    assert serialized(model.ir) == before
    with pytest.raises(PreconditionError, match="no output would be left"):
        tieops.Pipeline([UntiePass(), RemoveDisconnectedOutputsPass(outputs=("y", "weights"))])(
            model
        )
    assert serialized(model.ir) == before


def test_a_pipeline_can_be_run_again() -> None:
    pipeline = tieops.Pipeline([UntiePass(), TiePass()])
    first, second = pipeline(seed()), pipeline(seed())
    assert str(first) == str(second)
    third = pipeline(first.model)
    assert third.model.ledger == first.model.ledger


# -- in other hands -------------------------------------------------------------------------------


def test_passes_run_inside_of_onnx_ir_s_sequential() -> None:
    graph = seed().clone()
    result = onnx_ir.passes.Sequential(UntiePass(), RemoveDisconnectedOutputsPass())(graph)
    assert result.modified
    assert result.model is graph, "these passes work in place"
    model = tieops.TiedModel(graph)
    assert not model.ties
    assert [output.name for output in graph.graph.outputs] == ["y"]
    assert not onnx_ir.passes.Sequential(UntiePass(), TiePass(targets=()))(
        made("g (float[n,8] x) => (float[n,5] y) { y = MatMul(x, w) }", w=(8, 5)).clone()
    ).modified


def test_onnx_ir_s_sequential_wraps_errors_of_which_ours_is_the_cause() -> None:
    with pytest.raises(onnx_ir.passes.PassError) as caught:
        onnx_ir.passes.Sequential(UntiePass(targets=("fcc",)))(seed().clone())
    causes: list[BaseException] = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert any("nothing in the model is named fcc" in str(each) for each in causes)


def test_a_pass_takes_the_result_of_another() -> None:
    graph = seed().clone()
    result = RemoveDisconnectedOutputsPass()(UntiePass()(graph))
    assert result.model is graph
    assert result.changes[0].target == "output weights"


@pytest.mark.parametrize(
    ("surgery", "text"),
    [
        (TiePass(keep="emb"), "TiePass(targets=(), keep='emb', include_small=False)"),
        (
            UntiePass(targets=("fc",)),
            "UntiePass(targets=('fc',), together=False, accidental=False, names={})",
        ),
        (
            transfer(lr_factor=10),
            "ReplaceHeadPass(head=None, out_features=15, lr_factor=10, bias_lr_factor=None, "
            "init='kaiming_uniform', bias=True, seed=0, name='fcNew')",
        ),
        (
            RemoveDisconnectedOutputsPass(keep=("y",)),
            "RemoveDisconnectedOutputsPass(outputs=(), keep=('y',), unused_inputs=False)",
        ),
    ],
    ids=["tie", "untie", "replace head", "remove outputs"],
)
def test_a_pass_shows_its_options(surgery: Any, text: str) -> None:
    assert repr(surgery) == text
    with pytest.raises(AttributeError):
        surgery.targets = ("other",)


# -- from a shell ---------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tieops.to_onnx(seed(), tmp_path / "seed.onnx", tie_form="portable")
    return tmp_path / "seed.onnx"


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in args])


def printed(*args: object) -> Any:
    result = invoke(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object
) -> tuple[int, str]:
    """Return exit code and stderr of a command as the console script runs it."""
    monkeypatch.setattr(sys, "argv", ["tieops", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().err


def test_untie_from_a_shell(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "free.onnx"
    result = invoke("untie", source, out)
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if "wrote" not in line] == [
        "Untie",
        "  MatMul_y.weight: owns MatMul_y.weight: f32[8,50], 1.60 kB",
        "layers  2 → 2",
        "ties    1 → 0",
        "stored  1.60 kB → 3.20 kB",
    ]
    free = tieops.from_onnx(out)
    assert not free.ties
    assert free.ledger.stored_bytes == 2 * EMB_BYTES
    default = tieops.to_onnx(seed(), tmp_path / "default.onnx")
    assert tieops.verify(out, against=default, rtol=0, atol=0, optimize=False)


def test_untie_what_is_named_from_a_shell(tmp_path: Path) -> None:
    text = """g (int64[n] x) => (float[n,50] y, float[n,50] z) {
        h = Gather(emb, x)  t = Transpose(emb)  y = MatMul(h, t)  z = MatMul(h, t) }"""
    tieops.to_onnx(made(text, emb=(50, 8)), tmp_path / "m.onnx", tie_form="portable")
    out = tmp_path / "free.onnx"
    one = printed("untie", tmp_path / "m.onnx", out, "-t", "MatMul_y")
    assert (one["ties_before"], one["ties_after"]) == (1, 1)
    assert one["changes"] == ["MatMul_y.weight: owns MatMul_y.weight: f32[8,50], 1.60 kB"]
    both = ("untie", tmp_path / "m.onnx", out, "-t", "MatMul_y", "-t", "MatMul_z")
    apart, together = printed(*both), printed(*both, "--together")
    assert apart["stored_bytes_after"] == 3 * EMB_BYTES
    assert together["stored_bytes_after"] == 2 * EMB_BYTES
    assert (apart["ties_after"], together["ties_after"]) == (0, 1)
    assert [len(tie.slots) for tie in tieops.from_onnx(out).ties] == [2]


def test_replace_head_from_a_shell(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    flags = ("--head", "MatMul_y", "--out-features", 15, "--lr-factor", 10, "--bias-lr-factor", 5)
    found = printed("replace-head", source, out, *flags, "--init", "zeros", "--name", "fcNew")
    assert found["changes"][0] == "MatMul_y: 50 → 15 features as fcNew (f32[15,8], f32[15])"
    assert found["stored_bytes_after"] == EMB_BYTES + (15 * 8 + 15) * 4
    small = tieops.from_onnx(out)
    new = {each.name: each for each in small.parameters if each.name != "emb"}
    assert {key: each.lr_factor for key, each in new.items()} == {
        "fcNew.weight": 10.0,
        "fcNew.bias": 5.0,
    }
    assert not any(each.numpy().any() for each in new.values())


def test_a_head_without_a_bias_and_with_a_seed_from_a_shell(source: Path, tmp_path: Path) -> None:
    values: list[bytes] = []
    for number in (1, 2, 2):
        out = tmp_path / "small.onnx"
        result = invoke(
            "replace-head", source, out, "--out-features", 5, "--no-bias", "--seed", number
        )
        assert result.exit_code == 0, result.output
        (weight,) = [each for each in tieops.from_onnx(out).parameters if each.name != "emb"]
        assert weight.shape == (5, 8)
        values.append(weight.numpy().tobytes())
    assert values[0] != values[1] == values[2]


def test_remove_outputs_from_a_shell(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.onnx"
    result = invoke("remove-outputs", source, out)
    assert result.exit_code == 0, result.output
    assert "  output weights: no graph input reaches it" in result.stdout.splitlines()
    assert [output.name for output in tieops.from_onnx(out).ir.graph.outputs] == ["y"]
    for flags, names in ((("--output", "y"), ["weights"]), (("--keep", "weights"), ["weights"])):
        found = printed("remove-outputs", source, out, *flags)
        assert found["changes"][0] == "output y: removed as asked"
        assert [output.name for output in tieops.from_onnx(out).ir.graph.outputs] == names
        assert [value.name for value in tieops.from_onnx(out).inputs] == ["x"]
        assert found["skips"] == [
            "input x: not changed, nothing reads it; --unused-inputs removes it"
        ]
    printed("remove-outputs", source, out, "--keep", "weights", "--unused-inputs")
    assert not tieops.from_onnx(out).inputs


@pytest.mark.parametrize(
    "command",
    [("untie",), ("replace-head", "--out-features", "15"), ("remove-outputs",)],
    ids=lambda command: command[0],
)
def test_a_dry_run_says_the_same_and_writes_nothing(
    command: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    name, *flags = command
    dry = printed(name, source, out, *flags, "--dry-run")
    assert not out.exists()
    assert dry["changes"]
    text = invoke(name, source, out, *flags, "--dry-run").stdout
    assert text.splitlines()[-1] == "nothing written (dry run)"
    assert not out.exists()
    wet = printed(name, source, out, *flags)
    assert wet["written"] == str(out)
    assert wet["stored_bytes_written"] == tieops.from_onnx(out).ledger.stored_bytes
    assert dry == wet | {"written": None, "stored_bytes_written": None}
    owned = sum(parameter.nbytes for parameter in tieops.from_onnx(out).parameters)
    assert owned == wet["stored_bytes_after"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("untie", "-t", "embb"), "nothing in the model is named embb"),
        (
            ("replace-head", "--out-features", "0"),
            "--out-features must be a positive integer, got 0",
        ),
        (("replace-head", "--out-features", "5", "--init", "magic"), "magic"),
        (("replace-head", "--out-features", "5", "--head", "MatMull_y"), "MatMul_y"),
        (("remove-outputs", "--output", "weigths"), "weights"),
        (("remove-outputs", "--output", "y", "--keep", "y"), "cannot be combined"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_errors_are_texts_and_nothing_is_written(
    command: tuple[str, ...],
    words: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *flags = command
    code, err = ended(monkeypatch, capsys, name, source, tmp_path / "out.onnx", *flags)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("command", ["untie", "replace-head", "remove-outputs"])
def test_every_option_has_a_help(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    for flag in ("--dry-run", "--json"):
        assert flag in result.output
    assert f"tieops {command}" in result.output


def test_the_untied_file_runs(source: Path, tmp_path: Path) -> None:
    invoke("untie", source, tmp_path / "free.onnx")
    found = tieops.session(tmp_path / "free.onnx", provider="cpu").run({"x": IDS})
    emb = seed().parameters[0].numpy()
    np.testing.assert_allclose(found["y"], emb[IDS] @ emb.T, rtol=1e-5, atol=1e-5)
