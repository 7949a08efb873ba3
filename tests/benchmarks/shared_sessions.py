"""What two sessions hold together on the CPU: tieops' sessions, and ONNX Runtime's own two.

    python -m tests.benchmarks.shared_sessions [vocab] [width]

One fresh process a row; bytes above those of the same process with two empty sessions, after each
session has run ten times. Pss counts a page once, however often it is mapped; "private" is what no
file stands behind. The two models have the table in common: an encoder that looks it up and a
decoder whose head is tied to it, or two language-model heads with everything in common.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import numpy_helper, parser

import tieops
from tests.benchmarks.timing import versions
from tieops.model import TiedModel

MEASURE = """
import gc, json, sys, time
import numpy as np
import tieops

def memory():
    lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return found["Pss"], found["Anonymous"]

warm, paths, mode, vocab = sys.argv[1:]
warm, paths = json.loads(warm), json.loads(paths)
small = {name: tieops.session(path, "cpu") for name, path in warm.items()}
for session in [*small.values(), tieops.sessions(warm, "cpu")["a"]]:
    session.run({"ids": [[1]]})
gc.collect()
before = memory()
start = time.perf_counter()
if mode == "own":
    sessions = {n: tieops.session(p, "cpu", memory="default", threads=2) for n, p in paths.items()}
else:
    sessions = tieops.sessions(paths, "cpu", memory=mode, threads=2)
seconds = time.perf_counter() - start
rng = np.random.default_rng(0)
for _ in range(10):
    for session in sessions.values():
        session.run({"ids": rng.integers(0, int(vocab), (1, 1))})
print(json.dumps([seconds, *(now - then for now, then in zip(memory(), before))]))
"""


def model(vocab: int, width: int, *, head: bool, seed: int) -> TiedModel:
    """Embedding, a square layer and Tanh; and a head that reads the embedding transposed."""
    size = vocab if head else width
    tail = "h = Tanh(l) t = Transpose<perm = [1, 0]>(table) y = MatMul(h, t)" if head else ""
    proto = parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[b, s] ids) => (float[b, s, {size}] y)
        {{ e = Gather(table, ids)  l = MatMul(e, w)  {tail or "y = Tanh(l)"} }}""")
    for name, shape, each in (("table", (vocab, width), 0), ("w", (width, width), seed)):
        array = np.random.default_rng(each).standard_normal(shape, np.float32) * np.float32(0.02)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return tieops.from_onnx(proto)


def row(warm: dict[str, str], paths: dict[str, str], mode: str, vocab: int) -> list[float]:
    """Measure two sessions in a process of their own: seconds, Pss, private bytes."""
    arguments = [json.dumps(warm), json.dumps(paths), mode, str(vocab)]
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main(vocab: int = 128_000, width: int = 512) -> None:
    """Print one row a pair, a way to store it and a way to open it."""
    print(versions())
    pairs = {
        "encoder and decoder": (
            model(vocab, width, head=False, seed=1),
            model(vocab, width, head=True, seed=2),
        ),
        "two heads": (model(vocab, width, head=True, seed=1),) * 2,
    }
    print(f"vocabulary {vocab}, width {width}: {vocab * width * 4 / 1e6:.0f} MB in common")
    print("| pair | stored in | opened by | made in, s | Pss, MB | private, MB |")
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = tieops.to_onnx(model(100, 8, head=True, seed=1), folder / "warm.onnx").path
        warm = {"a": str(small), "b": str(small)}
        for title, pair in pairs.items():
            for how, stored in (("one data file", None), ("two", True), ("the models", False)):
                to = [folder / f"{each}.onnx" for each in "ab"]
                if stored is None:
                    tieops.to_onnx(pair, to)
                else:
                    for each, path in zip(pair, to, strict=True):
                        tieops.to_onnx(each, path, external_data=stored)
                paths = {path.stem: str(path) for path in to}
                for mode in ("own", "packed", "mapped"):
                    seconds, pss, private = row(warm, paths, mode, vocab)
                    opened = "ONNX Runtime's own" if mode == "own" else f"sessions, {mode}"
                    cells = f"{seconds:.2f} | {pss / 1e6:.0f} | {private / 1e6:.0f}"
                    print(f"| {title} | {how} | {opened} | {cells} |", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
