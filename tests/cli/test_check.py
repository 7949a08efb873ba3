"""``tieops check``: what it holds a model to, and how it ends."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner, Result

import tieops
from tests.properties.readings import pair
from tieops.cli import app
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.metadata.keys import add_names

VOCAB, WIDTH = 10_000, 64


def model_of(text: str) -> tieops.TiedModel:
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> ' + text)
    weight = np.random.default_rng(0).standard_normal((VOCAB, WIDTH), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "emb"))
    return tieops.from_onnx(proto)


HEAD = f"""g (int64[b] ids) => (float[b, {VOCAB}] y) {{
    e = Gather(emb, ids)  t = Transpose<perm = [1, 0]>(emb)  y = MatMul(e, t) }}"""
AUTOENCODER = f"""g (float[b, {VOCAB}] x) => (float[b, {VOCAB}] y) {{
    h = MatMul(x, emb)  t = Transpose<perm = [1, 0]>(emb)  y = MatMul(h, t) }}"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("check")
    head = model_of(HEAD)
    written = {
        "gemm": (head, {}),
        "portable": (head, {"tie_form": "portable"}),
        "inside": (head, {"external_data": False}),
        "untied": (tieops.untie(head), {}),
        "autoencoder": (model_of(AUTOENCODER), {}),
    }
    return {
        name: tieops.to_onnx(
            model, folder / f"{name}.onnx", **{"external_data": True, **options}
        ).path
        for name, (model, options) in written.items()
    }


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, args)])


@pytest.mark.parametrize("name", ["gemm", "portable"])
@pytest.mark.parametrize("memory", ["packed", pytest.param("mapped", marks=pytest.mark.slow)])
def test_what_tieops_keeps_holds(files, name, memory):
    result = invoke(files[name], "--runtime", "--memory", memory)
    assert result.stdout == "all that was asked holds\n"
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("name", "memory", "verdict", "fix"),
    [
        ("portable", "default", "folded", "--memory packed, or --memory mapped"),
        ("gemm", "default", "prepacked", "--memory packed, or --memory mapped"),
        ("autoencoder", "packed", "prepacked", "--memory mapped: it is packed for"),
        ("inside", "packed", "prepacked", "--external-data: inside the file"),
    ],
)
def test_each_tie_undone_is_a_line_with_what_mends_it(files, name, memory, verdict, fix):
    result = invoke(files[name], "--runtime", "--memory", memory)
    assert result.exit_code == 1
    line, count = result.stdout.splitlines()
    assert line.startswith(f"emb: {verdict}, 5.12 MB of 2.56 MB; fix: ")
    assert fix in line
    assert count == "1 thing did not hold"


@pytest.mark.slow
def test_the_fixes_fix(files, tmp_path):
    assert invoke(files["autoencoder"], "--runtime", "--memory", "mapped").exit_code == 0
    line = invoke(files["inside"], "--runtime").stdout.splitlines()[0]
    command = shlex.split(line.partition("fix: tieops ")[2].partition(":")[0])
    out = tmp_path / "out.onnx"
    command[command.index("OUT")] = str(out)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert invoke(out, "--runtime").exit_code == 0


def test_expected_ties(files):
    assert invoke(files["gemm"], "--expect-tie", "Gather_e,y_gemm").exit_code == 0
    result = invoke(files["untied"], "--expect-tie", "Gather_e, MatMul_y")
    assert result.exit_code == 1
    fix = f"tieops tie {files['untied']} OUT -t Gather_e -t MatMul_y"
    assert result.stdout.startswith(f"Gather_e, MatMul_y: not tied; fix: {fix}\n")


def test_names_of_a_tied_parameter_are_names_of_the_tie(tmp_path):
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> '
        "g (int64[b] ids) => (float[b, 50] y) { e = Gather(emb, ids)  y = MatMul(e, head) }"
    )
    weight = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    for name, array in (("emb", weight), ("head", weight.T.copy())):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    apart = tieops.from_onnx(proto)
    free = tieops.to_onnx(apart, tmp_path / "free.onnx").path
    tied = tieops.to_onnx(tieops.tie(apart), tmp_path / "tied.onnx").path
    assert invoke(tied, "--expect-tie", "emb,head").exit_code == 0
    assert invoke(free, "--expect-tie", "emb,head").exit_code == 1


@pytest.mark.parametrize(
    ("names", "code"),
    [("emb.weight,fc.weight", 0), ("emb,fc", 0), ("emb.weight,gone.weight", 1)],
)
@pytest.mark.slow
def test_a_tie_holds_only_between_readers_that_own_the_names(tmp_path, names, code):
    tied, _ = pair("PlainLinear")
    model = tieops.from_torch(tied, tied.inputs)
    add_names(model.ties[0].parameter.value, ["gone.weight"])  # of a layer that left the tie
    path = tieops.to_onnx(tieops.from_onnx(model.ir), tmp_path / "model.onnx").path
    assert invoke(path, "--expect-tie", names).exit_code == code


def test_duplicate_bytes(files):
    assert invoke(files["gemm"], "--max-duplicate-bytes", 0).exit_code == 0
    size = VOCAB * WIDTH * 4
    assert invoke(files["untied"], "--max-duplicate-bytes", size).exit_code == 0
    result = invoke(files["untied"], "--max-duplicate-bytes", size - 1)
    assert result.exit_code == 1
    assert "2.56 MB stored a second time, emb first of all" in result.stdout


@pytest.mark.slow
def test_everything_at_once_as_json(files):
    result = invoke(
        files["untied"], "--runtime", "--max-duplicate-bytes", 0, "--expect-tie",
        "Gather_e,MatMul_y", "--json",
    )  # fmt: skip
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["holds"] is False
    assert [each["check"] for each in data["findings"]] == ["expect-tie", "max-duplicate-bytes"]
    holds = invoke(files["gemm"], "--runtime", "--json")
    assert json.loads(holds.stdout) == {"holds": True, "findings": []}


def test_misuse(files):
    for args, error in (
        ([], PreconditionError),
        (["--expect-tie", "emb"], PreconditionError),
        (["--expect-tie", "emb,nowhere"], SelectionError),
    ):
        result = invoke(files["gemm"], *args)
        assert isinstance(result.exception, error)  # main() ends with 2 for these
    assert invoke(files["gemm"], "--runtime", "--memory", "one").exit_code == 2
    assert invoke(files["gemm"], "--max-duplicate-bytes", "-1").exit_code == 2


@pytest.mark.slow
def test_run_says_which_copies_there_are(files):
    args = ["run", str(files["gemm"]), "--provider", "cpu", "--memory"]
    text = CliRunner().invoke(app, args).stdout
    assert "emb: f32[10000,64]  kept, 2.56 MB of 2.56 MB" in text
    data = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    assert data["memory"]["parameters"][0]["verdict"] == "kept"
    assert "memory" not in json.loads(CliRunner().invoke(app, [*args[:-1], "--json"]).stdout)
