"""What a user does with tieops, to be done where another system's names and rules hold."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import tieops
from tieops.errors import ExportError, PreconditionError
from tieops.system import folders

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (int64[n] x) => (float[n, m] y) {
    h = Gather(table, x)  t = Transpose<perm = [1, 0]>(table)  y = MatMul(h, t) }"""
ON_WINDOWS = folders.os.name == "nt"


def model(seed: int = 0, rows: int = 5000) -> tieops.TiedModel:
    """Return a tied model of 64 times as many numbers as it has rows; 1.28 MB by default."""
    proto = parser.parse_model(TEXT)
    table = np.random.default_rng(seed).standard_normal((rows, 64), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return tieops.from_onnx(proto)


def weight(it: tieops.TiedModel) -> np.ndarray[Any, Any]:
    """Return a copy of the table."""
    return next(p for p in it.parameters if "table" in p.names).numpy().copy()


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(os.listdir(folder))


def holds(path: Path, wanted: np.ndarray[Any, Any]) -> None:
    """Check that every reader finds this table in a file."""
    loaded = onnx.load(path)
    table = next(numpy_helper.to_array(t) for t in loaded.graph.initializer if t.name == "table")
    np.testing.assert_array_equal(table, wanted)
    np.testing.assert_array_equal(weight(tieops.from_onnx(path)), wanted)


def files(folder: Path) -> None:
    """Write new files, over others, over the source, several at once, and with data that stays."""
    first, second = model(0), model(1)
    one, other = weight(first), weight(second)
    for external in (False, True):
        path = folder / f"m{external:d}.onnx"
        tieops.to_onnx(first, path, external_data=external)
        holds(path, one)
        tieops.to_onnx(second, path, external_data=external)
        holds(path, other)
        assert not any(name.startswith(".") for name in names(folder))

        # Over its own source, while models of it live, one of which has been read.
        source, twin = tieops.from_onnx(path), tieops.from_onnx(path)
        assert weight(source).shape == other.shape
        tieops.to_onnx(tieops.untie(source), path, external_data=external)
        holds(path, other)
        np.testing.assert_array_equal(weight(twin), other)
        np.testing.assert_array_equal(weight(source), other)
        del source, twin
    gc.collect()

    # Other data of the same model is in the folder while it was mapped; it goes with a later save.
    tieops.to_onnx(first, folder / "m1.onnx", external_data=True)
    left = [name for name in names(folder) if name.startswith("m1.onnx.")]
    assert len(left) == 1, left
    assert not any(name.startswith(".") for name in names(folder))

    whole = tieops.from_onnx(folder / "m1.onnx")
    reused = tieops.to_onnx(whole, folder / "again.onnx", external_data="reuse")
    assert [each.name for each in reused.data_paths] == left
    pair = tieops.to_onnx([first, second], [folder / "a.onnx", folder / "b.onnx"])
    assert {each.data_path for each in pair} == {folder / "a.onnx.data"}
    holds(folder / "a.onnx", one)
    holds(folder / "b.onnx", other)
    small = tieops.replace_head(whole, out_features=7)
    tieops.to_onnx(tieops.tie(small), folder / "small.onnx", external_data="reuse")


def held(folder: Path) -> None:
    """Save over a file that an array of the user, or another descriptor, holds."""
    path = folder / "m.onnx"
    tieops.to_onnx(model(0), path, external_data=False)
    array = tieops.from_onnx(path).parameters[0].numpy()
    kept = array.copy()
    tieops.to_onnx(model(1), path, external_data=False)
    np.testing.assert_array_equal(array, kept)
    if not ON_WINDOWS:
        return
    before = path.read_bytes()
    with path.open("rb"), pytest.raises(ExportError, match="held by: a program") as caught:
        tieops.to_onnx(model(2), path, external_data=False)
    assert "existing files are unchanged" in str(caught.value)
    assert path.read_bytes() == before
    tieops.to_onnx(model(2), path, external_data=False)
    assert path.read_bytes() != before
    assert names(folder) == ["m.onnx"]  # a second name of what was open goes with the next save


def data_that_is_mapped(folder: Path) -> None:
    """Old data that is mapped stays where it must, and goes with the first save after that."""
    path = folder / "m.onnx"
    tieops.to_onnx(model(0), path, external_data=True)
    old = tieops.from_onnx(path)
    array = old.parameters[0].numpy()
    kept = array.copy()
    tieops.to_onnx(model(1), path, external_data=True)
    np.testing.assert_array_equal(array, kept)
    np.testing.assert_array_equal(weight(old), kept)
    assert ("m.onnx.data" in names(folder)) == ON_WINDOWS
    tieops.to_onnx(model(2), path, external_data=True)
    np.testing.assert_array_equal(array, kept)
    del old, array
    gc.collect()
    tieops.to_onnx(model(3), path, external_data=True)
    assert len(names(folder)) == 2, names(folder)


def sessions(folder: Path) -> None:
    """Run models in each memory mode, compare them, and say what is not known."""
    path = folder / "m.onnx"
    first = model(0)
    tieops.to_onnx(first, path, external_data=True)
    expected = weight(first)[[0, 7]] @ weight(first).T
    for memory in ("packed", "mapped", "default"):
        with tieops.session(path, "cpu", memory=memory) as opened:
            (y,) = opened.run({"x": np.array([0, 7])}).values()
            np.testing.assert_allclose(y, expected, rtol=1e-4)
            found = tieops.resident_bytes(opened)
            assert found.measured.private_bytes is None
            assert "the process's memory: no /proc on" in found.unmeasured
            assert not any(c.place == "given back" for p in found.parameters for c in p.copies)
            # The data of a file that is open is not overwritten: a new one lies beside it.
            tieops.to_onnx(first, path, external_data=True)
    tieops.to_onnx(first, folder / "n.onnx", external_data=True)
    with tieops.sessions({"a": path, "b": folder / "n.onnx"}, "cpu", memory="mapped") as group:
        (y,) = group["b"].run({"x": np.array([0, 7])}).values()
        np.testing.assert_allclose(y, expected, rtol=1e-4)
    assert tieops.verify(path, against=first, rtol=1e-4)
    for ask in (
        lambda: tieops.verify(path, against=first, sandbox=True),
        lambda: tieops.scan([path], max_memory_bytes=1 << 30),
    ):
        with pytest.raises(PreconditionError, match="memory"):
            ask()
    assert [record.error for record in tieops.scan([path, folder / "n.onnx"], workers=1)] == [
        None,
        None,
    ]


def torch(folder: Path) -> None:
    """Bring a module over, train it on, and bring it back."""
    import torch as t

    class Tied(t.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = t.nn.Embedding(5000, 64)
            self.fc = t.nn.Linear(64, 5000, bias=False)
            self.fc.weight = self.emb.weight

        def forward(self, x: Any) -> Any:
            return self.fc(self.emb(x))

    net = Tied().eval()
    tokens = t.zeros(2, 3, dtype=t.long)
    tied = tieops.from_torch(net, (tokens,))
    assert len(tied.ties) == 1
    for external in (False, True):
        written = tieops.to_onnx(tied, folder / "net.onnx", external_data=external)
        assert tieops.verify(written.path, against=net, inputs=[{"x": tokens.numpy()}], rtol=1e-4)
    back = tieops.to_torch(tieops.from_onnx(folder / "net.onnx"))
    assert len(list(back.parameters())) == 1
    program = t.export.export(net, (tokens,))
    t.export.save(program, folder / "net.pt2")
    assert len(tieops.from_torch(folder / "net.pt2").ties) == 1


def command_line(folder: Path) -> None:
    """Run the commands."""
    from tieops.cli import main as run

    def tell(*words: object) -> int:
        sys.argv = ["tieops", *map(str, words)]
        try:
            run()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    path = folder / "m.onnx"
    tieops.to_onnx(model(0), path, external_data=True)
    for words in (
        ["inspect", path], ["inspect", path, "--json"], ["check", path, "--max-duplicate-bytes", 0],
        ["untie", path, folder / "u.onnx"], ["tie", folder / "u.onnx", folder / "u.onnx"],
        ["convert", path, path], ["diff", path, folder / "u.onnx"],
        ["verify", path, folder / "u.onnx"],
        ["render", path, folder / "m.svg"], ["render", path, folder / "m.html"],
        ["remove-outputs", path, folder / "r.onnx"], ["scan", path, "-o", folder / "scan.jsonl"],
        ["demo"],
    ):  # fmt: skip
        code = tell(*words)
        assert code == 0, (words, code)
    # On Windows the data of a model that was saved over itself goes with the next save.
    gc.collect()
    assert tell("convert", folder / "r.onnx", folder / "s.onnx") == 0
    assert not any(name.startswith(".") or name.endswith(".data") for name in names(folder))
