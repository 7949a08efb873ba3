"""Every hostile case has the wanted outcome: one clear error, or a model that holds what it should.

No outcome is a crash, a hang, a raw traceback, a changed file, or a word on stderr.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.case import SECRET, all_cases

ROOT = Path(__file__).parents[2]
LONGEST_TEXT = 4000


@pytest.fixture(scope="module")
def outcome_of() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Ask one process for the outcome of each case; it forks a child for every one."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["ready"] == len(all_cases())

        def ask(name: str) -> dict[str, Any]:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(f"{name}\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.mark.parametrize(
    "name",
    # The fast part of the tests tries every other one.
    [
        pytest.param(name, marks=pytest.mark.slow if place % 2 else [])
        for place, name in enumerate(all_cases())
    ],
)
def test_a_hostile_case_has_the_wanted_outcome(name, outcome_of):
    case, outcome = all_cases()[name], outcome_of(name)
    kind, text = outcome["kind"], outcome["text"]
    assert kind in ("ok", "error"), text
    if case.words is None:
        assert kind == "ok", text
    elif case.words:
        assert kind == "error", "read without a word"
    if kind == "error":
        assert all(word in text for word in case.words or ()), text
        assert len(text) < LONGEST_TEXT
        assert all(line.isprintable() for line in text.splitlines()), ascii(text)
        assert SECRET.decode() not in text
    assert outcome["seconds"] < case.clock_s
    assert outcome["changed"] == []
    assert outcome["leaked"] == []
    assert outcome["printed"] == ""
