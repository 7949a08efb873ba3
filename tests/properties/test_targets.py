"""Whatever writes, and whatever is at the target: replaced if it is a file, else left as it is."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tieops
from tieops import TieopsError
from tieops.cli import main
from tieops.examples.pictures import save_reconstructions
from tieops.system.write_targets import check_target


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (int64[n] x) => (float[n, 64] y) { h = Gather(w, x)  y = MatMul(h, v) }""")
    table = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    proto.graph.initializer.append(numpy_helper.from_array(table, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(table.T.copy(), "v"))
    return proto


# Every way to write, and the suffix that it asks for. The folder beside the target has m.onnx.


def command(*words: str) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        places = {"SOURCE": str(source), "TARGET": str(target)}
        argv = sys.argv
        sys.argv = ["tieops", *(places.get(word, word) for word in words)]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise TieopsError(f"exit {end.code}") from end
        finally:
            sys.argv = argv

    return write


def several(source: Path, target: Path) -> None:
    model = tieops.from_onnx(source)
    tieops.to_onnx([model, model], [target.with_name("other.onnx"), target])


WRITERS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "to_onnx": (".onnx", lambda source, to: tieops.to_onnx(tieops.from_onnx(source), to)),
    "to_onnx with data": (
        ".onnx",
        lambda source, to: tieops.to_onnx(tieops.from_onnx(source), to, external_data=True),
    ),
    "to_onnx several": (".onnx", several),
    "render": (".txt", lambda source, to: tieops.render(tieops.from_onnx(source), to)),
    "picture": (".png", lambda source, to: save_reconstructions(to, {"a": np.zeros((1, 784))})),
    "scan": (".jsonl", lambda source, to: list(tieops.scan(source, out=to, workers=1))),
    "tieops tie": (".onnx", command("tie", "SOURCE", "TARGET")),
    "tieops untie": (".onnx", command("untie", "SOURCE", "TARGET")),
    "tieops convert": (".onnx", command("convert", "SOURCE", "TARGET", "--external-data")),
    "tieops remove-outputs": (".onnx", command("remove-outputs", "SOURCE", "TARGET")),
    "tieops remove-branches": (".onnx", command("remove-branches", "SOURCE", "TARGET")),
    "tieops replace-head": (
        ".onnx",
        command("replace-head", "SOURCE", "TARGET", "--out-features", "3"),
    ),
    "tieops render": (".html", command("render", "SOURCE", "TARGET")),
    "tieops run": (".npz", command("run", "SOURCE", "--provider", "cpu", "--out", "TARGET")),
    "tieops scan": (".jsonl", command("scan", "SOURCE", "--jobs", "1", "--out", "TARGET")),
}


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


MAKERS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "directory": Path.mkdir,
    "nothing": lambda path: None,
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a file": Path.touch,
}
"""What may stand at a path, or at the other end of a link."""


def make(kind: str, path: Path) -> Path:
    """Put something at a path; return the target to write to, which is there or below it."""
    elsewhere = path.with_name("elsewhere")
    match kind.split(" ", 2) if kind.startswith("link") else kind.split(" ", 1):
        case ["no", "folder"]:
            return elsewhere / path.name
        case ["too", "long"]:
            return path.with_name("x" * 300 + path.suffix)
        case ["below", what]:
            MAKERS[what](elsewhere)
            return elsewhere / path.name
        case ["link", "to", "itself"]:
            path.symlink_to(path)
        case ["link", "to", what]:
            MAKERS[what](elsewhere)
            path.symlink_to(elsewhere)
        case _:
            MAKERS[kind](path)
    return path


KINDS = (
    "FIFO", "socket", "directory", "link to a FIFO", "link to a directory", "link to nothing",
    "link to itself", "below a FIFO", "below a file", "no folder", "too long",
)  # fmt: skip


def folder_of(path: Path) -> dict[str, tuple[int, int, int]]:
    """Return what is in a folder: each name with what it is, its inode and its size."""
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(path)}
    return {
        name: (stat.S_IFMT(each.st_mode), each.st_ino, each.st_size if each.st_size else 0)
        for name, each in sorted(found.items())
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_file_is_refused_and_stays(
    writer: str,
    kind: str,
    proto: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    source = Path("m.onnx")
    onnx.save(proto, source)
    suffix, write = WRITERS[writer]
    target = make(kind, Path(f"target{suffix}"))
    before = folder_of(tmp_path)
    with pytest.raises(TieopsError):
        write(source, target)
    assert folder_of(tmp_path) == before


@pytest.mark.parametrize("kind", ["nothing", "file", "link to a file"])
@pytest.mark.parametrize("writer", [each for each in WRITERS if "scan" not in each])
def test_a_file_and_a_link_to_one_are_replaced(
    writer: str, kind: str, proto: onnx.ModelProto, tmp_path: Path
) -> None:
    source, other = tmp_path / "m.onnx", tmp_path / "other"
    onnx.save(proto, source)
    suffix, write = WRITERS[writer]
    target = tmp_path / f"target{suffix}"
    other.write_bytes(b"precious")
    if kind == "file":
        target.write_bytes(b"old")
        target.chmod(0o600)
    elif kind == "link to a file":
        target.symlink_to(other)
    write(source, target)
    assert not target.is_symlink()
    assert target.stat().st_size > 10
    assert other.read_bytes() == b"precious"
    if kind == "file":
        assert target.stat().st_mode & 0o777 == 0o600
    assert not [each for each in os.listdir(tmp_path) if each.endswith(".tmp")]


@pytest.mark.parametrize(
    "path",
    ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/1", "a\0b", "\ud800", ".", "", ".."],
)
def test_names_of_descriptors_and_of_nothing_are_refused_before_anything_is_opened(
    path: str,
) -> None:
    """Through a redirection /dev/stdout is a link to a regular file, and would be replaced."""
    with pytest.raises(TieopsError):
        check_target(path)


def test_a_pipe_with_the_name_of_the_data_is_left_alone(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    pipe = tmp_path / "m.onnx.data"
    os.mkfifo(pipe)
    written = tieops.to_onnx(tieops.from_onnx(proto), tmp_path / "m.onnx", external_data=True)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert written.data_path == tmp_path / "m.onnx.1.data"
    # A model that says that its data is the pipe is replaced, and the pipe stays.
    found = onnx.load(written.path, load_external_data=False)
    for tensor in found.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = pipe.name
    onnx.save(found, tmp_path / "m.onnx")
    with pytest.raises(TieopsError, match="not a regular file"):
        tieops.from_onnx(tmp_path / "m.onnx")
    tieops.to_onnx(tieops.from_onnx(proto), tmp_path / "m.onnx", external_data=True)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


@pytest.mark.parametrize("how", ["cut", "other", "empty"])
def test_data_of_a_living_model_that_was_cut_does_not_make_the_next_save_fail(
    how: str, proto: onnx.ModelProto, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    written = tieops.to_onnx(tieops.from_onnx(proto), path, external_data=True)
    living = tieops.from_onnx(written)
    data = written.data_path
    assert data is not None
    os.truncate(data, {"cut": 5000, "other": 1 << 20, "empty": 0}[how])
    again = tieops.to_onnx(tieops.from_onnx(proto), path, external_data=True)
    assert len(tieops.from_onnx(again).parameters) == 2
    with pytest.raises(TieopsError):
        living.parameters[0].numpy()
    # The next save finds nothing that keeps it from cleaning up.
    tieops.to_onnx(tieops.from_onnx(proto), path)
    assert not [each for each in os.listdir(tmp_path) if each.endswith(".tmp")]


def test_reading_a_fifo_does_not_wait(
    proto: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, model = tmp_path / "pipe", tmp_path / "m.onnx"
    os.mkfifo(pipe)
    onnx.save(proto, model)
    for words in (
        ("inspect", str(pipe)),
        ("verify", str(pipe), str(model)),
        ("verify", str(model), str(pipe)),
        ("diff", str(model), str(pipe)),
        ("run", str(pipe)),
        ("run", str(model), "-i", f"x={pipe}"),
        ("check", str(pipe), "--runtime"),
        ("convert", str(pipe), str(tmp_path / "out.onnx")),
        ("render", str(model), str(tmp_path / "a.txt"), "--before", str(pipe)),
    ):
        with pytest.raises(TieopsError):
            command(*words)(model, model)
        assert "not a regular file" in capsys.readouterr().err
    with pytest.raises(TieopsError):
        command("scan", str(pipe))(model, model)
    for read in (tieops.from_onnx, tieops.from_torch, tieops.session):
        with pytest.raises(TieopsError):
            read(pipe)
