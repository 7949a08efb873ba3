"""How many copies of a tied head a session holds on the CPU, and what that costs.

    python -m tests.benchmarks.resident [vocab] [width]

One fresh process a cell; bytes above those of the same process with an empty session. "anon" is
private memory, "file" is mapped from the data file, reclaimable and shared with other processes.
Latencies are medians of 15 runs in that process, two threads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir

import tieops
from tests.benchmarks.timing import versions
from tieops.tied_model import TiedModel

SHAPES = ((1, 1), (4, 1), (1, 16), (1, 128))

MEASURE = """
import json, statistics, sys, time
import numpy as np
import tieops

def memory():
    lines = open("/proc/self/status").read().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if "Rss" in line}
    return found["RssAnon"], found["RssFile"]

path, mode, warm, vocab, shapes = sys.argv[1:]
tieops.session(warm, "cpu").run({"ids": [[1]]})
before = memory()
start = time.perf_counter()
session = tieops.session(path, "cpu", memory=mode, threads=2)
seconds = time.perf_counter() - start
rng = np.random.default_rng(0)
for _ in range(10):
    session.run({"ids": rng.integers(0, int(vocab), (1, 1))})
resident = [now - then for now, then in zip(memory(), before)]
latencies = []
for shape in json.loads(shapes):
    times = []
    for _ in range(15):
        ids = rng.integers(0, int(vocab), shape)
        begin = time.perf_counter()
        session.run({"ids": ids})
        times.append(time.perf_counter() - begin)
    latencies.append(statistics.median(times) * 1e3)
print(json.dumps([seconds, *resident, *latencies]))
"""


def head(vocab: int, width: int) -> TiedModel:
    """Embedding, a square layer, Tanh, and a head that reads the embedding transposed."""
    graph = onnx_ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 20]>
    g (int64[b, s] ids) => (float[b, s, {vocab}] y) <float[1] emb = {{0}}, float[1] w = {{0}}>
    {{ e = Gather(emb, ids)  l = MatMul(e, w)  h = Tanh(l)
       t = Transpose<perm = [1, 0]>(emb)  y = MatMul(h, t) }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("emb", (vocab, width)), ("w", (width, width))):
        value = graph.graph.initializers[name]
        array = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        value.const_value = onnx_ir.tensor(array, name=name)
        value.shape = onnx_ir.Shape(shape)
    return TiedModel(graph)


def main(vocab: int = 128_000, width: int = 512) -> None:
    """Print one row a file and mode."""
    model = head(vocab, width)
    unique = model.ledger.stored_bytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = tieops.to_onnx(head(100, 8), folder / "warm.onnx").path
        files = {
            "tied, as tieops writes it": (model, "gemm", ("packed", "mapped", "default")),
            "tied, Transpose and MatMul": (model, "portable", ("default",)),
            "untied": (tieops.untie(model), "gemm", ("default",)),
        }
        print(versions())
        print(f"vocabulary {vocab}, width {width}: {unique / 1e6:.0f} MB unique")
        sizes = " | ".join(f"{batch}x{length}, ms" for batch, length in SHAPES)
        print(f"| file | memory= | made in, s | anon, MB | file, MB | of unique | {sizes} |")
        print("|---" * (6 + len(SHAPES)) + "|")
        for title, (each, form, modes) in files.items():
            path = folder / f"{form}_{len(each.ties)}.onnx"
            tieops.to_onnx(each, path, external_data=True, tie_form=form)
            for mode in modes:
                arguments = [str(path), mode, str(warm), str(vocab), json.dumps(SHAPES)]
                command = [sys.executable, "-c", MEASURE, *arguments]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, anon, mapped, *times = json.loads(done.stdout)
                share = (anon + mapped) / unique
                cells = [f"{seconds:.2f}", f"{anon / 1e6:.0f}", f"{mapped / 1e6:.0f}"]
                cells += [f"{share:.2f}", *(f"{time:.1f}" for time in times)]
                print(f"| {title} | {mode} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
