"""Faults while a model is saved over another: what is there afterwards, and does it load?

    python -m tests.support.faults kills 200

Every run begins with a folder that holds one whole model. A child writes another one over it and
is killed, or its system calls fail. Then the folder must hold the one or the other, whole: read by
onnx, passed by its checker, run by ONNX Runtime, imported by tieops. The functions return counts,
which the tests print.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

import tieops
from tieops.ir.storage.data_files import is_temporary
from tieops.model import TiedModel

FEEDS = {"x": np.array([0, 7, 99])}
TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (int64[n] x) => (float[n, m] y) {
    h = Gather(table, x)  t = Transpose<perm = [1, 0]>(table)  y = MatMul(h, t) }"""
CALLS = (
    "open", "close", "pwrite", "copy_file_range", "sendfile", "pread", "fsync", "link", "unlink",
    "rename", "replace", "ftruncate", "fchmod", "fstat", "stat", "listdir", "scandir",
)  # fmt: skip
"""What is made to fail, or to be the last thing that a process does."""


@dataclass(frozen=True)
class Case:
    """A folder with a model in it, and the models that it may hold.

    Args:
        path: The model.
        models: What may be there, by name; their data lies elsewhere.
        external: How each of them is written.
    """

    path: Path
    models: dict[str, TiedModel]
    external: Any

    def write(self, name: str) -> None:
        """Save one of the models over the path."""
        tieops.to_onnx(self.models[name], self.path, external_data=self.external)

    def found(self) -> str:
        """Return which of the models is there, after every reader has taken it.

        Raises:
            AssertionError: If none of them is there, whole.
        """
        loaded = onnx.load(self.path)
        onnx.checker.check_model(self.path, full_check=True)
        held = {t.name: numpy_helper.to_array(t) for t in loaded.graph.initializer}
        (table,) = (array for name, array in held.items() if name == "table")
        session = ort.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, FEEDS)
        tieops.from_onnx(self.path)
        for name, model in self.models.items():
            wanted = next(p for p in model.parameters if p.name == "table").numpy()
            if table.tobytes() == wanted.tobytes():
                np.testing.assert_allclose(answer, wanted[FEEDS["x"]] @ wanted.T, rtol=1e-4)
                others = {p.name: p.numpy() for p in model.parameters}
                for each in held.keys() & others.keys():
                    np.testing.assert_array_equal(held[each], others[each])
                return name
        raise AssertionError("the file holds none of the models")

    def files(self) -> list[str]:
        """Return the names of what the folder holds."""
        return sorted(os.listdir(self.path.parent))

    def assert_no_more_files(self) -> None:
        """Check that there is nothing but the model and its data."""
        reused = ["old.onnx", "old.onnx.data", "new.onnx", "new.onnx.data"]
        others = set(self.files()) - set(reused if self.external == "reuse" else [])
        data = {False: 0, True: 1, "reuse": int(self.found() == "new")}[self.external]
        assert len(others) == 1 + data, others


@contextmanager
def case(external: Any, rows: int = 20_000) -> Iterator[Case]:
    """Yield a folder with the model ``old`` in it; ``new`` is untied, its copy transposed."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name, "target")
        target.mkdir()
        home = target if external == "reuse" else Path(name)
        models: dict[str, TiedModel] = {}
        for seed, each in enumerate(("old", "new")):
            proto = parser.parse_model(TEXT)
            table = np.random.default_rng(seed).standard_normal((rows, 64), np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
            written = tieops.to_onnx(
                tieops.from_onnx(proto), home / f"{each}.onnx", external_data=True
            )
            models[each] = tieops.from_onnx(written)
        models["new"] = tieops.untie(models["new"])
        made = Case(target / "model.onnx", models, external)
        made.write("old")
        yield made


def in_child(work: Callable[[], object]) -> int:
    """Start work in a forked process, which ends with it; return the process."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def kills(count: int, external: Any) -> dict[str, int]:
    """Kill a process that saves the two models in turns, at a random moment, many times."""
    moments, seen = random.Random(0), Counter[str]()
    with case(external) as folder:

        def forever() -> None:
            while True:
                folder.write("new")
                folder.write("old")

        start = time.monotonic()
        folder.write("new")
        longest = 3 * (time.monotonic() - start)
        for _ in range(count):
            child = in_child(forever)
            time.sleep(moments.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            seen[folder.found()] += 1
            seen["with files left"] += any(is_temporary(name) for name in folder.files())
        folder.write("old")
        assert folder.found() == "old"
        folder.assert_no_more_files()
    return {"kills": count, **seen}


Fault = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], object]
"""What happens at a call: given its name, the call itself and its arguments."""


@contextmanager
def nth_call(number: int, fault: Fault) -> Iterator[Counter[str]]:
    """Let the n-th system call of a kind that is watched be a fault; count the calls."""
    count: Counter[str] = Counter()

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            count["calls"] += 1
            if count["calls"] == number:
                count[name] += 1
                if name == "close":  # a descriptor is free after close, whatever close says
                    original(*args, **kwargs)
                fault(name, original, args, kwargs)
            return original(*args, **kwargs)

        return call

    with mock.patch.multiple(os, **{name: watched(name) for name in CALLS}):
        yield count


def _no_disk(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _kill(
    name: str, call: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Die of SIGKILL when half of the bytes are written, or a call of another kind is done."""
    try:
        if name == "pwrite":
            descriptor, data, at = args
            call(descriptor, data[: len(data) // 2], at)
        elif name == "copy_file_range":
            source, target, length, *at = args
            call(source, target, length // 2, *at)
        elif name == "sendfile":
            target, source, at, length = args
            call(target, source, at, length // 2)
        elif name != "close":  # it is closed already
            call(*args, **options)
    finally:  # also where there is nothing at a path
        os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Fault] = {
    "EIO": _no_disk,
    "interrupt": _interrupt,
    "exit": lambda *_: os._exit(9),
    "kill": _kill,
}


def every_call(kind: str, external: Any) -> dict[str, int]:
    """Let each system call of one save fail in turn; return what was there after how many."""
    seen: Counter[str] = Counter()
    with case(external, 4_000) as folder:
        kept = folder.path.parent.with_name("kept")
        shutil.copytree(folder.path.parent, kept)
        for number in range(1, 10_000):
            answer = _one_call(folder, kind, number)
            if answer == "no fault":
                break
            there = folder.found()
            seen[f"{answer}, {there}"] += 1
            seen["with files left"] += any(is_temporary(name) for name in folder.files())
            if answer in ("refused", "killed"):
                assert there in ("old", "new")
            if answer == "refused":
                assert there == "old"
            folder.write("new")
            assert folder.found() == "new"
            folder.assert_no_more_files()
            _put_back(folder.path.parent, kept)
        seen["calls"] = number - 1
    return dict(seen)


def _put_back(folder: Path, kept: Path) -> None:
    """Make a folder what it was; files that are as they were stay the same files."""
    for left in folder.iterdir():
        before = kept / left.name
        if not before.exists() or not filecmp.cmp(left, before, shallow=False):
            left.unlink()
    for each in kept.iterdir():
        if not (folder / each.name).exists():
            shutil.copy2(each, folder / each.name)


def _one_call(folder: Case, kind: str, number: int) -> str:
    """Save with one fault, in a child; return how it ended."""

    def save() -> None:
        code = 1
        try:
            with nth_call(number, FAULTS[kind]) as count:
                folder.write("new")
            code = 2 if count["calls"] >= number else 3
        except tieops.TieopsError as error:
            code = 4 if "is written" in str(error) else 5
        except KeyboardInterrupt:
            code = 6
        finally:
            os._exit(code)

    child = os.fork()
    if not child:
        save()
    _, status = os.waitpid(child, 0)
    return {
        1: "broken", 2: "written", 3: "no fault", 4: "not flushed", 5: "refused",
        6: "interrupted", 9: "killed", -signal.SIGKILL: "killed",
    }[os.waitstatus_to_exitcode(status)]  # fmt: skip


def full_disk(external: Any, steps: int = 24) -> dict[str, int]:
    """Save where files may grow to a limit only, from nothing to what is needed."""
    seen: Counter[str] = Counter()
    with case(external) as folder:
        before = {name: (folder.path.parent / name).read_bytes() for name in folder.files()}
        largest = 3 * max(map(len, before.values()))
        for step in range(steps):
            limit = largest * step // (steps - 1)

            def save(limit: int = limit) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                try:
                    folder.write("new")
                except tieops.TieopsError:
                    os._exit(5)

            _, status = os.waitpid(in_child(save), 0)
            refused = os.waitstatus_to_exitcode(status) == 5
            seen["refused" if refused else "written"] += 1
            assert folder.found() == ("old" if refused else "new")
            if refused:
                after = {name: (folder.path.parent / name).read_bytes() for name in folder.files()}
                assert after == before
            else:
                folder.write("old")
    return dict(seen)


def full_tmpfs(place: str) -> dict[str, int]:
    """Save on a small file system that is full; to be run where one is mounted."""
    seen: Counter[str] = Counter()
    for external in (True, False):
        with case(external, 20_000) as folder:
            target = Path(place, "model.onnx")
            tieops.to_onnx(folder.models["old"], target, external_data=external)
            there = Case(target, folder.models, external)
            before = there.files()
            try:
                there.write("new")
                seen["written"] += 1
            except tieops.TieopsError as error:
                seen["refused" if "No space left on device" in str(error) else str(error)] += 1
            assert there.found() == "old"
            assert there.files() == before
            for each in Path(place).iterdir():
                each.unlink()
    return dict(seen)


def two_writers(count: int, external: Any) -> dict[str, int]:
    """Let two processes save different models over one path, again and again, and read it."""
    seen: Counter[str] = Counter()
    with case(external) as folder:

        def often(name: str) -> Callable[[], None]:
            def work() -> None:
                code = 1
                try:
                    for _ in range(count):
                        folder.write(name)
                    code = 0
                finally:
                    os._exit(code)

            return work

        children = [in_child(often(name)) for name in ("old", "new")]
        while children:
            for child in list(children):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    assert status == 0
                    children.remove(child)
            try:
                model = tieops.from_onnx(folder.path)
            except tieops.TieopsError:  # its data went after the model was read: read it again
                seen["read again"] += 1
                continue
            seen["read"] += 1
            assert len(model.parameters) in (1, 2)
        seen[folder.found()] += 1
        folder.assert_no_more_files()
    return {"saves": 2 * count, **seen}


RUNS: dict[str, Callable[..., dict[str, int]]] = {
    "kills": kills, "every_call": every_call, "full_disk": full_disk, "full_tmpfs": full_tmpfs,
    "two_writers": two_writers,
}  # fmt: skip


if __name__ == "__main__":
    ways = {"True": True, "False": False, "reuse": "reuse"}
    run, *given = sys.argv[1:]
    print(json.dumps(RUNS[run](*(int(g) if g.isdigit() else ways.get(g, g) for g in given))))
