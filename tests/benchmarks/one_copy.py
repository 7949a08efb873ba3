"""Tied models on ONNX Runtime's CPU: what stays in memory, and what a run takes, file by file.

    python -m tests.benchmarks.one_copy [memory | latency] [part of a model's name]

Memory: one fresh process a row; bytes above those of the same process with a session of five rows,
after creation and after ten runs of one token. "anon" is private memory, "file" the resident pages
of the model's own files, reclaimable and shared with other processes. Latency: all contenders in
one process, taking turns; medians. They are opened anew, in another order, some times: where in
memory a weight comes to lie is a matter of what came before it, and of several percent. How far
that evens out tells a second session of tieops' file, "the same again". Threads do not spin while
they wait: it would disturb who runs.
"""

from __future__ import annotations

import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tieops
from tests.benchmarks.tied_models import MODELS, Contender, contenders, merged_decoder
from tests.benchmarks.timing import interleaved, versions

Shape = tuple[int, int]
"""Batch and sequence."""
SHAPES: tuple[Shape, ...] = ((1, 1), (4, 1), (1, 16), (1, 128))
ROUNDS = 7
OPENINGS = 6
MINE, AGAIN = "tieops, packed", "the same again"
THREADS = 2

MEASURE = """
import json, sys, time
from pathlib import Path
import numpy as np
import tieops
from tests.benchmarks.one_copy import feeds

path, mode, options, warm = sys.argv[1:]
folder = str(Path(path).parent)

def memory():
    status = Path("/proc/self/status").read_text()
    anon = int(status.partition("RssAnon:")[2].split()[0])
    mine, file = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            mine = folder in line
        elif mine and first == "Rss:":
            file += int(rest[0])
    return anon * 1024, file * 1024

small = tieops.session(warm, "cpu")
small.run({"x": [1]})
before = memory()
start = time.perf_counter()
session = tieops.session(path, "cpu", memory=mode, options=json.loads(options), threads=2)
seconds = time.perf_counter() - start
created = memory()
rng = np.random.default_rng(0)
for _ in range(10):
    session.run(feeds(session, (1, 1), rng))
ran = memory()
print(json.dumps([seconds, *(now[i] - before[i] for now in (created, ran) for i in (0, 1))]))
"""
WARM = """<ir_version: 10, opset_import: ["": 20]>
g (int64[n] x) => (float[n, 5] y) <float[5, 2] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}>
{ h = Gather(w, x)  t = Transpose <perm = [1, 0]> (w)  y = MatMul(h, t) }"""


def feeds(
    session: tieops.runtime.Session, shape: tuple[int, int], rng: np.random.Generator
) -> dict[str, np.ndarray[Any, Any]]:
    """Return random ids, or rows of pixels, for a shape of batch and sequence."""
    found = {}
    for port in session.inputs:
        if port.dtype == "int64":
            found[port.name] = rng.integers(0, 30_000, shape)
        elif port.dtype == "bool":
            found[port.name] = np.array(True)
        else:
            found[port.name] = rng.random((shape[0] * shape[1], 8192), np.float32)
    return found


def memory_rows(rows: Sequence[Contender], unique: int, warm: Path) -> None:
    """Print what each contender holds, one fresh process a row."""
    print("| file, session | made in, s | made: anon + file, MB | after 10 runs | of unique |")
    print("|---|---|---|---|---|")
    for row in rows:
        arguments = [str(row.path), row.memory, json.dumps(dict(row.options)), str(warm)]
        command = [sys.executable, "-c", MEASURE, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        seconds, *found = json.loads(done.stdout)
        first, mapped, anon, file = (round(each / 1e6) for each in found)
        share = (found[2] + found[3]) / unique
        cells = [f"{seconds:.2f}", f"{first} + {mapped}", f"{anon} + {file}", f"{share:.2f}"]
        print(f"| {row.title} | {' | '.join(cells)} |", flush=True)


def latency_rows(rows: Sequence[Contender]) -> None:
    """Print each contender's medians, and packed's ratio to the fastest of the others."""
    mine = next(row for row in rows if row.title == MINE)
    rows = [*rows, replace(mine, title=AGAIN)]
    seconds: dict[str, dict[Shape, list[float]]] = {
        row.title: {shape: [] for shape in SHAPES} for row in rows
    }
    order = random.Random(0)
    sessions: dict[str, tieops.runtime.Session] = {}
    for _ in range(OPENINGS):
        order.shuffle(rows)
        sessions.clear()
        sessions = {row.title: _still_session(row) for row in rows}
        for shape in SHAPES:
            for title, times in _times(sessions, shape).items():
                seconds[title][shape] += times
    medians = {
        title: {shape: statistics.median(times) * 1e3 for shape, times in shapes.items()}
        for title, shapes in seconds.items()
    }
    print(f"| file, session | {' | '.join(f'{b}x{s}, ms' for b, s in SHAPES)} |")
    print("|---" * (1 + len(SHAPES)) + "|")
    for title, times in medians.items():
        print(f"| {title} | {' | '.join(f'{times[shape]:.1f}' for shape in SHAPES)} |")
    others = [times for title, times in medians.items() if title not in (MINE, AGAIN)]
    for title in (MINE, AGAIN):
        ratios = [medians[title][s] / min(times[s] for times in others) for s in SHAPES]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {title}, to the fastest other | {cells} |", flush=True)


def _still_session(row: Contender) -> tieops.runtime.Session:
    options = {**dict(row.options), "session.intra_op.allow_spinning": "0"}
    return tieops.session(row.path, "cpu", memory=row.memory, options=options, threads=THREADS)


def _times(sessions: Mapping[str, tieops.runtime.Session], shape: Shape) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    fed = {title: feeds(session, shape, rng) for title, session in sessions.items()}
    runs = {title: partial(session.run, fed[title]) for title, session in sessions.items()}
    return interleaved(runs, ROUNDS, warm_up=2)


def main(what: str = "both", name: str = "") -> None:
    """Print the tables of every model, or of those whose name has a part."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print(versions())
    models = {**MODELS, "merged decoder 32k x 1024": merged_decoder}
    for title, build in models.items():
        if name not in title:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            warm = folder / "warm.onnx"
            tieops.to_onnx(tieops.from_onnx(_proto(WARM)), warm, external_data=True)
            model, rows = contenders(build(), folder)
            unique = model.ledger.stored_bytes
            print(f"\n{title}: {unique / 1e6:.0f} MB unique")
            if what in ("both", "memory"):
                memory_rows(rows, unique, warm)
            if what in ("both", "latency"):
                latency_rows(rows)


def _proto(text: str) -> Any:
    import onnx

    return onnx.parser.parse_model(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
