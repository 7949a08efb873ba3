"""How the cost of a look and of each verb grows with the graph, beside reading it with onnx_ir.

    python -m tests.benchmarks.growth [largest]

Graphs: a chain of 1,000, 10,000 and 100,000 nodes with half as many initializers; one initializer
with as many readers, half of them transposed; and one with as many slices. The first two columns
are onnx.load and onnx_ir.load. All are seconds of CPU time of one run, as wall time on a shared
machine tells more about the others.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir

import tieops
from tests.benchmarks.big_models import write_chain, write_readers
from tests.benchmarks.timing import versions
from tieops.errors import TieopsError
from tieops.rendering.picture import picture_of

LIMIT_S = 10
GRAPHS: dict[str, Callable[[Path, int], None]] = {
    "chain": write_chain,
    "readers": write_readers,
    "slices": lambda path, count: write_readers(path, count, sliced=True),
}
STEPS: dict[str, Callable[[tieops.TiedModel, Path], object]] = {
    "onnx.load": lambda _, path: onnx.load(path),
    "onnx_ir.load": lambda _, path: onnx_ir.load(path),
    "from_onnx": lambda _, path: tieops.from_onnx(path),
    "ties": lambda model, _: model.ties,
    "duplicates": lambda model, _: model.duplicates,
    "analyze": lambda model, _: tieops.analyze(model),
    "text": lambda model, _: str(model),
    "tie": lambda model, _: tieops.tie(model),
    "tie all": lambda model, _: tieops.tie(model, include_small=True),
    "untie": lambda model, _: tieops.untie(model),
    "replace head": lambda model, _: tieops.replace_head(model, out_features=8),
    "remove outputs": lambda model, _: tieops.remove_disconnected_outputs(model),
    "diff": lambda model, _: tieops.diff(model, tieops.TiedModel(model.clone())),
    "picture": lambda model, _: picture_of(model),
    "to_onnx": lambda model, path: tieops.to_onnx(model, path.with_name("out.onnx")),
}
"""Each is timed on one model after the other: what one derives, the next ones find there."""


def main(largest: int = 100_000) -> bool:
    """Print one row a graph and size; return whether every step is within the limit."""
    print(versions())
    print("| graph | nodes | " + " | ".join(STEPS) + " |")
    print("|---|" + "---|" * (len(STEPS) + 1))
    within = True
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        for graph, write in GRAPHS.items():
            for count in (1000, 10_000, 100_000):
                if count > largest:
                    continue
                write(path, count)
                model = tieops.from_onnx(path)
                cells: list[str] = []
                for step in STEPS.values():
                    gc.collect()
                    gc.freeze()  # what the steps before have left is not gone through again
                    start = time.process_time()
                    try:
                        step(model, path)
                    except TieopsError as error:
                        cells.append(type(error).__name__)
                        continue
                    seconds = time.process_time() - start
                    within &= seconds <= LIMIT_S
                    cells.append(f"{seconds:.2f}")
                print(f"| {graph} | {count} | {' | '.join(cells)} |", flush=True)
    return within


if __name__ == "__main__":
    sys.exit(0 if main(*(int(argument) for argument in sys.argv[1:])) else 1)
