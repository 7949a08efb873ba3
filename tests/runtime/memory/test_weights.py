"""One copy of a tied weight at run time: what ONNX Runtime does with it, measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tieops
from tests.support.heads import head_read_by
from tieops.errors import PreconditionError, UnsupportedModelError, UntrustedFileError

VOCAB, WIDTH = 40_000, 256
BYTES = VOCAB * WIDTH * 4


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    return tieops.to_onnx(head_read_by(VOCAB, WIDTH), folder / "head.onnx", external_data=True).path


MEASURE = """
import json, sys
import numpy as np
import tieops

def memory():
    lines = open("/proc/self/status").read().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if "Rss" in line}
    return found["RssAnon"], found["RssFile"]

path, mode, warm = sys.argv[1:]
tieops.session(warm, "cpu").run({"ids": [[1]]})
before = memory()
session = tieops.session(path, "cpu", memory=mode, threads=1)
created = memory()
for seed in range(10):
    session.run({"ids": np.random.default_rng(seed).integers(0, 40_000, (1, 1))})
after = memory()
print(json.dumps([[b - a for a, b in zip(before, now)] for now in (created, after)]))
"""


def resident(written: Path, mode: str, tmp_path: Path) -> tuple[list[int], list[int]]:
    """Return (anonymous, file) bytes above an empty session's, when created and after ten runs."""
    warm = tieops.to_onnx(head_read_by(100, 8), tmp_path / "warm.onnx").path
    command = [sys.executable, "-c", MEASURE, str(written), mode, str(warm)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    created, after = json.loads(done.stdout)
    return created, after


def test_packed_holds_one_private_copy(written: Path, tmp_path: Path) -> None:
    created, after = resident(written, "packed", tmp_path)
    assert sum(created) <= 1.15 * BYTES
    assert 0.9 * BYTES <= after[0] <= 1.15 * BYTES
    # Each of the ten rows looked up brings in one folio of the page cache, 2 MiB at the most.
    assert after[1] - created[1] <= 10 * 2**21


def test_mapped_holds_no_private_copy(written: Path, tmp_path: Path) -> None:
    created, after = resident(written, "mapped", tmp_path)
    assert created[0] <= 0.1 * BYTES
    assert after[0] <= 0.15 * BYTES
    assert sum(after) <= 1.15 * BYTES


def test_the_default_holds_two_copies_which_is_why_there_are_modes(
    written: Path, tmp_path: Path
) -> None:
    _, after = resident(written, "default", tmp_path)
    assert sum(after) >= 1.8 * BYTES


@pytest.mark.parametrize("form", ["gemm", "portable"])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (2, 16)])
def test_all_modes_compute_the_same(form: str, shape: tuple[int, int], tmp_path: Path) -> None:
    path = tieops.to_onnx(
        head_read_by(5000, 64), tmp_path / "m.onnx", external_data=True, tie_form=form
    ).path
    ids = np.random.default_rng(1).integers(0, 5000, shape)
    found = {}
    for memory in ("packed", "mapped", "default"):
        session = tieops.session(path, "cpu", memory=memory)
        assert [port.name for port in session.inputs] == ["ids"]
        found[memory] = session.run({"ids": ids})["y"]
    for array in found.values():
        np.testing.assert_allclose(array, found["default"], rtol=1e-5, atol=1e-6)


def test_two_tied_weights_and_an_untied_one(tmp_path: Path) -> None:
    model = head_read_by(5000, 64, "MatMul(l, t)")
    path = tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True).path
    with tieops.session(path, "cpu", memory="mapped") as session:
        assert session.run({"ids": [[1, 2]]})["y"].shape == (1, 2, 5000)


@pytest.mark.parametrize("memory", ["packed", "mapped"])
def test_weights_inside_the_model_are_left_to_the_runtime(memory: str, tmp_path: Path) -> None:
    path = tieops.to_onnx(head_read_by(5000, 64), tmp_path / "m.onnx", external_data=False).path
    session = tieops.session(path, "cpu", memory=memory)
    assert session.run({"ids": [[1]]})["y"].shape == (1, 1, 5000)


def test_the_data_file_may_go_while_a_session_lives(tmp_path: Path) -> None:
    written = tieops.to_onnx(head_read_by(5000, 64), tmp_path / "m.onnx", external_data=True)
    assert written.data_path is not None
    for memory in ("packed", "mapped"):
        session = tieops.session(written.path, "cpu", memory=memory)
        wanted = session.run({"ids": [[7]]})["y"]
        moved = written.data_path.rename(tmp_path / "moved")
        np.testing.assert_array_equal(session.run({"ids": [[7]]})["y"], wanted)
        moved.rename(written.data_path)


def test_an_unknown_mode_is_refused(written: Path) -> None:
    with pytest.raises(PreconditionError, match="unknown memory mode 'one'"):
        tieops.session(written, "cpu", memory="one")


def long_named(folder: Path) -> Path:
    """Write a head of 1.3 MB whose first node has a name beyond the default limits."""
    model = head_read_by(5000, 64)
    next(iter(model.ir.graph)).name = "n" * 70_000
    return tieops.to_onnx(model, folder / "long.onnx", external_data=True).path


@pytest.mark.parametrize("memory", ["packed", "mapped"])
@pytest.mark.parametrize("given", ["path", "TiedModel", "onnx_ir.Model"])
@pytest.mark.slow
def test_a_model_that_was_read_with_raised_limits_is_held_once(
    given: str, memory: str, tmp_path: Path
) -> None:
    path, raised = long_named(tmp_path), tieops.Limits(name_bytes=100_000)
    if given == "path":
        session = tieops.session(path, "cpu", memory=memory, limits=raised)
    else:
        model = tieops.from_onnx(path, limits=raised)
        session = tieops.session(model if given == "TiedModel" else model.ir, "cpu", memory=memory)
    found = tieops.resident_bytes(session)
    assert [tie.verdict for tie in found.ties] == ["kept"]
    assert not found.undone


def test_a_file_beyond_the_limits_is_left_to_the_runtime(tmp_path: Path) -> None:
    session = tieops.session(long_named(tmp_path), "cpu", memory="mapped")
    assert session.run({"ids": [[1]]})["y"].shape == (1, 1, 5000)
    with pytest.raises(UnsupportedModelError, match="limits=Limits"):
        tieops.resident_bytes(session)


def test_data_with_other_names_is_read_where_that_is_allowed(tmp_path: Path) -> None:
    written = tieops.to_onnx(head_read_by(5000, 64), tmp_path / "m.onnx", external_data=True)
    assert written.data_path is not None
    (tmp_path / "other").hardlink_to(written.data_path)
    with pytest.raises(UntrustedFileError, match=r"limits=Limits\(hard_links=True\)"):
        tieops.session(written.path, "cpu")
    allowed = tieops.Limits(hard_links=True)
    session = tieops.session(written.path, "cpu", memory="mapped", limits=allowed)
    assert not tieops.resident_bytes(session).undone
