"""How the command line reads models: of every kind, trusted or not, within limits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from typer.testing import CliRunner

import tieops
from tieops.cli import app, main
from tieops.cli.reading import limits_of
from tieops.errors import PreconditionError

READERS = {
    "inspect": ["inspect", "m.onnx"],
    "convert": ["convert", "m.onnx", "out.onnx"],
    "tie": ["tie", "m.onnx", "out.onnx"],
    "untie": ["untie", "m.onnx", "out.onnx"],
    "replace-head": ["replace-head", "m.onnx", "out.onnx", "--out-features", "3"],
    "remove-outputs": ["remove-outputs", "m.onnx", "out.onnx"],
    "remove-branches": ["remove-branches", "m.onnx", "out.onnx"],
    "render": ["render", "m.onnx", "out.txt"],
    "check": ["check", "m.onnx", "--max-duplicate-bytes", "100"],
    "diff": ["diff", "m.onnx", "m.onnx"],
    "verify": ["verify", "m.onnx", "m.onnx"],
    "verify in a sandbox": ["verify", "m.onnx", "m.onnx", "--sandbox"],
    "run": ["run", "m.onnx"],
    "scan": ["scan", "m.onnx", "-j", "1"],
}
SESSIONS = {
    "run": ["run", "tied.onnx", "--memory"],
    "run on inputs": ["run", "tied.onnx", "--memory", "-i", "x=x.npy"],
    "verify": ["verify", "tied.onnx", "tied.onnx"],
    "check": ["check", "tied.onnx", "--runtime"],
    "check mapped": ["check", "tied.onnx", "--runtime", "--memory", "mapped"],
}
PYTORCH = [name for name in READERS if name not in ("run", "scan", "verify in a sandbox")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
            h = MatMul(x, w)  y = MatMul(h, w) }""")
    onnx.save(proto, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str]:
    """Return exit code, and stdout and stderr, of a command as the console script runs it."""
    monkeypatch.setattr(sys, "argv", ["tieops", *args])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code, "".join(capsys.readouterr())


@pytest.mark.parametrize("command", READERS)
def test_every_command_that_reads_models_takes_limits(command, folder, monkeypatch, capsys):
    args = READERS[command]
    code, told = ended(monkeypatch, capsys, *args, "--limit", "nodes=1")
    assert code == (1 if command == "scan" else 2)
    assert "more than the limit" in told
    assert "or --limit nodes=..." in told
    code, told = ended(monkeypatch, capsys, *args, "--limit", "nodes=2")
    assert code == 0, told


def test_limits_by_their_names():
    given = limits_of(["nodes=5", "hard_links=true", "data_bytes=9000000000000", "nodes=7"])
    assert given == tieops.Limits(nodes=7, hard_links=True, data_bytes=9 * 10**12)
    assert limits_of(None) == tieops.Limits()


@pytest.mark.parametrize(
    ("text", "words", "fix"),
    [
        ("node=5", "unknown limit node", "--limit nodes=500000"),
        ("\x1b[31m=5", r"unknown limit \x1b", "--limit nodes=500000"),
        ("nodes", "got nodes", "write nodes= and a number, such as 500000"),
        ("nodes=", "got nodes=", "write nodes= and a number, such as 500000"),
        ("nodes=many", "got nodes=many", "write nodes= and a number"),
        ("nodes=-1", "got nodes=-1", "write nodes= and a number"),
        ("nodes=1.5", "got nodes=1.5", "write nodes= and a number"),
        ("nodes=²", "got nodes=²", "write nodes= and a number"),
        ("nodes=" + "9" * 5000, "expected NAME=VALUE", "write nodes= and a number"),
        ("hard_links=1", "got hard_links=1", "write hard_links= and true or false"),
    ],
)
def test_what_sets_no_limit_is_misuse(text, words, fix):
    with pytest.raises(PreconditionError) as caught:
        limits_of([text])
    assert words in str(caught.value)
    assert f"fix: {fix}" in str(caught.value).replace("use one of them, such as ", "")


def test_links_of_an_installer_are_read_when_they_are_allowed(folder, monkeypatch, capsys):
    weights = torch.nn.Linear(64, 64)
    tieops.to_onnx(tieops.from_torch(weights, (torch.zeros(1, 64),)), "b.onnx", external_data=True)
    Path("other").hardlink_to("b.onnx.data")
    code, told = ended(monkeypatch, capsys, "inspect", "b.onnx")
    assert code == 2
    assert "or --limit hard_links=true" in told
    assert ended(monkeypatch, capsys, "inspect", "b.onnx", "--limit", "hard_links=true")[0] == 0


def save_tied(folder: Path, node: str = "") -> None:
    """Write a tied weight of 1.4 MB to a data file of its own, and an input for the model."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] x) => (float[n, 9000] y) {
            h = Gather(w, x)  t = Transpose<perm = [1, 0]>(w)  y = MatMul(h, t) }""")
    proto.graph.node[0].name = node
    weight = np.random.default_rng(0).standard_normal((9000, 40), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, folder / "tied.onnx", save_as_external_data=True, location="tied.data")
    np.save(folder / "x.npy", np.arange(3))


RAISED = {
    "a hard link": ("", "hard_links=true", "hard_links=true"),
    "a long name": ("n" * 70_000, "name_bytes=...", "name_bytes=100000"),
}


@pytest.mark.parametrize("command", SESSIONS)
@pytest.mark.parametrize("name", RAISED)
@pytest.mark.slow
def test_sessions_of_commands_hold_one_copy_within_raised_limits(
    name, command, folder, monkeypatch, capsys
):
    node, advised, limit = RAISED[name]
    save_tied(folder, node=node)
    if name == "a hard link":
        (folder / "other").hardlink_to(folder / "tied.data")
    code, told = ended(monkeypatch, capsys, *SESSIONS[command])
    assert code == 2
    assert f"or --limit {advised}" in told
    code, told = ended(monkeypatch, capsys, *SESSIONS[command], "--limit", limit)
    assert code == 0, told
    assert ("1 tie, 0 undone by the runtime" in told) is command.startswith("run")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("command", PYTORCH)
def test_every_command_that_reads_pytorch_files_can_trust_them(
    command, folder, monkeypatch, capsys
):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save("m.pt")
    args = [each.replace("m.onnx", "m.pt") for each in READERS[command]]
    code, told = ended(monkeypatch, capsys, *args)
    assert code == 2
    assert "--trust on the command line" in told
    if command == "verify":  # makes inputs from a signature, and two of PyTorch have none
        args[1] = "out.onnx"
        CliRunner().invoke(app, ["convert", "m.pt", "out.onnx", "--trust", "--example", "f32[1,2]"])
    else:
        args += ["--example", "f32[n=1,2]"]
    code, told = ended(monkeypatch, capsys, *args, "--trust")
    assert code == 0, told


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_options_of_one_kind_beside_a_model_of_another(folder, monkeypatch, capsys):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save("m.pt")
    both = ["--trust", "--example", "f32[n=1,2]", "--limit", "nodes=9"]
    code, told = ended(monkeypatch, capsys, "diff", "m.onnx", "m.pt", *both)
    assert code == 1
    assert "signature" in told
    for models, option, words in [
        (("m.pt", "m.pt"), ["--limit", "nodes=9"],
         "--limit is for ONNX files, and m.pt and m.pt are none"),
        (("m.onnx", "m.onnx"), ["--example", "f32[1]"],
         "--example is for TorchScript files, and m.onnx and m.onnx are none"),
        (("m.onnx", "m.onnx"), ["--trust"],
         "--trust is for PyTorch files, and m.onnx and m.onnx are none"),
    ]:  # fmt: skip
        code, told = ended(monkeypatch, capsys, "diff", *models, *option)
        assert code == 2
        assert words in told


@pytest.mark.parametrize("command", PYTORCH)
def test_trust_without_a_pytorch_file_is_misuse(command, folder, monkeypatch, capsys):
    code, told = ended(monkeypatch, capsys, *READERS[command], "--trust")
    assert code == 2
    assert "--trust is for PyTorch files, and m.onnx " in told
    assert "fix: leave --trust out" in told


def test_limits_hold_where_inputs_are_given(folder, monkeypatch, capsys):
    np.savez("x.npz", x=np.ones((1, 2), np.float32))
    args = ["run", "m.onnx", "-i", "x.npz", "--limit"]
    code, told = ended(monkeypatch, capsys, *args, "nodes=1")
    assert code == 2
    assert "more than the limit" in told
    code, told = ended(monkeypatch, capsys, *args, "nodes=2")
    assert code == 0, told


def test_the_runtime_is_asked_about_onnx_alone(folder, monkeypatch, capsys):
    code, told = ended(monkeypatch, capsys, "check", "m.pt2", "--runtime")
    assert code == 2
    assert "expected an ONNX file" in told


def test_help_shows_an_example_with_its_sizes():
    assert "i64[batch=2,length=5]" in CliRunner().invoke(app, ["diff", "--help"]).output
