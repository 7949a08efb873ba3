"""``tieops inspect`` on real files: the first screen, the terminal, JSON; and check after tie."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import tieops
from fixtures.torch_models import build
from tests.support.wheels import fetch
from tieops.cli import app


def invoke(*args: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(each) for each in args], input=stdin)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that PyTorch's older exporter wrote: its tied head is a second, transposed tensor."""
    case = build("bert", 500, 32)
    path = tmp_path_factory.mktemp("old") / "old.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # it warns that it is the old one
        torch.onnx.export(
            case.module, tuple(case.inputs.values()), str(path), dynamo=False,
            input_names=list(case.inputs), output_names=["logits"],
        )  # fmt: skip
    return path


def screen(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[:24]


def test_the_first_screen_of_an_old_exporters_file_says_what_is_wasted(old):
    lines = screen(invoke("inspect", old))
    assert lines[0].startswith("old.onnx: 23 layers with learnables")
    text = "\n".join(lines)
    assert "tied    nothing" in text
    assert "wasted  64.0 kB" in text
    assert f"fix: tieops tie {old} OUT" in text
    assert "wrong   nothing" in text


def test_check_fails_on_it_and_passes_after_tie(old, tmp_path):
    checked = "--max-duplicate-bytes", 0, "--expect-tie"
    names = "bert.embeddings.word_embeddings,cls.predictions.decoder"
    before = invoke("check", old, *checked, names)
    assert before.exit_code == 1
    assert "64.0 kB stored a second time" in before.stdout
    assert f"tieops tie {old} OUT" in before.stdout
    out = tmp_path / "tied.onnx"
    assert invoke("tie", old, out).exit_code == 0
    after = invoke("check", out, *checked, names)
    assert (after.exit_code, after.stdout) == (0, "all that was asked holds\n")
    assert "wasted  nothing" in "\n".join(screen(invoke("inspect", out)))
    assert invoke("verify", out, old).exit_code == 0


def test_trained_models_fit_a_screen(pytestconfig):
    path = fetch("silero-vad", "silero_vad/data/silero_vad.onnx", pytestconfig)
    result = invoke("inspect", path)
    lines = screen(result)
    assert "tied    8 parameters, read in 16 slots, saves 1.07 MB" in lines
    assert "wasted  nothing" in lines
    assert "wrong   nothing" in lines
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_keeps_what_was_there_and_adds_shapes_and_problems(old):
    data = json.loads(invoke("inspect", old, "--json").stdout)
    assert {*data} == {
        "layers", "parameters", "ties", "duplicates", "ledger", "warnings", "inputs", "outputs",
        "problems", "totals", "repeats",
    }  # fmt: skip
    problem, note = data["problems"]
    assert note["severity"] == "note"  # a file of torch's exporter does not say what is frozen
    assert problem["kind"] == "duplicate"
    assert problem["command"] == "tieops tie MODEL OUT"
    assert problem["call"] == "tieops.tie(model)"
    slot = next(layer for layer in data["layers"] if layer["slots"])["slots"][0]
    assert {"name", "role", "reads", "type", "owned_bytes", "read_bytes"} <= {*slot}


def test_all_shows_every_layer(old):
    short, long = invoke("inspect", old).stdout, invoke("inspect", old, "--all").stdout
    assert "×2" in short
    assert "bert.encoder.layer.0 … 1" in short
    assert "×" not in long
    model = tieops.from_onnx(old)
    indent = [line for line in long.splitlines() if line.startswith("    ") and " f32[" in line]
    assert len(indent) == len(model.slots)


def run_on_a_terminal(columns: int, *args: object) -> str:
    """Return what a command prints on a terminal of its own."""
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "tieops", *map(str, args)]
    env = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(words, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    assert process.wait() == 0
    return b"".join(chunks).decode()


@pytest.mark.slow
def test_a_terminal_gets_colours_and_a_pipe_does_not(old):
    shown = run_on_a_terminal(80, "inspect", old)
    assert "\x1b[1;33mwasted" in shown
    assert "\x1b" not in invoke("inspect", old).stdout
    piped = [sys.executable, "-m", "tieops", "inspect", str(old)]
    done = subprocess.run(piped, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.replace(str(old), "m.onnx").splitlines())) <= 80


def test_a_reader_that_stops_reading_is_no_error(old):
    command = f"{sys.executable} -m tieops inspect {old} --all | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("old.onnx: ")
    assert "Traceback" not in done.stderr
