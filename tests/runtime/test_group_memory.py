"""Sessions that share: what they hold, measured in processes of their own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tieops
from tests.support.graphs import weight
from tests.support.heads import decoder, encoder

VOCAB, WIDTH = 60_000, 256
TABLE_BYTES = VOCAB * WIDTH * 4
MEASURE = """
import gc, json, sys
import numpy as np
import tieops

def memory():
    lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return found["Pss"], found["Anonymous"]

def run(sessions, rows):
    ids = np.arange(rows)[None]
    for session in sessions.values():
        fed = [np.zeros((1, rows, port.shape[2]), np.float32) for port in session.inputs[1:]]
        session.run({"ids": ids} | {"memory": array for array in fed})

how, mode, warm, paths, rows = sys.argv[1:]
warm = tieops.sessions(json.loads(warm), "cpu")
run(warm, 2)
gc.collect()
before = memory()
if how != "apart":
    sessions = tieops.sessions(json.loads(paths), "cpu", memory=mode, threads=1)
else:
    each = json.loads(paths).items()
    sessions = {name: tieops.session(path, "cpu", memory=mode, threads=1) for name, path in each}
run(sessions, int(rows))
print(json.dumps([now - then for now, then in zip(memory(), before)]), flush=True)
if how == "wait":  # until the other process has measured
    sys.stdin.readline()
"""


def command(folder: Path, paths: dict[str, Path], mode: str, how: str) -> list[str]:
    warm = {}
    for name, make in {"encoder": encoder, "decoder": decoder}.items():
        warm[name] = str(tieops.to_onnx(make(weight(100, 8)), folder / f"{name}.warm").path)
    given = json.dumps({name: str(path) for name, path in paths.items()})
    return [sys.executable, "-c", MEASURE, how, mode, json.dumps(warm), given, "4"]


def resident(folder: Path, paths: dict[str, Path], mode: str, how: str = "together") -> Any:
    """Return (Pss, anonymous) bytes above those of a process with small sessions, after a run."""
    line = command(folder, paths, mode, how)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder and a decoder, each with a data file of its own and with its weights inside."""
    folder = tmp_path_factory.mktemp("pair")
    table = weight(VOCAB, WIDTH)
    made = {"encoder": encoder(table, "shared"), "decoder": decoder(table, "lm_head")}
    found = {}
    for (name, each), apart in itertools.product(made.items(), (True, False)):
        path = folder / f"{name}{'' if apart else '.inside'}.onnx"
        found[path.stem] = tieops.to_onnx(each, path, external_data=apart).path
    return found


def of(pair: dict[str, Path], inside: bool) -> dict[str, Path]:
    return {name: pair[f"{name}.inside" if inside else name] for name in ("encoder", "decoder")}


@pytest.mark.parametrize("inside", [False, True], ids=["data files", "weights inside"])
@pytest.mark.slow
def test_packed_holds_what_each_one_packs_and_the_original_not_at_all(
    inside: bool, pair: dict[str, Path], tmp_path: Path
) -> None:
    pss, anonymous = resident(tmp_path, of(pair, inside), "packed")
    apart = [resident(tmp_path, {name: pair[name]}, "packed")[0] for name in of(pair, False)]
    assert pss <= 1.1 * sum(apart)
    # The encoder looks rows up; only the decoder packs.
    assert 0.9 * TABLE_BYTES <= anonymous <= pss <= 1.15 * TABLE_BYTES


@pytest.mark.parametrize("inside", [False, True], ids=["data files", "weights inside"])
@pytest.mark.slow
def test_mapped_holds_one_mapping_and_no_private_copy(
    inside: bool, pair: dict[str, Path], tmp_path: Path
) -> None:
    pss, anonymous = resident(tmp_path, of(pair, inside), "mapped")
    assert anonymous <= 0.1 * TABLE_BYTES
    assert pss <= 1.1 * resident(tmp_path, {"decoder": pair["decoder"]}, "mapped")[0]


@pytest.mark.slow
def test_the_runtimes_own_sessions_hold_more_which_is_why_there_is_a_group(
    pair: dict[str, Path], tmp_path: Path
) -> None:
    assert resident(tmp_path, of(pair, False), "default", "apart")[0] >= 1.9 * TABLE_BYTES
    assert resident(tmp_path, of(pair, True), "default", "apart")[0] >= 2.8 * TABLE_BYTES


@pytest.mark.slow
def test_one_file_twice_is_one_mapping(pair: dict[str, Path], tmp_path: Path) -> None:
    paths = {"a": pair["decoder"], "b": pair["decoder"]}
    one = resident(tmp_path, {"a": pair["decoder"]}, "mapped")[0]
    for how in ("together", "apart"):
        assert resident(tmp_path, paths, "mapped", how)[0] <= 1.1 * one
    packed = resident(tmp_path, {"a": pair["decoder"]}, "packed")[0]
    for how in ("together", "apart"):
        assert resident(tmp_path, paths, "packed", how)[0] <= 1.1 * 2 * packed


@pytest.mark.slow
def test_two_processes_share_one_mapping(pair: dict[str, Path], tmp_path: Path) -> None:
    paths = of(pair, False)
    line = command(tmp_path, paths, "mapped", "wait")
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        alone = json.loads(first.stdout.readline())[0]
        assert alone >= 0.9 * TABLE_BYTES
        # Pss counts a page that two processes map as half a page in each.
        second = resident(tmp_path, paths, "mapped")[0]
        first.communicate("\n")
    assert second <= 0.6 * TABLE_BYTES


CLOSE = """
import sys, threading, time
import numpy as np
import tieops

for name in ("encoder", "decoder"):
    models = dict.fromkeys(("encoder", "decoder"), sys.argv[1])
    group = tieops.sessions(models, "cpu", memory="mapped")
    feeds = {"ids": np.zeros((1, 100), int), "memory": np.zeros((1, 100, 256), np.float32)}
    started = threading.Event()
    def work():
        started.set()
        print(group[name].run(feeds)["y"].shape)
    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    time.sleep(0.02)  # well within the run
    group.close()
    thread.join()
"""


@pytest.mark.slow
def test_closing_while_another_thread_runs_waits_for_it(pair: dict[str, Path]) -> None:
    command = [sys.executable, "-c", CLOSE, str(pair["decoder"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(1, 100, 60000)\n" * 2
