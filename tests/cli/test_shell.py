"""Standard streams that are closed, full or gone, and Ctrl-C while the program loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tieops

TIEOPS = [sys.executable, "-m", "tieops"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shell") / "m.onnx"
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (int64[n] x) => (float[n, 64] y) { h = Gather(w, x)  y = MatMul(h, v) }""")
    table = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    proto.graph.initializer.append(numpy_helper.from_array(table, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(table.T.copy(), "v"))
    onnx.save(proto, path)
    return path


COMMANDS = {
    "help": ("--help",),
    "inspect": ("inspect", "MODEL"),
    "inspect --json": ("inspect", "MODEL", "--json"),
    "tie": ("tie", "MODEL", "OUT.onnx"),
    "convert": ("convert", "MODEL", "OUT.onnx", "--external-data"),
    "tie to stdout": ("tie", "MODEL", "-"),
    "diff": ("diff", "MODEL", "MODEL"),
    "check": ("check", "MODEL", "--max-duplicate-bytes", "0"),
    "render": ("render", "MODEL", "OUT.txt"),
    "run": ("run", "MODEL", "--provider", "cpu", "-o", "OUT.npz"),
    "verify": ("verify", "MODEL", "MODEL", "--size", "n=2"),
    "scan": ("scan", "MODEL", "-j", "1"),
    "scan -o": ("scan", "MODEL", "-j", "1", "-o", "OUT.jsonl"),
}
USUAL = {"check": 1}
"""What a command answers whose stdout is whole, where that is not 0."""


FORKS = """
import json, os, resource, signal, sys
import tieops.cli
for words, stdout, folder in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
        if stdout == "closed":
            os.close(1)
            sys.stdout = sys.__stdout__ = None
        elif stdout == "gone":
            reader, writer = os.pipe()
            os.dup2(writer, 1)
            os.close(reader)
            os.close(writer)
        else:
            os.dup2(os.open("stdout", os.O_WRONLY | os.O_CREAT), 1)
            os.pwrite(1, b"x" * 100_000, 0)
            os.lseek(1, 99_999, os.SEEK_SET)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        sys.argv = ["tieops", *words]
        tieops.cli.main()
    _, status = os.waitpid(child, 0)
    with open(os.path.join(folder, "code"), "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
"""
"""Runs commands without loading the package for each: this is most of the time that they take."""


def ran(model: Path, folder: Path, stdout: str) -> Iterator[tuple[str, int, bytes, Path]]:
    """Run all commands with this stdout; yield each with its exit code, stderr and folder."""
    tasks: list[tuple[list[str], str, str]] = []
    for number, words in enumerate(COMMANDS.values()):
        place = folder / str(number)
        place.mkdir()
        tasks.append(([word.replace("MODEL", str(model)) for word in words], stdout, str(place)))
    subprocess.run([sys.executable, "-c", FORKS, json.dumps(tasks)], check=True)
    for command, (_, _, place) in zip(COMMANDS, tasks, strict=True):
        found = {each.name: each.read_bytes() for each in Path(place).iterdir()}
        for name in ("stdout", "stderr", "code"):
            Path(place, name).unlink(missing_ok=True)
        for path in Path(place).iterdir():  # nothing is half-written
            assert not path.name.endswith(".tmp")
            if path.suffix == ".onnx":
                tieops.from_onnx(path)
        assert b"Traceback" not in found["stderr"], command
        assert b"did not expect" not in found["stderr"], command
        assert b"Exception ignored" not in found["stderr"], command
        yield command, int(found["code"]), found["stderr"], Path(place)


@pytest.mark.slow
def test_a_closed_stdout_drops_the_text_and_not_the_answer(model: Path, tmp_path: Path) -> None:
    for command, code, told, folder in ran(model, tmp_path, "closed"):
        if command == "tie to stdout":
            assert code == 1
            assert b"stdout is closed" in told
        else:
            assert code == USUAL.get(command, 0), (command, told)
        outs = {word for word in COMMANDS[command] if word.startswith("OUT")}
        assert {p.name for p in folder.iterdir() if p.suffix != ".data"} == outs


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback(model: Path, tmp_path: Path) -> None:
    for command, code, told, _ in ran(model, tmp_path, "gone"):
        assert code == 1, (command, told)


@pytest.mark.slow
def test_a_stdout_that_takes_no_more_is_told(model: Path, tmp_path: Path) -> None:
    """A file that may not grow fails as a full disk does, but for the reason."""
    for command, code, told, _ in ran(model, tmp_path, "full"):
        assert code == 1, (command, told)
        assert b"cannot write" in told, command
        assert b"File too large" in told, command


@pytest.mark.slow
def test_a_process_that_begins_without_stdout(model: Path, tmp_path: Path) -> None:
    """No file that is written takes the place of stdout, whoever prints to it then."""
    out = tmp_path / "out.onnx"
    words = [*TIEOPS, "tie", str(model), str(out)]
    for closed in ((1,), (0, 1, 2)):
        done = subprocess.run(
            words, preexec_fn=lambda closed=closed: [os.close(each) for each in closed], check=False
        )
        assert done.returncode == 0
        assert len(tieops.from_onnx(out).ties) == 1


@pytest.mark.slow
def test_an_interrupt_while_it_loads_is_no_traceback(model: Path) -> None:
    """At any moment from the first line of ours on."""
    words = [sys.executable, "-X", "importtime", "-m", "tieops", "inspect", str(model)]
    for delay in (0, 0.02, 0.1, 0.3, 0.6):
        done = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.stderr is not None
        while b"tieops._interrupt" not in done.stderr.readline():
            assert done.poll() is None
        time.sleep(delay)
        done.send_signal(signal.SIGINT)
        told = done.communicate()[1]
        assert b"Traceback" not in told
        assert done.returncode in (0, 130, -signal.SIGINT)


def test_an_interrupt_that_is_ignored_stays_ignored(model: Path) -> None:
    def ignored() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    words = [*TIEOPS, "diff", str(model), str(model)]
    done = subprocess.Popen(words, preexec_fn=ignored, stdout=subprocess.PIPE)
    time.sleep(0.3)
    done.send_signal(signal.SIGINT)
    done.communicate()
    assert done.returncode == 0


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_breaks_no_output(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2] x) => (float[n, 2] y) { y = Relu(x) }""")
    proto.graph.node[0].name = "größe 名"
    odd = os.fsdecode(b"m \xff\xe4.onnx")  # not UTF-8
    onnx.save(proto, tmp_path / odd)
    for encoding, words in (
        ("ascii", ("inspect", odd)),
        ("utf-8", ("convert", odd, f"to {odd}")),
        ("ascii", ("tie", odd, "größe.onnx")),
        ("latin-1", ("scan", ".", "-j", "1")),
        ("ascii", ("render", odd, "größe.txt")),
        ("utf-8", ("inspect", odd + ".none")),
    ):
        done = subprocess.run(
            [*TIEOPS, *words],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
        )
        assert b"Traceback" not in done.stderr
        assert b"did not expect" not in done.stderr, done.stderr
        assert done.returncode == (2 if words[-1].endswith(".none") else 0), done.stderr
