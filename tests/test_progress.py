"""Progress: shown on a terminal after a while, with bytes per second; silent elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

import tieops.progress
from tieops.progress import advance, progress

CODE = """
import time
from tieops.progress import advance, progress
with progress({what!r}, {total}, {unit!r}):
    for _ in range(12):
        advance(1_000_000)
        time.sleep({pause})
"""


def on_a_terminal(what: str, total: int | None, unit: str, pause: float) -> str:
    leader, follower = pty.openpty()
    code = CODE.format(what=what, total=total, unit=unit, pause=pause)
    env = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=follower, env=env)
    os.close(follower)
    text = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        text += chunk
    os.close(leader)
    assert process.wait() == 0
    return text.decode()


def test_long_work_shows_what_it_is_how_far_and_how_fast():
    shown = on_a_terminal("writing [b]{x}.data", 12_000_000, "bytes", 0.15)
    assert "writing [b]{x}.data" in shown
    assert "/12.0 MB" in shown
    assert "MB/s" in shown


@pytest.mark.slow
def test_work_of_unknown_size_counts():
    assert "MB/s" in on_a_terminal("comparing weights", None, "bytes", 0.1)
    steps = on_a_terminal("comparing outputs", None, "steps", 0.1)
    assert "comparing outputs" in steps
    assert "MB/s" not in steps


def test_short_work_shows_nothing():
    assert on_a_terminal("writing", 12, "bytes", 0.0) == ""


def test_where_nobody_watches_nothing_is_said(capsys):
    with progress("writing", 3, "bytes"):
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_within_another_one_nothing_is_shown_and_an_error_ends_it(monkeypatch):
    made: list[str] = []

    class Display:
        def __init__(self, what: str, total: object, unit: object) -> None:
            made.append(what)
            self.done = 0

        def close(self) -> None:
            made.append(f"end {self.done}")

    monkeypatch.setattr(tieops.progress, "_Display", Display)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def work() -> None:
        with progress("outer", 2, "steps"):
            advance(1)
            with progress("inner", 9, "bytes"):
                advance(5)
            advance(1)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work()
    assert made == ["outer", "end 2"]
    with progress("next"):
        pass
    assert made[2:] == ["next", "end 0"]
