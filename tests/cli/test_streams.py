"""Models from stdin and to stdout, completion, --debug, and errors that nobody expected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tieops
from tests.support.heads import model_of
from tieops.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("streams") / "m.onnx"
    return tieops.to_onnx(model_of(), path, tie_form="portable").path.read_bytes()


def run(*args: object, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "tieops", *map(str, args)]
    return subprocess.run(
        words, input=stdin, capture_output=True, check=False, env=os.environ | env
    )


@pytest.mark.slow
def test_a_pipe_of_commands(model):
    tied = run("tie", "-", "-", stdin=model)
    assert tied.returncode == 0
    assert b"head: reads emb transposed" in tied.stderr
    assert b"wrote   stdout" in tied.stderr
    assert len(tieops.from_onnx(tied.stdout).ties) == 1
    seen = run("inspect", "-", stdin=tied.stdout)
    assert b"tied    1 parameter" in seen.stdout
    assert run("check", "-", "--max-duplicate-bytes", 0, stdin=tied.stdout).returncode == 0
    assert run("check", "-", "--max-duplicate-bytes", 0, stdin=model).returncode == 1
    assert b"running on" in run("run", "-", "--provider", "cpu", stdin=tied.stdout).stdout


def test_convert_and_verify_read_and_write_streams(model, tmp_path):
    done = run("convert", "-", "-", "--no-join", stdin=model)
    assert done.returncode == 0
    assert len(tieops.from_onnx(done.stdout).duplicates) == 1
    (tmp_path / "m.onnx").write_bytes(model)
    compared = run("verify", "-", tmp_path / "m.onnx", stdin=done.stdout)
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.startswith(b"equal")


def test_a_dry_run_to_stdout_writes_text_alone(model):
    done = run("tie", "-", "-", "--dry-run", stdin=model)
    assert b"nothing written" in done.stdout
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["inspect", "-"], b"stdin is empty"),
        (["tie", "-", "-", "--json"], b"the model and --json cannot both go to stdout"),
        (["check", "-", "--runtime"], b"--runtime needs a local file"),
        (["diff", "-", "-"], b"stdin holds one model, not two"),
        (["verify", "-", "-"], b"stdin holds one model, not two"),
    ],
)
def test_what_cannot_be_is_misuse(args, words, model):
    done = run(*args, stdin=b"" if args[0] == "inspect" else model)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == b""


@pytest.mark.slow
def test_debug_is_understood_after_the_command_too(tmp_path):
    for args in (["--debug", "inspect", "none.onnx"], ["inspect", "none.onnx", "--debug"]):
        done = run(*args)
        assert b"Traceback" in done.stderr
        assert b"cannot open none.onnx" in done.stderr
    assert b"Traceback" not in run("inspect", "none.onnx").stderr


def test_what_nobody_expected_is_an_error_in_three_parts(monkeypatch, capsys):
    def fail(path: object, **options: object) -> None:
        raise KeyError("x\x1b[31m")

    monkeypatch.setattr(tieops, "from_onnx", fail)
    monkeypatch.setattr(sys, "argv", ["tieops", "inspect", "m.onnx"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("tieops: unexpected error inside tieops\n")
    assert "KeyError" in err
    assert "--debug" in err
    assert "\x1b" not in err


def test_the_shell_completes_commands_and_options():
    code = "import sys; sys.argv = ['tieops']; from tieops.cli import main; main()"

    def completed(words: str, count: int) -> list[str]:
        env = {"_TIEOPS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env=os.environ | env,
        )  # fmt: skip
        return done.stdout.split()

    assert completed("tieops ins", 1) == ["inspect"]
    assert "diff" in completed("tieops ", 1)
    assert "--max-duplicate-bytes" in completed("tieops check --max", 2)


@pytest.mark.slow
def test_data_of_a_model_on_stdin_lies_in_the_current_folder(tmp_path, monkeypatch):
    written = tieops.to_onnx(model_of(), tmp_path / "m.onnx", external_data=True)
    assert written.data_path is not None
    monkeypatch.chdir(tmp_path)
    data = Path(written.path).read_bytes()
    assert run("inspect", "-", stdin=data).returncode == 0
    monkeypatch.chdir(tmp_path.parent)
    assert run("inspect", "-", stdin=data).returncode == 2
