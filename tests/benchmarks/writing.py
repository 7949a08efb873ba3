"""What it takes to write a model of gigabytes, beside what it takes to copy its bytes.

    python -m tests.benchmarks.writing [gigabytes] [rounds]

The model is the transformer of ``big_models``, whose head is stored twice. Contenders take turns;
a round of tieops imports the model anew. Both sides flush what they wrote to the disk (fsync), the
files and the folder. Before each turn what the last one wrote is removed and the disk is left to
settle (sync), which does not count. The pages of the source are in memory, for both. Memory is the
growth of anonymous memory at its peak, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tieops
from tests.benchmarks.big_models import COPY, DATA, TIED, write_transformer
from tests.benchmarks.timing import medians, versions
from tests.support.memory import growth

OUT = "out.onnx"
Work = Callable[[Path], object]


def _tie(folder: Path) -> object:
    return tieops.to_onnx(tieops.tie(tieops.from_onnx(folder / COPY)), folder / OUT)


def _tie_reuse(folder: Path) -> object:
    tied = tieops.tie(tieops.from_onnx(folder / COPY))
    return tieops.to_onnx(tied, folder / OUT, external_data="reuse")


def _untie(folder: Path) -> object:
    free = tieops.untie(tieops.from_onnx(folder / TIED))
    return tieops.to_onnx(free, folder / OUT, external_data="reuse", tie_form="portable")


def _flush(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _cp(folder: Path) -> None:
    """Copy what tie + to_onnx writes: all of the data but the second copy of the head."""
    target = folder / f"{OUT}.data"
    subprocess.run(["cp", folder / "wanted.data", target], check=True)
    _flush(target, folder)


def _numpy(folder: Path) -> None:
    table = next(p for p in tieops.from_onnx(folder / TIED).parameters if p.name == "wte.weight")
    target = folder / f"{OUT}.data"
    with target.open("wb") as file:
        file.write(np.ascontiguousarray(table.numpy().T).data)
    _flush(target, folder)


TIEOPS: dict[str, Work] = {
    "tie + to_onnx": _tie,
    "tie + to_onnx, reuse": _tie_reuse,
    "untie + to_onnx, reuse": _untie,
}
PEERS: dict[str, Work] = {"cp": _cp, "numpy": _numpy}


def _clean(folder: Path) -> None:
    for left in folder.glob(f"{OUT}*"):
        left.unlink()
    os.sync()


def timed(folder: Path, rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in (*TIEOPS, *PEERS)}
    for turn in range(rounds + 1):
        for name, work in {**TIEOPS, **PEERS}.items():
            _clean(folder)
            start = time.perf_counter()
            work(folder)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    _clean(folder)
    return medians(seconds)


def prepare(folder: Path, gigabytes: float) -> None:
    """Write the models, and a file of as many bytes as the tied model has."""
    write_transformer(folder, gigabytes)
    written = tieops.to_onnx(tieops.from_onnx(folder / TIED), folder / "wanted.onnx")
    assert written.data_path is not None
    written.data_path.rename(folder / "wanted.data")
    written.path.unlink()


def main(gigabytes: float = 2.0, rounds: int = 3) -> None:
    """Print the table."""
    print(versions())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, gigabytes)
        wanted = (folder / "wanted.data").stat().st_size
        stored = (folder / DATA).stat().st_size
        head = stored - wanted
        print(f"{stored / 1e9:.2f} GB stored, {wanted / 1e9:.2f} GB tied, {head / 1e9:.2f} GB head")
        seconds = timed(folder, rounds)
        print("| what | s | against | s | ratio | memory, MB |")
        print("|---|---|---|---|---|---|")
        for what, peer in zip(TIEOPS, ("cp", "cp", "numpy"), strict=True):
            command = [sys.executable, "-m", __spec__.name, "--memory", name, what]
            grown = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            _clean(folder)
            ratio = f"{seconds[what] / seconds[peer]:.2f}"
            cells = [f"{seconds[what]:.2f}", peer, f"{seconds[peer]:.2f}", ratio, f"{grown:.1f}"]
            print(f"| {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        where, work = Path(sys.argv[2]), TIEOPS[sys.argv[3]]
        print(json.dumps(growth(lambda: work(where)) / 1e6))
    else:
        given = sys.argv[1:]
        main(*(float(each) for each in given[:1]), *(int(each) for each in given[1:]))
