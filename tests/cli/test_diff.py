"""``tieops diff``: what it prints and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import tieops
from tests.support.heads import model_of
from tieops.cli import app, main


def invoke(*args: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["diff", *map(str, args)], input=stdin)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("diff")
    model = model_of()
    form = {"tie_form": "portable"}
    one = tieops.to_onnx(model, folder / "one.onnx", **form).path
    return one, tieops.to_onnx(tieops.tie(model), folder / "two.onnx", **form).path


def test_equal_files_end_with_0(files):
    result = invoke(files[0], files[0])
    assert (result.exit_code, result.stdout) == (0, "nothing changed\n")


def test_different_files_end_with_1_and_say_what(files):
    result = invoke(*files)
    assert result.exit_code == 1
    assert result.stdout == (
        "signature   the same\n"
        "ties        0 -> 1\n"
        "  + emb: f32[60,8] by Gather_e.weight, MatMul_z.weight (transposed)\n"
        "parameters  3 -> 2\n"
        "  - head: f32[8,60]\n"
        "layers      2 -> 2\n"
        "  ~ MatMul_z weight reads: head -> emb (transpose)\n"
        "operators   1 -> 1\n"
        "bytes       4.08 kB -> 2.16 kB stored\n"
    )


def test_json(files):
    result = invoke(*files, "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["stored_bytes_before"] - data["stored_bytes_after"] == 60 * 8 * 4
    assert [each["subject"] for each in data["changes"]] == ["tie", "parameter", "layer", "bytes"]
    assert json.loads(invoke(files[0], files[0], "--json").stdout)["changed"] is False


def test_many_differences_are_cut_unless_all_are_asked_for(tmp_path):
    def write(name: str, letter: str) -> Path:
        body = "".join(f"{letter}{i} = Relu(x{i})  x{i + 1} = MatMul({letter}{i}, w{i}) "
                       for i in range(20))  # fmt: skip
        text = f"g (float[n, 4] x0) => (float[n, 4] x20) {{ {body} }}"
        weights = {f"w{i}": model_of().parameters[0].numpy()[:4, :4] + i + (letter == "b")
                   for i in range(20)}  # fmt: skip
        model = model_of(text, **weights)
        return tieops.to_onnx(model, tmp_path / name, tie_form="portable").path

    one, two = write("one.onnx", "a"), write("two.onnx", "b")
    short, whole = invoke(one, two).stdout, invoke(one, two, "--all").stdout
    assert "  … and 8 more\n" in short
    assert short.count("other values") == 12
    assert whole.count("other values") == 20
    assert "- 20 Relu" in short


def test_one_of_them_on_stdin(files):
    assert invoke("-", files[0], stdin=files[0].read_bytes()).exit_code == 0
    assert invoke(files[0], "-", stdin=files[1].read_bytes()).exit_code == 1


def test_misuse_ends_with_2(files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tieops", "diff", str(files[0]), "none.onnx"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "cannot open none.onnx" in capsys.readouterr().err
    assert invoke(files[0]).exit_code == 2
