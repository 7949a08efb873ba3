"""A file is walked, parsed and checked once, whatever a verb needs of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import tieops

TEXT = """<ir_version: 10, opset_import: ["" : 20]> g (int64[n] x) => (float[n, m] y) {
    h = Gather(table, x)  t = Transpose<perm = [1, 0]>(table)  y = MatMul(h, t) }"""
PARSERS = ("ParseFromString", "FromString", "MergeFromString")
OURS = ("check_wire", "check_model", "read_file")


def counted(call: Callable[[], object]) -> Counter[str]:
    """Return how often messages of models were parsed, walked and checked during a call."""
    found: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in PARSERS:
            owner = called.__self__
            kind = owner if isinstance(owner, type) else type(owner)
            found["parsed"] += kind is onnx.ModelProto
        name = frame.f_code.co_name
        if event == "call" and name in OURS and "untrusted" in frame.f_code.co_filename:
            found[name] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def times(files: int, read: int | None = None) -> Counter[str]:
    """Return what is counted when so many files, or bytes, are read once each."""
    counts = {"parsed": files, "check_wire": files, "check_model": files}
    return +Counter(counts | {"read_file": files if read is None else read})


def proto(rows: int) -> onnx.ModelProto:
    made = parser.parse_model(TEXT)
    table = np.random.default_rng(0).standard_normal((rows, 64), np.float32)
    made.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return made


@pytest.fixture(params=["small", "inside", "data file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a model that is small, one with large weights inside, or one with a data file."""
    model = tieops.from_onnx(proto(100 if request.param == "small" else 5000))
    return tieops.to_onnx(
        model, tmp_path / "m.onnx", external_data=request.param == "data file"
    ).path


def test_from_onnx(path: Path) -> None:
    assert counted(lambda: tieops.from_onnx(path)) == times(1)
    if not path.with_name("m.onnx.data").exists():
        data = path.read_bytes()
        assert counted(lambda: tieops.from_onnx(data)) == times(1, 0)
        loaded = onnx.load(path)
        found = counted(lambda: tieops.from_onnx(loaded))
        assert found["parsed"] == 0
        assert found["check_wire"] == found["check_model"] == 1


@pytest.mark.parametrize("memory", ["packed", "mapped"])
def test_session(memory: Any, path: Path) -> None:
    assert counted(lambda: tieops.session(path, "cpu", memory=memory)) == times(1)


def test_a_session_of_a_model_reads_what_was_written_for_it_once(path: Path) -> None:
    model = tieops.from_onnx(path)
    assert counted(lambda: tieops.session(model, "cpu")) == times(1)


@pytest.mark.parametrize("memory", ["packed", "mapped"])
def test_sessions(memory: Any, path: Path, tmp_path: Path) -> None:
    twin = tieops.to_onnx(tieops.from_onnx(path), tmp_path / "twin.onnx", external_data=True).path
    opened = {"a": path, "b": twin}
    found = counted(lambda: tieops.sessions(opened, "cpu", memory=memory))
    # Weights that lie inside are written apart first, and that file is read once as well.
    inside = (
        tieops.from_onnx(path).ledger.stored_bytes > 1e6
        and not path.with_name("m.onnx.data").exists()
    )
    assert found == times(3 if inside else 2)


def test_verify(path: Path, tmp_path: Path) -> None:
    model = tieops.from_onnx(path)
    other = tieops.to_onnx(model, tmp_path / "other.onnx", external_data=True).path
    assert counted(lambda: tieops.verify(path, against=other)) == times(2)
    assert counted(lambda: tieops.verify(path, against=model)) == times(2)
    if not path.with_name("m.onnx.data").exists():
        data = path.read_bytes()
        assert counted(lambda: tieops.verify(data, against=other)) == times(2, 1)


def test_to_onnx(path: Path, tmp_path: Path) -> None:
    model = tieops.from_onnx(path)
    for external in (False, True, "reuse"):
        write = lambda to=external: tieops.to_onnx(model, tmp_path / "n.onnx", external_data=to)  # noqa: E731
        assert counted(write) == times(1)  # what was written, before it replaces anything
