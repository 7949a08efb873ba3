"""The command line: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from typer.testing import CliRunner, Result

import tieops
from tieops.cli import app, main

COMMANDS = ("inspect", "convert", "tie", "diff", "verify", "run", "check", "scan", "demo")


def copies(folder: Path, name: str = "copies.onnx", *, change: float = 0.0) -> Path:
    """Write a model that stores its embedding twice, once transposed."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[batch, sequence] x) => (float[batch, sequence, 50] y) {
            h = Gather(emb, x)  y = MatMul(h, head) }""")
    weight = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    head = weight.T.copy()
    head[3, 7] += change
    for key, array in (("emb", weight), ("head", head)):
        proto.graph.initializer.append(numpy_helper.from_array(array, key))
    onnx.save(proto, folder / name)
    return folder / name


def invoke(*args: object) -> Result:
    """Run a command that is expected to end without an error of tieops."""
    return CliRunner().invoke(app, [str(each) for each in args])


def printed(*args: object) -> Any:
    result = invoke(*args, "--json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object
) -> tuple[int, str]:
    """Return exit code and stderr of a command as the console script runs it."""
    monkeypatch.setattr(sys, "argv", ["tieops", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_worth_reading(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    text = result.output
    assert f"tieops {command}" in text
    assert "--json" in text
    assert len(text.split()) > 40


def test_help_lists_the_commands():
    for flags in (["--help"], ["-h"]):
        text = invoke(*flags).output
        assert all(command in text for command in COMMANDS)


def test_nothing_prints_help_and_is_misuse():
    result = invoke()
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_the_version_names_what_it_works_with():
    result = invoke("--version")
    assert result.exit_code == 0
    assert "onnxruntime: " in result.output
    assert "cpu: loads" in result.output


# Commands


def test_inspect(tmp_path):
    path = copies(tmp_path)
    assert invoke("inspect", path).output.startswith(f"{path.name}: 2 layers with learnables")
    found = printed("inspect", path)
    assert {*found} >= {"layers", "parameters", "ties", "duplicates", "ledger", "warnings"}
    assert [each["parameters"] for each in found["duplicates"]] == [["emb", "head"]]
    assert found["ledger"]["stored_bytes"] == 2 * 50 * 40 * 4


def test_convert(tmp_path):
    path, out = copies(tmp_path), tmp_path / "out.onnx"
    result = invoke("convert", path, out)
    assert result.exit_code == 0
    assert str(out) in result.output.replace("\n", "")
    assert len(tieops.from_onnx(out).ties) == 1
    found = printed("convert", path, tmp_path / "json.onnx", "--external-data")
    assert found["data_path"] == str(tmp_path / "json.onnx.data")
    assert found["stored_bytes_before"] == 2 * 50 * 40 * 4
    assert found["stored_bytes"] < 1.1 * 50 * 40 * 4
    assert len(found["ties"]) == 1
    kept = printed("convert", path, tmp_path / "kept.onnx", "--no-join", "--inline")
    assert (kept["ties"], kept["changes"]) == ([], [])
    assert kept["stored_bytes"] >= kept["stored_bytes_before"]
    portable = printed("convert", path, tmp_path / "p.onnx", "--tie-form", "portable")
    assert "Transpose" in [n.op_type for n in onnx.load(portable["path"]).graph.node]


def test_convert_takes_torch_files(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(30, 8)
            self.fc = torch.nn.Linear(8, 30, bias=False)
            self.fc.weight = self.emb.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.emb(x))

    module = Tied().eval()
    example = torch.zeros(2, 5, dtype=torch.long)
    torch.export.save(torch.export.export(module, (example,)), tmp_path / "m.pt2")
    assert printed("convert", tmp_path / "m.pt2", tmp_path / "a.onnx")["ties"] == [
        ["emb.weight", "fc.weight"]
    ]
    report = printed("verify", tmp_path / "a.onnx", tmp_path / "m.pt2")
    assert report["verdict"] in ("equal within tolerance", "equal bitwise")


def test_tie(tmp_path):
    path, out = copies(tmp_path), tmp_path / "out.onnx"
    found = printed("tie", path, out)
    assert (found["ties_before"], found["ties_after"]) == (0, 1)
    assert found["stored_bytes_after"] < found["stored_bytes_before"]
    assert found["written"] == str(out)
    assert len(tieops.from_onnx(out).ties) == 1
    text = invoke("tie", path, tmp_path / "text.onnx")
    assert text.exit_code == 0
    assert "head" in text.output
    assert "wrote" in text.output
    assert (tmp_path / "text.onnx").read_bytes() == out.read_bytes()


def test_tie_writes_nothing_in_a_dry_run(tmp_path):
    path, out = copies(tmp_path), tmp_path / "out.onnx"
    assert "nothing written" in invoke("tie", path, out, "--dry-run").output
    assert printed("tie", path, out, "--dry-run")["written"] is None
    assert not out.exists()


def test_tie_what_is_named_and_keep_what_is_said(tmp_path, monkeypatch, capsys):
    path, out = copies(tmp_path, change=1.0), tmp_path / "out.onnx"
    assert printed("tie", path, out)["ties_after"] == 0
    code, err = ended(monkeypatch, capsys, "tie", path, out, "-t", "emb", "-t", "head")
    assert code == 2
    assert "values differ" in err
    assert "--keep" in err
    found = printed("tie", path, out, "-t", "emb", "-t", "head", "--keep", "head")
    assert found["ties_after"] == 1


def test_verify(tmp_path):
    path, out, other = (
        copies(tmp_path),
        tmp_path / "out.onnx",
        copies(tmp_path, "other.onnx", change=1),
    )
    invoke("tie", path, out)
    result = invoke("verify", out, path)
    assert result.exit_code == 0
    assert result.output.startswith("equal ")
    assert printed("verify", path, path, "--rtol", 0, "--atol", 0)["verdict"] == "equal bitwise"
    different = invoke("verify", other, path)
    assert different.exit_code == 1
    assert "different" in different.output
    found = invoke("verify", other, path, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["verdict"] == "different"
    loose = invoke("verify", other, path, "--atol", 100)
    assert loose.exit_code == 0


def test_run(tmp_path):
    path, out = copies(tmp_path), tmp_path / "out.npz"
    made = printed("run", path, "--size", "batch=4", "-s", "sequence=3", "--provider", "cpu")
    assert made["provider"] == "cpu"
    assert made["inputs"] == {"x": {"dtype": "int64", "shape": [4, 3]}}
    assert made["outputs"] == {"y": {"dtype": "float32", "shape": [4, 3, 50]}}
    tokens = np.array([[1, 2, 3]])
    np.save(tmp_path / "x.npy", tokens)
    np.savez(tmp_path / "all.npz", x=tokens)
    given = invoke("run", path, "-i", f"x={tmp_path / 'x.npy'}", "-o", out, "--provider", "cpu")
    assert given.exit_code == 0, given.output
    assert "running on cpu" in given.output
    expected = tieops.session(path, "cpu").run({"x": tokens})["y"]
    np.testing.assert_array_equal(np.load(out)["y"], expected)
    archive = printed("run", path, "-i", tmp_path / "all.npz", "--provider", "cpu")
    assert archive["outputs"]["y"]["shape"] == [1, 3, 50]


@pytest.mark.slow
def test_demo(tmp_path):
    out = tmp_path / "demo.onnx"
    result = invoke("demo", "--out", out, "--provider", "cpu")
    assert result.exit_code == 0, result.output
    text = result.output
    for words in (
        "Embedding(1000, 300) -> LSTM(300) -> Linear(300, 1000) tied",
        "emb.weight = fc.weight: f32[1000,300] (object)",
        "running on cpu",
        "equal within tolerance",
        "1  tieops",
    ):
        assert words in text
    assert len(tieops.from_onnx(out).ties) == 1
    assert "copies of [1000, 300] in the file, 1.20 MB each:" in text
    found = printed("demo", "--provider", "cpu")
    assert found["verified"]["verdict"] == "equal within tolerance"
    assert found["copies"]["tieops"] == 1
    assert max(found["copies"].values()) == 2
    assert found["model"]["ties"][0]["names"] == ["emb.weight", "fc.weight"]


# Errors


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["inspect", "none.onnx"], 2, ["cannot open none.onnx", "fix: check the path"]),
        (["inspect", "bad.onnx"], 2, ["bad.onnx", "no ONNX model"]),
        (["inspect", "bad.pt2"], 2, ["bad.pt2 is not a zip archive"]),
        (["convert", "copies.onnx", "none/out.onnx"], 1, ["cannot write none/out.onnx"]),
        (
            ["tie", "copies.onnx", "out.onnx", "-t", "emb"],
            2,
            ["expected at least two targets to tie, got only emb"],
        ),
        (["tie", "copies.onnx", "out.onnx", "-t", "emb", "-t", "hed"], 2, ["hed", "head"]),
        (["verify", "none.onnx", "copies.onnx"], 2, ["none.onnx"]),
        (["run", "none.onnx"], 2, ["none.onnx"]),
        (["run", "copies.onnx", "-i", "x=none.npy"], 2, ["cannot read the input none.npy"]),
        (["run", "copies.onnx", "-s", "batch=four"], 2, ["expected NAME=SIZE, got 'batch=four'"]),
        (["run", "copies.onnx", "-i", "y=ids.npy"], 2, ["no input is named y"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) and len(value) > 1 else "",
)
def test_an_error_is_a_text_and_an_exit_code(args, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copies(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"hello, this is no model\n")
    (tmp_path / "bad.pt2").write_bytes(b"hello, this is no model\n")
    np.save(tmp_path / "ids.npy", np.zeros((1, 1), np.int64))
    exit_code, err = ended(monkeypatch, capsys, *args)
    assert exit_code == code
    assert err.startswith("tieops: ")
    assert "Traceback" not in err
    assert all(word in err for word in words), err
    assert not (tmp_path / "out.onnx").exists()


def test_debug_shows_the_traceback_and_ends_alike(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = ended(monkeypatch, capsys, "--debug", "inspect", "none.onnx")
    assert code == 2
    assert err.startswith("Traceback")
    assert "cannot open none.onnx" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--json", "inspect", "m.onnx"], "--json has no effect before a command"),
        (["inspect", "copies.onnx", "--example", "i64[1,2]"], "--example is for TorchScript"),
        (["run", "copies.onnx", "-i", "x=ids.npy", "-s", "batch=2"],
         "--size has no effect where inputs are given"),
        (["run", "copies.onnx", "-i", "x=ids.npy", "--seed", "3"], "--seed has no effect"),
        (["check", "copies.onnx", "--expect-tie", "emb,head", "--memory", "mapped"],
         "--memory has no effect without --runtime"),
        (["demo", "--epochs", "2", "--show"],
         "--epochs and --show have no effect without --train"),
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_misuse(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copies(tmp_path)
    np.save(tmp_path / "ids.npy", np.zeros((1, 1), np.int64))
    code, err = ended(monkeypatch, capsys, *args)
    assert code == 2
    assert words in err


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torch_file_where_it_cannot_be_used_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    traced = torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    traced.save("m.pt")
    code, err = ended(monkeypatch, capsys, "tie", "m.pt", "out.onnx")
    assert code == 2
    assert "fix: if you trust who made it: " in err
    assert "--trust on the command line" in err
    code, err = ended(monkeypatch, capsys, "convert", "m.pt", "out.onnx", "--trust")
    assert code == 2
    assert "fix: give --example" in err
    code, err = ended(monkeypatch, capsys, "run", "m.pt")
    assert code == 2
    assert "with tieops convert" in err
    assert (
        invoke("convert", "m.pt", "out.onnx", "--trust", "--example", "f32[batch=2,3]").exit_code
        == 0
    )
    assert invoke("verify", "out.onnx", "m.pt", "--trust", "-s", "batch=4").exit_code == 0


def test_remove_branches(tmp_path):
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[2] x) => (float[2] y) <bool yes = {1}, float[2] w = {1, 2}> {
            y = If(yes) <then_branch = a () => (float[2] p) { p = Neg(x) },
                         else_branch = b () => (float[2] q) { q = Mul(x, w) }> }""")
    onnx.save(proto, tmp_path / "m.onnx")
    result = invoke("remove-branches", tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert result.exit_code == 0
    assert "never runs" in result.stdout
    assert "stored  9 B → 0 B" in result.stdout
    assert invoke("verify", tmp_path / "out.onnx", tmp_path / "m.onnx").exit_code == 0


@pytest.mark.parametrize(
    "args", [["inspect"], ["inspect", "a", "b"], ["fly"], ["run", "m.onnx", "--provider", "tpu"]]
)
def test_misuse_ends_with_2(args, monkeypatch, capsys):
    code, err = ended(monkeypatch, capsys, *args)
    assert code == 2
    assert "Usage" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "launch", [["-m", "tieops"], ["-c", "from tieops.cli import main; main()"]]
)
@pytest.mark.slow
def test_processes_end_as_scripts_expect(launch, tmp_path):
    path = copies(tmp_path)
    other = copies(tmp_path, "other.onnx", change=1)
    command = [sys.executable, *launch]

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        words = [*command, *map(str, args)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    good = run("inspect", path, "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["ledger"]["stored_bytes"] == 16_000
    different = run("verify", other, path)
    assert (different.returncode, different.stderr) == (1, "")
    misuse = run("inspect", tmp_path / "none.onnx")
    assert misuse.returncode == 2
    assert misuse.stdout == ""
    assert misuse.stderr.startswith("tieops: cannot open")
    assert "Traceback" not in misuse.stderr


def test_the_version_is_that_of_tieops_first():
    assert printed("--version")["tieops"] == version("tieops")
    assert invoke("--version").output.startswith(f"tieops: {version('tieops')}")


def test_a_choice_that_does_not_exist_is_misuse(tmp_path):
    result = invoke("convert", tmp_path / "m.onnx", tmp_path / "o.onnx", "--tie-form", "x")
    assert result.exit_code == 2
    assert "gemm" in result.output
