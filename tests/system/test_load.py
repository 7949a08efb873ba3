"""Many models and many processes: nothing grows, and nobody is in another's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tieops

pytestmark = pytest.mark.slow

MAKE = """
import numpy as np, onnx, sys
from onnx import parser, numpy_helper
def model(width, seed=0):
    proto = parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
        g (int64[n] x) => (float[n, m] y) { h = Gather(table, x) y = MatMul(h, head) }''')
    table = np.random.default_rng(seed).standard_normal((300, width)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    proto.graph.initializer.append(numpy_helper.from_array(table.T.copy(), "head"))
    return proto
"""

GROWTH = (
    MAKE
    + """
import gc, os, tieops
def held():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))
path = sys.argv[1]
tieops.to_onnx(tieops.from_onnx(model(200).SerializeToString()), path, external_data=True)
def once():
    WORK
for _ in range(int(sys.argv[2])):
    once()
before = held()
for _ in range(int(sys.argv[3])):
    once()
after = held()
print(after[0] - before[0], after[1] - before[1])
"""
)

INSPECT = """tied = tieops.tie(tieops.from_onnx(path)); assert len(tied.ties) == 1; str(tied)"""
SESSION = """
    with tieops.session(path, "cpu") as session:
        session.run({"x": [1, 2, 3]})
"""


def _growth(work: str, warm: int, times: int, folder: Path) -> tuple[int, int]:
    code = GROWTH.replace("WORK", work)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "m.onnx"), str(warm), str(times)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, descriptors = map(int, done.stdout.split()[-2:])
    return grown, descriptors


def test_a_thousand_models_leave_nothing_behind(tmp_path):
    grown, descriptors = _growth(INSPECT, 100, 1000, tmp_path)
    assert descriptors == 0
    assert grown < 10_000_000  # a thousand models read 480 MB


def test_a_hundred_sessions_leave_nothing_behind(tmp_path):
    grown, descriptors = _growth(SESSION, 20, 100, tmp_path)
    assert descriptors == 0
    assert grown < 10_000_000


def test_eight_processes_inspect_and_tie_the_same_file_at_once(tmp_path):
    code = MAKE + "onnx.save(model(200), sys.argv[1])"
    path = tmp_path / "m.onnx"
    outs = [tmp_path / f"tied{number}.onnx" for number in range(4)]
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    before = path.read_bytes()
    commands = [["inspect", str(path)]] * 4 + [["tie", str(path), str(out)] for out in outs]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tieops", *command], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    for process in running:
        _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, "")
    assert path.read_bytes() == before
    assert all(len(tieops.from_onnx(out).ties) == 1 for out in outs)
    assert sorted(tmp_path.iterdir()) == [path, *outs]
