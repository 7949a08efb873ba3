"""What a look at a remote model reads, and how many models a second a scan looks at.

    python -m tests.benchmarks.scanning FOLDER [gigabytes] [models]

The remote model is ``tests.benchmarks.big_models``'s transformer, served by ranges on this machine;
bytes are those of the bodies that the server sent. The limit is a hundredth of the model for its
ties. The many models are small, so that what is measured is what each costs, not its bytes; beside
them stands ``onnx.load``, which looks at nothing.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import tieops
from tests.benchmarks.big_models import COPY, DATA, TIED, write_transformer
from tests.benchmarks.timing import interleaved, versions
from tests.support.servers import serving
from tieops.analysis.duplicates.by_content import find_duplicates

LIMIT = 0.01
ROUNDS = 3


def remote(folder: Path, gigabytes: float) -> None:
    """Print what each look reads of a model on a server, in bytes and over its size."""
    write_transformer(folder, gigabytes)
    size = (folder / DATA).stat().st_size
    print(f"| look at {size / 1e9:.2f} GB | bytes read | of the model | requests | s |")
    print("|---|---|---|---|---|")
    looks: dict[str, tuple[str, Callable[[tieops.TiedModel], object]]] = {
        f"ties (limit {LIMIT})": (TIED, lambda model: model.ties),
        "ties and duplicates, none": (TIED, lambda model: (model.ties, model.duplicates)),
        "likely duplicates, one": (
            COPY, lambda model: find_duplicates(model.parameters, whole=False)
        ),
        "duplicates, one, read whole": (COPY, lambda model: model.duplicates),
    }  # fmt: skip
    with serving(folder) as server:
        for what, (name, look) in looks.items():
            server.sent = 0
            server.asked.clear()
            start = time.perf_counter()
            look(tieops.from_onnx(server.url + name))
            seconds = time.perf_counter() - start
            row = [what, f"{server.sent:,}", f"{server.sent / size:.6f}", len(server.asked)]
            print("|", " | ".join(map(str, row)), "|", f"{seconds:.2f} |")


def small_model(seed: int, layers: int = 12, width: int = 64) -> onnx.ModelProto:
    """Return a stack of projections of which the last is a copy of the first."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((width, width), dtype=np.float32) for _ in range(layers - 1)]
    weights.append(np.ascontiguousarray(weights[0].T))
    tensors = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(weights)]
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])
        for name in ("h0", f"h{layers}")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def fleet(folder: Path, count: int) -> None:
    """Print how many small models a second are loaded, and scanned by one and two processes."""
    for seed in range(count):
        onnx.save(small_model(seed), folder / f"{seed:04}.onnx")
    paths = sorted(folder.glob("*.onnx"))

    def scanned(workers: int) -> None:
        assert (
            sum(1 for record in tieops.scan(folder, workers=workers) if not record.error) == count
        )

    contenders: dict[str, Callable[[], object]] = {
        "onnx.load in a loop": lambda: [onnx.load(path) for path in paths],
        "from_onnx and duplicates in a loop": lambda: [
            tieops.from_onnx(path).duplicates for path in paths
        ],
        "scan, 1 process": lambda: scanned(1),
        "scan, 2 processes": lambda: scanned(2),
    }
    print(f"| {count} models | models a second |")
    print("|---|---|")
    for name, seconds in interleaved(contenders, ROUNDS).items():
        print(f"| {name} | {count / statistics.median(seconds):.0f} |")


def main(folder: str, gigabytes: float = 2.0, models: int = 500) -> None:
    """Print both tables."""
    print(versions())
    with tempfile.TemporaryDirectory(dir=folder) as place:
        remote(Path(place), gigabytes)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        fleet(Path(place), models)


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:3]), *map(int, sys.argv[3:]))
