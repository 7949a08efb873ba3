"""What surgery on a model with 2 GB of external data costs in memory beside the data itself.

    python -m tests.benchmarks.surgery_memory [gigabytes]

Each row runs in a process of its own. What counts is anonymous memory (RssAnon of
``/proc/self/status``), sampled every millisecond: pages that are mapped from the data file are the
page cache's, and the system takes them back. The limit is 50 MB more than before the verb, whatever
the weights' size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

import tieops
from tests.benchmarks.timing import versions
from tests.support.memory import growth

LIMIT = 50_000_000
WIDTH = 1024
COPY = "copy.onnx"
Verb = Callable[[tieops.TiedModel], tieops.TiedModel]


def _table(name: str, rows: int, columns: int, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(
        name=name,
        dims=[rows, columns],
        data_type=onnx.TensorProto.FLOAT,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    entries = {"location": "model.data", "offset": offset, "length": 4 * rows * columns}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write_models(folder: Path, total_bytes: int) -> None:
    """Write an embedding with its head, tied in one file and a copy in the other, and an extra.

    A third of the bytes is the embedding, a third its transposed copy in ``copy.onnx``, and a third
    a table that only a second output reads. Every page of the data file holds something.
    """
    vocab = total_bytes // 3 // 4 // WIDTH
    size = 4 * vocab * WIDTH
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((vocab, 1)).astype(np.float32)
    columns = rng.standard_normal((1, WIDTH)).astype(np.float32)
    data = folder / "model.data"
    with data.open("wb") as file:
        file.truncate(3 * size)
    mapped = np.memmap(data, np.float32, "r+", shape=(3 * vocab * WIDTH,))
    emb, head, extra = (mapped[i * vocab * WIDTH :][: vocab * WIDTH] for i in range(3))
    for start in range(0, vocab, 4096):
        block = rows[start : start + 4096] * columns
        emb.reshape(vocab, WIDTH)[start : start + 4096] = block
        head.reshape(WIDTH, vocab)[:, start : start + 4096] = block.T
        extra.reshape(vocab, WIDTH)[start : start + 4096] = block + 1
    mapped.flush()

    declare = helper.make_tensor_value_info
    make = helper.make_node
    ids = declare("ids", onnx.TensorProto.INT64, ["n"])
    outputs = [
        declare("y", onnx.TensorProto.FLOAT, ["n", vocab]),
        declare("more", onnx.TensorProto.FLOAT, [WIDTH, vocab]),
    ]
    tables = [
        _table("emb", vocab, WIDTH, 0),
        _table("head", WIDTH, vocab, size),
        _table("extra", vocab, WIDTH, 2 * size),
    ]
    body = [make("Gather", ["emb", "ids"], ["h"]), make("Transpose", ["extra"], ["more"])]
    copied = [*body, make("MatMul", ["h", "head"], ["y"])]
    tied = [*body, make("Transpose", ["emb"], ["t"]), make("MatMul", ["h", "t"], ["y"])]
    for name, nodes in {"tied.onnx": tied, COPY: copied}.items():
        stored = tables if name == COPY else [tables[0], tables[2]]
        graph = helper.make_graph(nodes, "g", [ids], outputs, stored)
        opsets = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / name)


VERBS: dict[str, tuple[str, Verb]] = {
    "untie": ("tied.onnx", tieops.untie),
    "tie": (COPY, tieops.tie),
    "remove outputs": ("tied.onnx", tieops.remove_disconnected_outputs),
    "replace head": ("tied.onnx", lambda model: tieops.replace_head(model, out_features=15)),
}


def measure(folder: Path, verb: str, *, write: bool) -> dict[str, int]:
    """Return what a verb on a fresh import costs, and how many bytes the result stores."""
    name, work = VERBS[verb]
    model = tieops.from_onnx(folder / name)
    print(model.ledger, file=sys.stderr)
    target = folder / "out.onnx"
    made: list[tieops.TiedModel] = []

    def step() -> None:
        made.append(work(model))
        if write:
            tieops.to_onnx(made[0], target)

    grown = growth(step)
    return {"growth": grown, "stored": made[0].ledger.stored_bytes}


def main(gigabytes: float = 2.0) -> bool:
    """Print one row a verb, without and with writing; return whether all are within the limit."""
    print(versions())
    print(f"{gigabytes:g} GB of external data; limit {LIMIT // 1_000_000} MB")
    print("| verb | stored after, GB | verb, MB | verb and to_onnx, MB |")
    print("|---|---|---|---|")
    within = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, int(gigabytes * 1e9))
        for verb in VERBS:
            found = []
            for write in (False, True):
                command = [sys.executable, "-m", __spec__.name, "--one", name, verb, str(write)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found.append(json.loads(done.stdout))
                for left in folder.glob("out.onnx*"):
                    left.unlink()
            within &= all(each["growth"] < LIMIT for each in found)
            grown = " | ".join(f"{each['growth'] / 1e6:.1f}" for each in found)
            print(f"| {verb} | {found[0]['stored'] / 1e9:.2f} | {grown} |", flush=True)
    return within


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        where, what, written = sys.argv[2:]
        print(json.dumps(measure(Path(where), what, write=written == "True")))
    else:
        sys.exit(0 if main(*(float(argument) for argument in sys.argv[1:])) else 1)
