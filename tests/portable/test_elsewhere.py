"""The main job on Windows and macOS, as far as Linux can play them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def do(system: str, job: str, folder: Path) -> None:
    """Do a job in a process that is on another system."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.portable.elsewhere", system, folder, job],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done\n")
    assert list((folder / "temporary").glob("tieops*")) == []


@pytest.mark.parametrize("system", ["windows", "darwin"])
@pytest.mark.parametrize("job", ["files", "held", "data_that_is_mapped"])
def test_files(job, system, tmp_path):
    do(system, job, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["windows", "darwin"])
@pytest.mark.parametrize("job", ["sessions", "torch", "command_line"])
def test_running(job, system, tmp_path):
    do(system, job, tmp_path)
