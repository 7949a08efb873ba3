"""Scans: what a record says, bad files, going on, executors that break, clusters."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from typer.testing import CliRunner

import tieops
from tests.support.files import save_random
from tests.support.servers import Server, serving
from tieops.cli import app
from tieops.errors import PreconditionError
from tieops.scanning.model_record import Failure, ScanRecord
from tieops.scanning.one_model import look
from tieops.scanning.summary import Summary


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of them with its data beside it, in folders; and two that are none."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "deep" / "er").mkdir(parents=True)
    save_random(folder / "deep" / "er")
    (folder / "bad.onnx").write_bytes(b"nonsense")
    (folder / "page\x1b[31m.ONNX").write_bytes(b"<html>")
    (folder / "notes.txt").write_text("not a model")
    return folder


NAMES = ["bad.onnx", "page\x1b[31m.ONNX", "deep/er/beside.onnx", "deep/er/inside.onnx"]


class Here(Executor):
    """An executor that runs everything at once, in this process."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def test_a_record_says_what_is_tied_and_wasted_or_why_nothing_is_known(models: Path) -> None:
    records = list(tieops.scan(models, executor=Here(), ordered=True))
    assert [record.path for record in records] == [str(models / name) for name in NAMES]
    bad, page, beside, inside = records
    assert isinstance(bad.error, Failure)
    assert (bad.error.kind, bad.error.fix) == ("UntrustedFileError", "copy or export it again")
    assert ("size", "8") in bad.error.facts
    assert page.error is not None
    assert "an HTML page" in page.error.what
    for record in (beside, inside):
        assert record.error is None
        (duplicate,) = record.duplicates
        assert duplicate.names == ("table", "head")
        assert record.wasted_bytes == 3000 * 32 * 4
        assert record.parameters == 5
    assert [Path(mark.path).name for mark in beside.files] == ["beside.onnx", "beside.data"]


def test_a_record_is_json_and_comes_back(models: Path) -> None:
    for record in tieops.scan(models, executor=Here()):
        data = json.loads(json.dumps(record.to_dict()))
        assert ScanRecord.from_dict(data) == record


def test_ties_and_their_slots_are_in_the_record(tmp_path: Path) -> None:
    save_random(tmp_path, tied=True)
    (record,) = tieops.scan(tmp_path / "inside.onnx", executor=Here())
    (tie,) = record.ties
    assert tie.names == ("table",)
    assert tie.slots == ("Gather_h0.weight", "MatMul_y.weight")
    assert record.saved_bytes == tie.saved_bytes == 3000 * 32 * 4


def test_processes_find_the_same_and_end(models: Path) -> None:
    here = {record.path: record for record in tieops.scan(models, executor=Here())}
    for record in tieops.scan(models, workers=2):
        assert record.duplicates == here[record.path].duplicates
        assert record.error == here[record.path].error


def test_an_executor_of_the_standard_library(models: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        records = list(tieops.scan(models, executor=executor, ordered=True))
    assert [record.error is None for record in records] == [False, False, True, True]


@pytest.mark.slow
def test_a_cluster_of_dask(models: Path) -> None:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        records = list(tieops.scan(models, executor=client.get_executor(), ordered=True))
    assert [record.error is None for record in records] == [False, False, True, True]
    assert records[2].wasted_bytes == 3000 * 32 * 4


class Breaking(Here):
    """An executor that breaks at one model, as a pool does when the kernel kills a process."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at
        self.is_broken = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.is_broken:
            raise BrokenProcessPool("broken before")
        if self.at in str(fn):
            self.is_broken = True
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool("a process died"))
            return future
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("at", NAMES[2:])
def test_an_executor_that_breaks_costs_nothing(models: Path, at: str) -> None:
    records = list(tieops.scan(models, executor=Breaking(at), ordered=True))
    assert [record.error is None for record in records] == [False, False, True, True]


def test_an_error_of_the_executor_costs_one_model(models: Path) -> None:
    class Losing(Here):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if "inside" not in str(fn):
                return super().submit(fn, *args, **kwargs)
            future: Future[Any] = Future()
            future.set_exception(RuntimeError("killed worker"))
            return future

    *_, beside, inside = tieops.scan(models, executor=Losing(), ordered=True)
    assert beside.error is None
    assert inside.error is not None
    assert ("Python says", "RuntimeError: killed worker") in inside.error.facts
    assert not issubclass(RuntimeError, BrokenExecutor)


def test_no_more_than_a_few_are_in_flight(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"m{number:02}.onnx").write_bytes(b"nonsense")
    executor = Here()
    records = tieops.scan(tmp_path, executor=executor, max_in_flight=3, ordered=True)
    for taken, _ in enumerate(records):
        assert executor.submitted <= taken + 3
    assert executor.submitted == 20


@pytest.mark.slow
def test_one_that_takes_too_long_or_too_much_is_told(tmp_path: Path) -> None:
    save_random(tmp_path)
    (slow,) = tieops.scan(tmp_path / "inside.onnx", workers=1, timeout_s=0.0001)
    assert slow.error is not None
    assert slow.error.what == "it took too long"
    # Not as raw data, which would stay in the file.
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[20_000_000])
    tensor.float_data.extend(np.zeros(20_000_000, "f4"))
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset]), tmp_path / "large.onnx")
    (large,) = tieops.scan(tmp_path / "large.onnx", workers=1, max_memory_bytes=150_000_000)
    assert large.error is not None
    assert re.search("not enough memory|the process that was reading it died", large.error.what)


def test_what_cannot_be_done_is_refused_at_once(models: Path, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="cannot be combined with executor"):
        tieops.scan(models, executor=Here(), timeout_s=1)
    with pytest.raises(PreconditionError, match="workers is not positive"):
        tieops.scan(models, workers=0)
    with pytest.raises(PreconditionError, match="there are no models to scan"):
        tieops.scan([])
    with pytest.raises(PreconditionError, match="there are no models to scan"):
        tieops.scan(tmp_path, executor=Here())
    with pytest.raises(PreconditionError, match="Is a directory"):
        tieops.scan(models, executor=Here(), out=tmp_path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_scan_goes_on_and_reads_again_what_changed_or_failed(tmp_path: Path) -> None:
    save_random(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    out = tmp_path / "found.jsonl"
    first = list(tieops.scan(tmp_path, executor=Here(), out=out, ordered=True))
    assert [line["path"] for line in lines(out)] == [record.path for record in first]
    (tmp_path / "inside.onnx").replace(tmp_path / "bad.onnx")  # what failed is fixed
    again = list(tieops.scan(tmp_path, executor=Here(), out=out, ordered=True))
    assert [record.error for record in again] == [None, None]
    assert again[1] == first[1]
    assert [line["path"] for line in lines(out)[3:]] == [str(tmp_path / "bad.onnx")]
    os.utime(tmp_path / "beside.data", ns=(1, 1))
    list(tieops.scan(tmp_path, executor=Here(), out=out, ordered=True))
    assert [line["path"] for line in lines(out)[4:]] == [str(tmp_path / "beside.onnx")]


def test_a_line_that_was_half_written_is_dropped(tmp_path: Path) -> None:
    save_random(tmp_path)
    out = tmp_path / "found.jsonl"
    list(tieops.scan(tmp_path, executor=Here(), out=out, ordered=True))
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    for size in (3, first - 1, first, first + 5, len(whole) - 1):
        out.write_bytes(whole[:size])
        list(tieops.scan(tmp_path, executor=Here(), out=out, ordered=True))
        assert [line["path"] for line in lines(out)] == [
            str(tmp_path / name) for name in ("beside.onnx", "inside.onnx")
        ]


@pytest.mark.parametrize("data", [b"precious", b"precious\n", b'{"a": 1}\n', b"\n"])
def test_a_file_that_is_no_record_is_left_alone(tmp_path: Path, data: bytes) -> None:
    save_random(tmp_path)
    out = tmp_path / "precious"
    out.write_bytes(data)
    with pytest.raises(PreconditionError, match="precious was not written by a scan"):
        tieops.scan(tmp_path, executor=Here(), out=out)
    assert out.read_bytes() == data


def settled(server: Server) -> int:
    """Return how many bytes a server has sent; it counts an answer once that is out."""
    before = -1
    while before != server.sent:
        before = server.sent
        time.sleep(0.2)
    return before


def test_remote_folders_are_listed_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    save_random(tmp_path / "inner")
    out = tmp_path / "found.jsonl"
    with serving(tmp_path) as server:
        first = list(tieops.scan(server.url, executor=Here(), out=out, ordered=True))
        assert [record.path for record in first] == [
            server.url + "inner/beside.onnx", server.url + "inner/inside.onnx"
        ]  # fmt: skip
        assert all(record.read_bytes > 0 for record in first)
        sent = settled(server)
        again = list(tieops.scan(server.url, executor=Here(), out=out, ordered=True))
        assert again == first
        assert settled(server) - sent < 1000
        whole = list(tieops.scan(server.url, executor=Here(), out=out, whole=True, ordered=True))
        assert [record.wasted_bytes for record in whole] == [3000 * 32 * 4] * 2
        # The small one was read in one piece, its weights too.
        assert [record.likely_wasted_bytes for record in first] == [3000 * 32 * 4, 0]


def test_pytorch_files_and_folders_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"PK")
    (record,) = tieops.scan(tmp_path / "m.pt2", executor=Here())
    assert record.error is not None
    assert "tieops convert" in record.error.fix
    (record,) = tieops.scan(tmp_path / "none.onnx", executor=Here())
    assert record.error is not None
    assert "cannot open" in record.error.what


def test_what_nobody_expected_is_in_the_record(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[object]:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("tieops.scanning.one_model.from_onnx", fail)
    record = look(str(models / NAMES[3]), whole=False, options=None, limits=None, known=None)
    assert record.error is not None
    assert ("Python says", "ZeroDivisionError: division") in record.error.facts


def test_the_summary_adds_up_and_is_safe_for_a_terminal(models: Path) -> None:
    summary = Summary()
    for record in tieops.scan(models, executor=Here(), ordered=True):
        summary.add(record)
    assert (summary.models, summary.failed) == (4, 2)
    assert summary.wasted_bytes == 2 * 3000 * 32 * 4
    assert dict(summary.worst) == {str(models / name): 3000 * 32 * 4 for name in NAMES[2:]}
    text = str(summary)
    assert text.startswith("4 models, 2 of them could not be read, 0 ties, ")
    assert "page\\x1b[31m.ONNX" in text
    assert "\x1b" not in text


@pytest.mark.slow
def test_the_command_prints_lines_and_a_summary(models: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["scan", str(models), "--ordered", "-j", "1"])
    assert result.exit_code == 1
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["path"] for line in found] == [str(models / name) for name in NAMES]
    assert "\x1b" not in result.stdout
    assert result.stderr.startswith("4 models, 2 of them could not be read")
    out = tmp_path / "found.jsonl"
    good = str(models / "deep")
    result = CliRunner().invoke(app, ["scan", good, "-o", str(out), "-j", "1"])
    assert result.exit_code == 0
    assert result.stdout.startswith("2 models, 0 ties")
    result = CliRunner().invoke(app, ["scan", good, "-o", str(out), "-j", "1", "--json"])
    assert json.loads(result.stdout)["wasted_bytes"] == 2 * 3000 * 32 * 4
    assert len(lines(out)) == 2


def test_what_would_not_be_joined_is_not_waste(tmp_path: Path) -> None:
    graph = onnx_ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y)'
        "<float[2] a = {1, 1}, float[2] b = {1, 1}> { h = Mul(x, a)  y = Mul(h, b) }"
    )
    onnx_ir.save(graph, tmp_path / "m.onnx")
    (record,) = tieops.scan(tmp_path, workers=1)
    (found,) = record.duplicates
    assert found.held_back
    assert (found.wasted_bytes, record.wasted_bytes) == (8, 0)
