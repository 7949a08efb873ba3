"""The commands of passes are made from their fields, and their messages speak of flags."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir
import pytest
import typer
from typer.testing import CliRunner

import tieops
import tieops.passes
from tests.support.graphs import made
from tieops.cli import app, main
from tieops.cli.pass_options import field_docs, flag_of, in_flags, option_parameters, pass_with
from tieops.cli.surgery import COMMANDS
from tieops.errors import PreconditionError
from tieops.model import TiedModel
from tieops.passes import Plan, Preserves, Rewrite, SurgeryPass, TiePass

PASSES: dict[str, Any] = {
    command: getattr(tieops.passes, name) for command, (name, _) in COMMANDS.items()
}
IN_ROW = """g (int64[n] x, float scale) => (float[n,50] y, float[8,50] weights) {
    h = Gather(emb, x)  s = Mul(h, scale)  t = Transpose<perm = [1, 0]>(emb)  z = MatMul(s, t)
    y = Softmax(z)  weights = Identity(t) }"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tieops.to_onnx(made(IN_ROW, emb=(50, 8)), tmp_path / "m.onnx", tie_form="portable")
    return tmp_path / "m.onnx"


def parameters(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    with group.make_context("tieops", [command], resilient_parsing=True) as context:
        _, found, _ = group.resolve_command(context, [command])
    return {each.name: each for each in found.params}


def done(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """Return what a command that is misuse says."""
    monkeypatch.setattr(sys, "argv", ["tieops", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_every_pass_has_its_command() -> None:
    passes = {name for name in tieops.passes.__all__ if name.endswith("Pass")}
    passes -= {"SurgeryPass", "LowerTiedReadsPass"}  # what they share; what to_onnx runs itself
    assert {name for name, _ in COMMANDS.values()} == passes


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_has_its_flag_with_its_default_and_its_help(command: str) -> None:
    surgery, options = PASSES[command], parameters(command)
    docs = field_docs(surgery)
    assert list(docs) == [field.name for field in fields(surgery)]
    for field in fields(surgery):
        option = options[field.name]
        assert flag_of(field) in option.opts
        assert option.help
    assert list(options)[:2] == ["model", "out"]
    defaults = {name: each.default for name, each in options.items()}
    required = {"out_features": 3} if "out_features" in options else {}
    given = {f.name: defaults[f.name] for f in fields(surgery)} | required
    assert repr(pass_with(surgery, given)) == repr(surgery(**required))


@dataclass(frozen=True, kw_only=True)
class _DeepTiePass(TiePass):
    """Join more.

    Args:
        targets: What to tie.
        keep: Whose values stay.
        include_small: Small ones too.
        max_depth: How deep [to go]; as deep as there is by default,
            or less.
        as_is: Whether nothing is moved.
        skip_names: What to leave out.
    """

    max_depth: int | None = None
    as_is: bool = True
    skip_names: tuple[str, ...] = ()


def test_a_field_that_is_added_is_a_flag() -> None:
    found = {each.name: each for each in option_parameters(_DeepTiePass)}
    assert list(found)[3:] == ["max_depth", "as_is", "skip_names"]
    options = [found[name].annotation.__metadata__[0] for name in list(found)[3:]]
    assert [(each.default, *each.param_decls) for each in options] == [
        ("--max-depth",), ("--as-is/--no-as-is",), ("--skip-name",)
    ]  # fmt: skip
    assert options[0].help == "How deep \\[to go]; as deep as there is by default, or less."
    given = {"max_depth": 3, "as_is": False, "skip_names": ["a", "b"], "targets": None}
    made_of = pass_with(_DeepTiePass, given | {"keep": None, "include_small": False})
    assert made_of == _DeepTiePass(max_depth=3, as_is=False, skip_names=("a", "b"))


class _BarePass(SurgeryPass[Plan]):
    """A pass without options, which another package could have."""

    preserves: ClassVar[Preserves] = Preserves.BITS

    def plan(self, model: TiedModel) -> Plan:
        return Plan(model=model)

    def apply(self, model: onnx_ir.Model, plan: Plan) -> Rewrite:
        return Rewrite()


def test_a_pass_without_documented_fields_has_no_docs() -> None:
    assert field_docs(_BarePass) == {}


# --- what the options do -------------------------------------------------------------------------


def test_the_commands_do_what_the_verbs_do(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done("extract", source, out, "--output", "h")
    assert [v.name for v in tieops.from_onnx(out).ir.graph.outputs] == ["h"]
    done("rename", source, out, "--name", "y=logits", "--name", "emb=table")
    again = tieops.from_onnx(out)
    assert again.ir.graph.outputs[0].name == "logits"
    assert again.parameters[0].name == "table"
    done("freeze-inputs", source, out, "--input", "scale=0.5")
    frozen = tieops.from_onnx(out)
    assert [value.name for value in frozen.inputs] == ["x"]
    stored = frozen.ir.graph.initializers["scale"].const_value
    assert stored is not None
    assert np.array_equal(stored.numpy(), 0.5)
    found = done("remove-layers", source, out, "--layer", "Softmax_y")
    assert "Softmax" not in [node.op_type for node in tieops.from_onnx(out).ir.graph]
    assert found["changes"][0] == "Softmax_y: removed; z takes its place"


def test_the_reader_of_a_doubtful_name_can_be_chosen(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    text = "g (int64[n] x) => (float[n,50] y) { h = Gather(emb, x)  y = MatMul(h, out) }"
    joined = tieops.tie(made(text, emb=rows, out=rows.T.copy())).clone()
    for node in joined.graph:  # of a file that does not say who reads which name
        node.metadata_props.pop("tieops.reads", None)
    tieops.to_onnx(TiedModel(joined), tmp_path / "m.onnx")
    done("untie", tmp_path / "m.onnx", tmp_path / "free.onnx", "--name", "out=Gather_h")
    assert {"out", "MatMul_y.weight"} >= {
        each.name for each in tieops.from_onnx(tmp_path / "free.onnx").parameters
    } - {"emb"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("rename", "--name", "y"), "expected --name NAME=NAME, got y"),
        (("untie", "--name", "=y"), "expected --name NAME=NAME, got =y"),
        (("freeze-inputs", "--input", "scale=half"), "--input NAME or NAME=VALUE, got scale=half"),
        (("freeze-inputs", "--input", "scale=" + "[" * 99999), "expected --input NAME or"),
        (("freeze-inputs", "--input", "x"), "fix: give one: tieops freeze-inputs"),
        (("extract",), 'fix: name values or layers: tieops extract --input h --output y'),
        (("tie", "--keep", "emb"), "fix: name two or more targets"),
        (("untie", "-t", "nobody"), "fix: see tieops inspect MODEL"),
        (("untie", "-t", "Softmax_y"), "fix: see tieops inspect MODEL"),
        (("replace-head", "--out-features", "0"), "--out-features must be a positive"),
        (("replace-head", "--out-features", "3", "--seed", "-1"), "--seed must be a non-neg"),
        (("replace-head", "--out-features", "3", "--lr-factor", "-1"), "--lr-factor must be a"),
        (("remove-outputs", "--output", "y", "--output", "weights"), "one of them: --keep NAME"),
        (("remove-outputs", "--output", "y", "--keep", "y"), "--output and --keep cannot be"),
    ],
)  # fmt: skip
def test_messages_speak_of_flags(
    arguments: tuple[str, ...],
    text: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, *rest = arguments
    error = said(monkeypatch, capsys, command, source, tmp_path / "out.onnx", *rest)
    assert text in error
    for field in fields(PASSES[command]):
        assert f"{field.name}=" not in error
    assert "model," not in error
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("command", "text", "want"),
    [
        ("replace-head", 'name the layer: head="fc"', "name the layer: --head fc"),
        ("replace-head", "or pass bias=False", "or pass --no-bias"),
        ("replace-head", "pass bias=True, then", "pass --bias, then"),
        ("replace-head", "out_features=-3 is none", "--out-features -3 is none"),
        (
            "replace-head",
            "remove it first, or its output with remove_disconnected_outputs(outputs=[...])",
            "remove it first, or its output with tieops remove-outputs --output NAME",
        ),
        ("tie", "say whose values stay: keep=", "say whose values stay: --keep"),
        ("tie", "see print(model.layers), or tieops inspect MODEL", "see tieops inspect MODEL"),
        ("extract", 'outputs=["a", "b"]', "--output a --output b"),
        ("remove-outputs", "unused_inputs=True removes it", "--unused-inputs removes it"),
        ("tie", "convert it: --keep is no field=1", "convert it: --keep is no field=1"),
    ],
)
def test_what_a_message_says_in_python_is_said_in_flags(command: str, text: str, want: str) -> None:
    assert in_flags(text, PASSES[command], PASSES) == want


def test_the_report_speaks_of_flags(source: Path, tmp_path: Path) -> None:
    arguments = ["remove-outputs", source, tmp_path / "out.onnx", "--output", "y"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert "nothing reads it; --unused-inputs removes it" in result.stdout
    assert any("--unused-inputs" in skip for skip in done(*arguments)["skips"])


@pytest.mark.parametrize(
    ("command", "tried", "meant"),
    [
        ("replace-head", "--num-classes", "--out-features"),
        ("replace-head", "--num-labels", "--out-features"),
        ("replace-head", "--layer", "--head"),
        ("replace-head", "--lr", "--lr-factor"),
        ("untie", "--layer", "--target"),
        ("tie", "--targets", "--target"),
        ("remove-outputs", "--remove", "--output"),
        ("remove-layers", "--target", "--layer"),
        ("extract", "--inputs", "--input"),
        ("rename", "--rename", "--name"),
    ],
)
def test_flags_that_people_try_get_a_hint(
    command: str,
    tried: str,
    meant: str,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = said(monkeypatch, capsys, command, source, "out.onnx", tried, "3")
    assert tried in error
    assert f"{meant}" in error.split(tried, 1)[1]


def test_a_pair_that_is_none_is_refused() -> None:
    with pytest.raises(PreconditionError, match=r"expected --name NAME=NAME, got a="):
        pass_with(PASSES["rename"], {"names": ["a="]})
