"""What it costs to find what a file stores twice, beside what other tools do with the same file.

    python -m tests.benchmarks.looking [gigabytes] [rounds]
    python -m tests.benchmarks.looking growth

Files: a transformer with a transposed copy of its head, and 48 matrices of 4 MiB of which four are
identical. Each figure is from a process of its own, which looks at a tiny model first, so that what
is loaded once a process (modules, ONNX's operators) is there, and then counts from before the file
is opened to the result; the contenders take turns. CPU time is that of all threads of the
process. The page cache is warm for all of them. Anonymous memory (RssAnon) is the peak over what it
was after the imports, in one more process, since whoever samples it takes time from who is sampled.
A peer is stopped after two minutes or at 5 GB of memory of its own.

What tieops reads is measured apart: the data file is dropped from the page cache, one look is
taken, and the pages that are there then are counted (mincore). That counts readahead too.

``growth`` looks at models of 0.5 to 4 GB: as tied ones, where nothing is to be read but what tells
tensors apart, and with the transposed copy, of which both are read whole.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.big_models import (
    COPY,
    DATA,
    TIED,
    write_chain,
    write_tables,
    write_transformer,
)
from tests.benchmarks.page_cache import drop, resident_bytes
from tests.benchmarks.timing import versions

MIN_RATIO = 20
MAX_GROWTH = 50_000_000
TIMEOUT_S = 120
MEMORY = 5_000_000_000
Look = Callable[[str], int]


def _tieops() -> Look:
    from tieops import from_onnx

    return lambda path: sum(each.wasted_bytes for each in from_onnx(path).duplicates)


def _onnx_ir() -> Look:
    import onnx_ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass

    def look(path: str) -> int:
        model = onnx_ir.load(path)
        before = _stored(model)
        DeduplicateHashedInitializersPass(size_limit=1 << 40)(model)
        return before - _stored(model)

    def _stored(model: onnx_ir.Model) -> int:
        return sum(value.const_value.nbytes for value in model.graph.initializers.values())

    return look


def _onnxslim() -> Look:
    import onnxslim

    return lambda path: _inline(onnxslim.slim(path), path)


def _onnxsim() -> Look:
    import onnx
    import onnxsim

    def look(path: str) -> int:
        smaller, _ = onnxsim.simplify(
            onnx.load(path), skip_constant_folding=True, skip_shape_inference=True
        )
        return _inline(smaller, path)

    return look


def _ort() -> Look:
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    def look(path: str) -> int:
        model = OnnxModel(onnx.load(path))
        model.remove_duplicated_initializer({})
        model.update_graph()
        return _inline(model.model, path)

    return look


def _inline(model: object, path: str) -> int:
    """Return how many bytes less a model stores inline than the file's data."""
    left = sum(len(tensor.raw_data) for tensor in model.graph.initializer)  # type: ignore[attr-defined]
    return max(0, sum(each.stat().st_size for each in Path(path).parent.glob("*data")) - left)


LOOKS: dict[str, Callable[[], Look]] = {
    "tieops": _tieops,
    "onnx_ir, hashed": _onnx_ir,
    "OnnxSlim": _onnxslim,
    "onnxsim": _onnxsim,
    "ORT OnnxModel": _ort,
}


def measure(what: str, name: str, path: str) -> dict[str, float]:
    """Return the seconds or the growth of anonymous memory, and the bytes that may go."""
    from tests.support.memory import growth

    look = LOOKS[name]()
    if name != "tieops":
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.onnx"
        write_chain(tiny, 10)
        look(str(tiny))
    if what == "memory":
        return {"growth": growth(lambda: look(path))}
    start, cpu = time.perf_counter(), time.process_time()
    saved = look(path)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "saved": saved,
    }


def _run(name: str, path: Path, what: str = "time") -> dict[str, float] | str:
    """Run one look in a process of its own; return what it measured, or why it failed."""
    command = [sys.executable, "-m", __spec__.name, "--one", what, name, str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done in {TIMEOUT_S} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return lines[-1][:90]
    return json.loads(done.stdout.strip().splitlines()[-1])


def _table(path: Path, rounds: int) -> bool:
    """Print one row a contender; return whether tieops is within its limits."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LOOKS}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name in LOOKS:
            result = failed.get(name) or _run(name, path)
            if isinstance(result, str):
                failed[name] = result
            else:
                found[name].append(result)
    grown = {name: _run(name, path, "memory") for name in LOOKS if name not in failed}
    memory = {name: 0 if isinstance(each, str) else each["growth"] for name, each in grown.items()}
    seconds, cpu = (
        {
            name: statistics.median(each[key] for each in found[name])
            for name in found
            if found[name]
        }
        for key in ("seconds", "cpu")
    )
    print("| tool | s | to tieops | CPU, s | to tieops | found, MB | anonymous memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, results in found.items():
        if not results:
            print(f"| {name} | {failed[name]} | | | | | |")
            continue
        times = (f"{each[name]:.3f} | {each[name] / each['tieops']:.1f}" for each in (seconds, cpu))
        cells = [*times, *(f"{each / 1e6:.1f}" for each in (results[0]["saved"], memory[name]))]
        print(f"| {name} | {' | '.join(cells)} |")
    ratio, of_cpu = (
        min(each[name] for name in each if name != "tieops") / each["tieops"]
        for each in (seconds, cpu)
    )
    print(
        f"\nfastest peer to tieops: {ratio:.1f} (limit {MIN_RATIO}), of CPU time {of_cpu:.1f}\n",
        flush=True,
    )
    return ratio >= MIN_RATIO and memory["tieops"] <= MAX_GROWTH


def _read(path: Path, data: Path) -> tuple[int, float]:
    """Return what one look reads of the data file from the disk, in bytes, and the seconds."""
    drop(data)
    before = resident_bytes(data)
    result = _run("tieops", path)
    assert not isinstance(result, str), result
    return resident_bytes(data) - before, result["seconds"]


def _within(path: Path, data: Path, tied: int) -> bool:
    """Print what one look reads; return whether it is within 1 % of what is tied."""
    read, seconds = _read(path, data)
    print(
        f"of {data.stat().st_size / 1e6:.1f} MB {read / 1e6:.1f} are read, {tied / 1e6:.1f} are "
        f"tied ({read / tied:.4f}, limit 1.01), in {seconds:.2f} s from the disk\n",
        flush=True,
    )
    return read <= 1.01 * tied


def growth_of_looking() -> None:
    """Print what a look reads and takes from half a gigabyte to four."""
    print(versions())
    print("| GB | tensors | tied: MB read | s | with a copy: MB read | of the tied | s, warm |")
    print("|---|---|---|---|---|---|---|")
    for gigabytes in (0.5, 1.0, 2.0, 4.0):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_transformer(folder, gigabytes)
            data, tied = folder / DATA, _head_bytes(gigabytes)
            least, seconds = _read(folder / TIED, data)
            read, _ = _read(folder / COPY, data)
            warm = [_run("tieops", folder / COPY) for _ in range(3)]
            times = [each["seconds"] for each in warm if not isinstance(each, str)]
            cells = [
                f"{gigabytes:g}",
                f"{_tensors(folder / TIED)}",
                f"{least / 1e6:.2f}",
                f"{seconds:.3f}",
                f"{read / 1e6:.1f}",
                f"{read / tied:.4f}",
                f"{statistics.median(times):.3f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def _tensors(path: Path) -> int:
    from tieops import from_onnx

    return len(from_onnx(path).parameters)


def _head_bytes(gigabytes: float) -> int:
    """Return the bytes of a head and of its copy."""
    return 2 * 4 * int(64_000 * gigabytes) * 1024


def main(gigabytes: float = 2.0, rounds: int = 3) -> bool:
    """Print the tables; return whether all limits hold."""
    print(versions())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_transformer(folder, gigabytes)
        print(f"\ntransformer of {gigabytes:g} GB, transposed copy of the head:\n")
        within = _table(folder / COPY, rounds)
        within &= _within(folder / COPY, folder / DATA, _head_bytes(gigabytes))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tables.onnx"
        write_tables(path)
        print("48 matrices of 4 MiB, four identical:\n")
        within &= _table(path, rounds)
        within &= _within(path, path.with_name("tables.onnx.data"), 4 * (4 << 20))
    return within


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
    elif sys.argv[1:] == ["growth"]:
        growth_of_looking()
    else:
        size, turns = [*sys.argv[1:], *("2", "3")[len(sys.argv) - 1 :]]
        sys.exit(0 if main(float(size), int(turns)) else 1)
