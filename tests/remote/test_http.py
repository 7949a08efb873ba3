"""Ranges over HTTP: what is asked for again, how often, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.servers import Server, serving
from tieops.errors import UntrustedFileError
from tieops.remote import http
from tieops.remote.remote_files import REQUESTS_AT_ONCE, RemoteFile, open_remote

STEP = 10_000
RANGES = [(at, at + 10) for at in range(0, 200 * STEP, STEP)]
"""So far apart that each is a request."""
PASSING = ["408", "429", "500", "502", "503", "504", "resets", "truncates", "slow"]
STAYING = ["400", "401", "403", "410", "416", "501", "other range"]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WAITS_S", (0.01, 0.01))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "m.onnx").write_bytes(bytes(range(250)) * (200 * STEP // 250))
    with serving(tmp_path) as served:
        yield served


def opened(server: Server) -> RemoteFile:
    timeout = aiohttp.ClientTimeout(sock_read=0.3)
    return open_remote(server.url + "m.onnx", {"client_kwargs": {"timeout": timeout}})


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_asked_for_again(server: Server, fault: str) -> None:
    server.fault, server.passing = fault, True
    ranges = RANGES[:40]
    file = opened(server)
    assert file.read(ranges) == [bytes(range(10))] * len(ranges)
    assert file.read_bytes == 10 * len(ranges)
    once = 0 if fault == "truncates" else 1  # which a single byte is not
    assert len(server.asked) == 1 + once + 2 * len(ranges)


# aiohttp itself opens a new connection for a request whose connection was reset, once.
TRIES = dict.fromkeys(PASSING, (3,)) | {"resets": (3, 6)} | dict.fromkeys(STAYING, (1,))


@pytest.mark.parametrize("fault", TRIES)
def test_what_may_pass_is_one_error_after_three_tries_and_what_stays_after_one(
    server: Server, fault: str
) -> None:
    file = opened(server)
    server.asked.clear()
    server.fault = fault
    with pytest.raises(UntrustedFileError, match=r"cannot read http://.*/m\.onnx"):
        file.read(RANGES[:1])
    assert len(server.asked) in TRIES[fault]


def test_a_file_that_is_not_there_is_asked_for_once(server: Server) -> None:
    with pytest.raises(UntrustedFileError, match="there is no file"):
        open_remote(server.url + "none.onnx", {})
    assert len(server.asked) == 1


@pytest.mark.parametrize(("fault", "tries"), [("503", 3), ("slow", 3), ("403", 1)])
def test_the_first_range_that_is_lost_ends_all(server: Server, fault: str, tries: int) -> None:
    file = opened(server)
    server.asked.clear()
    server.fault = fault
    with pytest.raises(UntrustedFileError):
        file.read(RANGES)
    # Where one is lost, those in whose place others had come are not taken back.
    assert len(server.asked) < (tries + 1) * REQUESTS_AT_ONCE < len(RANGES)
    server.fault = ""
    assert len(file.read(RANGES)) == len(RANGES)


def test_a_try_that_took_long_is_the_last(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(server)
    server.asked.clear()
    server.fault = "slow"
    monkeypatch.setattr(http, "PATIENCE_S", 0.1)
    with pytest.raises(UntrustedFileError, match="nothing in time"):
        file.read(RANGES[:1])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("said", "least_s"),
    [({}, 1), ({"Retry-After": "4"}, 4), ({"Retry-After": "999999"}, http.MAX_WAIT_S),
     ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 1), ({"Retry-After": "-5"}, 1)],
)  # fmt: skip
def test_a_server_says_how_long_to_wait_within_bounds(said: dict[str, str], least_s: int) -> None:
    class Busy(Exception):
        headers = said

    waited_s = {http.pause_s(Busy(), 1) for _ in range(20)}
    assert least_s <= min(waited_s) <= max(waited_s) <= min(least_s + 0.5, http.MAX_WAIT_S)


def test_nobody_who_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WAITS_S", (1e6, 1e6))
    with pytest.raises(UntrustedFileError, match="check the URL and the network"):
        open_remote("http://127.0.0.1:1/m.onnx", {})
