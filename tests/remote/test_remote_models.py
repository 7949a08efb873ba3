"""Models behind URLs: what is read of them, what leads out of their folder, servers that fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import fsspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tieops
from tests.support.files import language_model, save_random
from tests.support.servers import Server, serving
from tieops.cli import app
from tieops.errors import (
    MissingDependencyError,
    PreconditionError,
    TieopsError,
    UntrustedFileError,
)

VOCABULARY, WIDTH = 128_000, 1024
IMPATIENT = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_read=0.3)}}


def save_sparse(model: onnx.ModelProto, path: Path) -> int:
    """Write a model with external data that takes no disk; a head that it stores is its table."""
    offset = 0
    with path.with_suffix(".data").open("wb") as file:
        for number, tensor in enumerate(model.graph.initializer):
            length = 4 * int(np.prod(tensor.dims))
            file.seek(offset)
            first = 1 if tensor.name == "head" else number + 1
            file.write(np.float32(first).tobytes())
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.with_suffix(".data").name), ("offset", offset),
                               ("length", length)):  # fmt: skip
                tensor.external_data.add(key=key, value=str(value))
            offset += length
        file.truncate(offset)
    path.write_bytes(model.SerializeToString())
    return offset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    save_random(folder)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as served:
        yield served


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once."""
    monkeypatch.setattr("tieops.remote.http.WAITS_S", (0.01, 0.01))


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a graph of some kB be read as a large one is."""
    monkeypatch.setattr("tieops.importers.onnx.WHOLE_BYTES", 1000)


@pytest.mark.slow
def test_ties_and_likely_duplicates_of_2_gb_cost_less_than_a_thousandth(tmp_path: Path) -> None:
    tied = language_model(VOCABULARY, WIDTH, 360, tied=True)
    twice = language_model(VOCABULARY, WIDTH, 230, tied=False)
    sizes = [save_sparse(tied, tmp_path / "tied.onnx"), save_sparse(twice, tmp_path / "twice.onnx")]
    assert min(sizes) > 2e9
    with serving(tmp_path) as server:
        model = tieops.from_onnx(server.url + "tied.onnx")
        assert [tie.names for tie in model.ties] == [("table",)]
        assert server.sent < 1e-4 * sizes[0]
        assert len(model.duplicates) == 0
        assert server.sent < 1e-3 * sizes[0]
        server.sent = 0
        (record,) = tieops.scan(server.url + "twice.onnx", workers=1)
        assert record.error is None
        (likely,) = record.duplicates
        assert (likely.names, likely.evidence) == (("table", "head"), "samples")
        assert (record.wasted_bytes, record.likely_wasted_bytes) == (0, 4 * VOCABULARY * WIDTH)
        assert server.sent < 1e-3 * sizes[1]


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("name", ["inside.onnx", "beside.onnx"])
def test_a_remote_model_goes_through_everything_a_local_one_does(
    server: Server, folder: Path, tmp_path: Path, name: str
) -> None:
    model = tieops.from_onnx(server.url + name)
    looked = server.sent
    assert looked < 0.2 * (folder / "inside.onnx").stat().st_size
    (duplicate,) = model.duplicates
    assert [each.name for each in duplicate.parameters] == ["table", "head"]
    tied = tieops.tie(model)
    local = tieops.tie(tieops.from_onnx(folder / name))
    written = [
        tieops.to_onnx(each, tmp_path / f"{place}.onnx")
        for place, each in (("remote", tied), ("local", local))
    ]
    assert not tieops.diff(*map(tieops.from_onnx, written))
    assert tieops.verify(tied, against=folder / name, rtol=0, atol=1e-5)
    outputs = tieops.session(model, provider="cpu").run({"x": [1, 2]})
    assert outputs["y"].shape == (2, 3000)


def test_opening_a_url_in_a_session_says_what_to_do(server: Server) -> None:
    with pytest.raises(PreconditionError, match=r"pass tieops.from_onnx\(url\)"):
        tieops.session(server.url + "inside.onnx")


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("name", ["inside.onnx", "beside.onnx"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("no ranges", "does not support byte ranges"),
        ("long", "less than it announced"),
        ("truncates", "less than it announced"),
        ("slow", "nothing in time"),
        ("forbids", "HTTP status 403"),
        ("other range", "it sent another range"),
        ("endless", ""),
        ("503", "HTTP status 503"),
        ("429", "try again later"),
        ("resets", "check the URL and the network"),
    ],
)
def test_a_server_that_fails_is_one_clear_error(
    server: Server, name: str, fault: str, says: str
) -> None:
    server.fault = fault
    with pytest.raises(UntrustedFileError) as caught:
        _ = tieops.from_onnx(server.url + name, storage_options=IMPATIENT).duplicates
    text = str(caught.value)
    assert says in text
    assert server.url in text
    assert "fix: " in text
    assert text.count("\n") <= 2


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    save_random(tmp_path)
    with serving(tmp_path) as server:
        model = tieops.from_onnx(server.url + "beside.onnx")
        os.utime(tmp_path / "beside.data", ns=(1, 1))
        with pytest.raises(UntrustedFileError, match="the file changed while it was read"):
            _ = model.duplicates


def test_shapes_and_axes_in_the_data_file_are_one_request(tmp_path: Path) -> None:
    nodes, x = [], "x"
    for number in range(50):
        nodes.append(helper.make_node("Reshape", [x, f"s{number}"], [f"h{number}"]))
        x = f"h{number}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", x)]
    shapes = [numpy_helper.from_array(np.array([4, -1]), f"s{n}") for n in range(50)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], shapes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    with serving(tmp_path) as server:
        assert tieops.analyze(tieops.from_onnx(server.url + "m.onnx")).totals.wasted_bytes == 0
        assert len(server.asked) == 4  # twice how long a file is, the graph, the shapes


def test_a_redirect_is_followed(server: Server) -> None:
    server.fault = "redirects"
    assert len(tieops.from_onnx(server.url + "beside.onnx").duplicates) == 1


def test_a_file_that_is_not_there_and_a_server_that_is_not(server: Server) -> None:
    with pytest.raises(UntrustedFileError, match=r"there is no file http://.*/none.onnx"):
        tieops.from_onnx(server.url + "none.onnx")
    with pytest.raises(UntrustedFileError, match="check the URL and the network"):
        tieops.from_onnx("http://127.0.0.1:1/m.onnx")


def test_secrets_of_a_url_are_sent_and_not_told(server: Server) -> None:
    url = server.url.replace("//", "//me:password@") + "none.onnx?key=secret"
    with pytest.raises(UntrustedFileError) as caught:
        tieops.from_onnx(url)
    assert server.asked[-1].endswith("?key=secret")
    assert "secret" not in str(caught.value)
    assert "password" not in str(caught.value)


def test_the_query_goes_with_the_data_too(server: Server) -> None:
    _ = tieops.from_onnx(server.url + "beside.onnx?key=secret").duplicates
    assert {path.partition("?")[2] for path in server.asked} == {"key=secret"}


LEADING_OUT = [
    "../secret.data", "a/../../secret.data", "/etc/passwd", "http://other/x", "//other/x",
    "file:///etc/passwd", "..",
]  # fmt: skip


@pytest.mark.parametrize("location", LEADING_OUT)
@pytest.mark.parametrize("kind", ["http", "memory"])
def test_data_outside_of_the_folder_is_refused(tmp_path: Path, location: str, kind: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.data").write_bytes(bytes(10**6))
    model = onnx.load(_with_location(inner / "m.onnx", location), load_external_data=False)
    assert model.graph.initializer[0].external_data[0].value == location
    with serving(tmp_path) as server:
        url = server.url + "inner/m.onnx"
        if kind == "memory":
            fsspec.filesystem("memory").pipe("/inner/m.onnx", (inner / "m.onnx").read_bytes())
            url = "memory://inner/m.onnx"
        with pytest.raises(UntrustedFileError, match="table lies outside of the model's folder"):
            tieops.from_onnx(url)
        assert all(path.startswith("/inner/m.onnx") for path in server.asked)


def _with_location(path: Path, location: str) -> Path:
    save_sparse(language_model(10, 4, 1, tied=True), path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["a b#c?d%41.data", "deep/er/x.data", "%2e%2e"])
def test_names_that_mean_something_in_a_url_are_names(tmp_path: Path, name: str) -> None:
    _with_location(tmp_path / "m.onnx", "./" + name)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "m.data").rename(tmp_path / name)
    with serving(tmp_path) as server:
        model = tieops.from_onnx(server.url + "m.onnx")
        assert model.parameters[0].numpy().shape == (10, 4)


def test_data_that_is_too_short_or_missing(tmp_path: Path) -> None:
    save_sparse(language_model(10, 4, 1, tied=True), tmp_path / "m.onnx")
    os.truncate(tmp_path / "m.data", 100)
    with serving(tmp_path) as server:
        with pytest.raises(UntrustedFileError, match="lies past the end of its external data"):
            tieops.from_onnx(server.url + "m.onnx")
        (tmp_path / "m.data").unlink()
        with pytest.raises(UntrustedFileError, match=r"there is no file http://.*/m.data"):
            tieops.from_onnx(server.url + "m.onnx")


def test_other_file_systems_of_fsspec(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("inside.onnx", "beside.onnx", "beside.data"):
        memory.pipe(f"/models/{name}", (folder / name).read_bytes())
    for name in ("inside.onnx", "beside.onnx"):
        assert len(tieops.from_onnx(f"memory://models/{name}").duplicates) == 1
    with pytest.raises(PreconditionError, match="fsspec does not support the URL nope://x"):
        tieops.from_onnx("nope://x")
    with pytest.raises(UntrustedFileError, match=r"there is no file memory:///none.onnx"):
        tieops.from_onnx("memory://none.onnx")


def test_a_file_system_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tieops.remote.http", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "tieops\[remote\]"'):
        tieops.from_onnx("https://host/m.onnx")


def test_file_urls_are_paths_and_obey_their_rules(folder: Path, tmp_path: Path) -> None:
    assert len(tieops.from_onnx((folder / "beside.onnx").as_uri()).duplicates) == 1
    odd = tmp_path / "a b%20c.onnx"
    odd.write_bytes((folder / "inside.onnx").read_bytes())
    assert len(tieops.from_onnx(odd.as_uri()).parameters) == 5
    with pytest.raises(UntrustedFileError, match="lies on another machine"):
        tieops.from_onnx("file://host/m.onnx")
    path = _with_location(tmp_path / "m.onnx", "../x")
    with pytest.raises(UntrustedFileError, match="lies outside of the model's folder"):
        tieops.from_onnx(path.as_uri())


def test_options_that_have_no_use_are_refused(folder: Path) -> None:
    with pytest.raises(PreconditionError, match="storage_options apply only to URLs"):
        tieops.from_onnx(folder / "inside.onnx", storage_options={})
    with pytest.raises(PreconditionError, match="from beside it"):
        tieops.from_onnx("memory://models/inside.onnx", base_dir=folder)


def test_what_is_no_model_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.onnx").write_bytes(b"<!DOCTYPE html>" + bytes(2_000_000))
    (tmp_path / "empty.onnx").write_bytes(b"")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(3_000_000_000)
    with serving(tmp_path) as server:
        for name, says in (("page", "HTML page"), ("empty", "is empty"), ("huge", "larger than")):
            with pytest.raises(UntrustedFileError, match=says):
                tieops.from_onnx(f"{server.url}{name}.onnx")
        assert server.sent < 1000


def test_commands_take_urls(server: Server, tmp_path: Path) -> None:
    def invoke(*args: str) -> str:
        result = CliRunner().invoke(app, list(args))
        assert result.exception is None or not isinstance(result.exception, TieopsError)
        return result.output

    url = server.url + "beside.onnx"
    assert "wasted  384 kB" in invoke("inspect", url)
    assert "stored a second time" in invoke("check", url, "--max-duplicate-bytes", "0")
    assert "wrote" in invoke("tie", url, str(tmp_path / "tied.onnx"))
    assert "ties        0 -> 1" in invoke("diff", url, str(tmp_path / "tied.onnx"))
