"""Saving over a model while disks fill up and processes die: the old file or the new one, whole.

Each test prints its figures, which ``docs/security.md`` carries: run it with ``pytest -s``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAYS = (True, False, "reuse")


def run(*arguments: object, within: tuple[str, ...] = ()) -> dict[str, int]:
    """Run faults in a process of their own, which forks and kills children; return the counts."""
    command = [*within, sys.executable, "-m", "tests.support.faults", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = literal_eval(done.stdout)
    print(*arguments, found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("external", "count"), [(True, 80), (False, 60), ("reuse", 60)])
def test_a_kill_at_a_random_moment(external, count):
    found = run("kills", count, external)
    # Where the kills come is chance: those at fixed points below come in the middle.
    assert found["kills"] == found.get("old", 0) + found.get("new", 0) == count


@pytest.mark.parametrize("fault", ["exit", "kill"])
@pytest.mark.parametrize("external", WAYS)
@pytest.mark.slow
def test_a_process_that_ends_at_any_system_call(external, fault):
    """Before each call; and by a kill within each write, and after each call of another kind."""
    found = run("every_call", fault, external)
    assert found["calls"] == found["killed, old"] + found["killed, new"] > 20
    assert found["calls"] > found["with files left"] > 10


@pytest.mark.parametrize("external", WAYS)
@pytest.mark.slow
def test_any_system_call_that_fails(external):
    found = run("every_call", "EIO", external)
    calls = found.pop("calls")
    found.pop("with files left")  # what could not be removed
    # What failed after the new model was in place was of no importance, or is told.
    assert set(found) == {"refused, old", "written, new", "not flushed, new"}
    assert sum(found.values()) == calls > 20


@pytest.mark.slow
@pytest.mark.parametrize("external", WAYS)
def test_an_interrupt_at_any_system_call(external):
    found = run("every_call", "interrupt", external)
    # Python drops an interrupt that comes while it closes the file of a model that has gone.
    dropped = found.get("written, new", 0)
    assert found["calls"] == found["interrupted, old"] + found["interrupted, new"] + dropped > 20
    assert dropped < 5


@pytest.mark.parametrize("external", WAYS)
@pytest.mark.slow
def test_a_disk_that_is_full_at_any_size(external):
    found = run("full_disk", external)
    assert found["refused"] > 5
    assert found["written"] > 0


@pytest.mark.slow
def test_a_full_file_system(tmp_path):
    mount = f"mount -t tmpfs -o size=8m tmpfs {tmp_path}"
    unshare = shutil.which("unshare")
    own = (unshare or "unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if not unshare or subprocess.run([*own, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system")
    within = (*own, f'{mount} && exec "$@"', "sh")
    assert run("full_tmpfs", tmp_path, within=within) == {"refused": 2}


@pytest.mark.parametrize("external", WAYS)
@pytest.mark.slow
def test_two_writers_at_once(external):
    found = run("two_writers", 15, external)
    assert found["saves"] == 30
    assert found["read"] > 0
    assert found.get("old", 0) + found.get("new", 0) == 1
