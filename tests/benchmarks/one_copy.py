"""Tied models on ONNX Runtime's CPU: what stays in memory, and what a run takes, file by file.

    python -m tests.benchmarks.one_copy [memory | latency] [part of a model's name]

Memory: one fresh process a row; bytes above those of the same process with a session of five rows,
after creation and after ten runs of one token. "anon" is private memory, "file" the resident pages
of the model's own files, reclaimable and shared with other processes. Latency: all contenders in
one process, taking turns; medians. Threads do not spin while they wait: it would disturb who runs.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tieops
from tests.benchmarks.tied_models import MODELS, Contender, contenders, merged_decoder
from tests.benchmarks.timing import interleaved, medians, versions

SHAPES = ((1, 1), (4, 1), (1, 16), (1, 128))
ROUNDS = 21
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
    """Print each contender's medians, and packed's ratio to the fastest of all."""
    rng = np.random.default_rng(0)
    still = {"session.intra_op.allow_spinning": "0"}
    sessions = {
        row.title: tieops.session(
            row.path, "cpu", memory=row.memory, options=dict(row.options) | still, threads=THREADS
        )
        for row in rows
    }
    table: dict[str, list[float]] = {title: [] for title in sessions}
    for shape in SHAPES:
        fed = {title: feeds(session, shape, rng) for title, session in sessions.items()}
        found = medians(
            interleaved(
                {t: lambda t=t: sessions[t].run(fed[t]) for t in sessions},  # noqa: B023 - called at once
                ROUNDS,
                warm_up=2,
            )
        )
        for title, seconds in found.items():
            table[title].append(seconds * 1e3)
    print(f"| file, session | {' | '.join(f'{b}x{s}, ms' for b, s in SHAPES)} |")
    print("|---" * (1 + len(SHAPES)) + "|")
    for title, times in table.items():
        print(f"| {title} | {' | '.join(f'{time:.1f}' for time in times)} |")
    best = [min(column) for column in zip(*table.values(), strict=True)]
    ratios = [mine / least for mine, least in zip(table["tieops, packed"], best, strict=True)]
    print(
        f"| packed to the fastest | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True
    )


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
