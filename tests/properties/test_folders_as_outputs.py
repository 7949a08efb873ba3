"""No command and no function writes a file under a path that ends as a folder's does."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

import tieops
from tieops.cli import app
from tieops.cli.surgery import COMMANDS as OF_PASSES

COMMANDS = {
    "convert": ("m.onnx", "OUT"),
    "tie": ("m.onnx", "OUT"),
    "untie": ("m.onnx", "OUT"),
    "replace-head": ("m.onnx", "OUT", "--out-features", "3"),
    "remove-outputs": ("m.onnx", "OUT"),
    "remove-branches": ("m.onnx", "OUT"),
    "remove-layers": ("m.onnx", "OUT", "--layer", "MatMul_y"),
    "extract": ("m.onnx", "OUT", "--output", "y"),
    "rename": ("m.onnx", "OUT", "--name", "y=z"),
    "freeze-inputs": ("m.onnx", "OUT", "--input", "x=[[1, 2]]"),
    "render": ("m.onnx", "OUT"),
    "run": ("m.onnx", "-o", "OUT"),
    "scan": ("m.onnx", "-o", "OUT"),
    "demo": ("-o", "OUT"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[1, 2] x) => (float[1, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_that_writes_is_tried() -> None:
    found = {
        command.name
        for command in app.registered_commands
        if command.callback is not None and "out" in inspect.signature(command.callback).parameters
    }
    assert found | set(OF_PASSES) == set(COMMANDS)


@pytest.mark.parametrize("end", [os.sep, os.sep * 2])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_the_path_of_a_folder(command: str, end: str, folder: Path) -> None:
    words = [word.replace("OUT", f"sub.html{end}") for word in COMMANDS[command]]
    result = CliRunner().invoke(app, [command, *words])
    assert isinstance(result.exception, tieops.TieopsError)
    assert "got a folder" in str(result.exception)
    assert [each.name for each in folder.iterdir()] == ["m.onnx"]
