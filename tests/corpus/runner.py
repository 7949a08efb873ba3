"""Runs the corpus: one model at a time in a process with limits, what comes out kept as JSON."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.corpus.families import FAMILIES, VOCABULARIES
from tests.corpus.packages import PACKAGES, files

__all__ = ["RESULTS", "Runner", "jobs_of", "names", "read", "write"]

RESULTS = Path(__file__).with_name("results.json")
SECONDS = 300
Job = dict[str, Any]
Row = dict[str, Any]


def jobs_of(name: str, cache: Path) -> dict[str, Job]:
    """Return the jobs of a family or a package, by the key of their row."""
    if name in FAMILIES:
        return {f"{name}/{vocab}": {"family": name, "vocab": vocab} for vocab in VOCABULARIES}
    return {
        f"{name}/{member}": {"package": name, "member": member, "path": str(path)}
        for member, path in files(name, cache).items()
    }


def names() -> list[str]:
    """Return all families and packages."""
    return [*FAMILIES, *PACKAGES]


class Runner:
    """A worker process, started when it is needed, and again when it had to be stopped."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def take(self, job: Job) -> Row:
        """Return the row of one model.

        A stage in which the process died or ran out of time is a failure that says so.
        """
        process = self._process = self._process or self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        row: Row = {"stages": {}}
        stage = "import"
        while "seconds" not in row:
            line = self._line(process)
            if not line:
                # Nothing said in time, or nothing to come: then it is ending.
                code = None if line is None else process.wait(self.seconds)
                self._stop()
                what = f"no end after {self.seconds:.0f} s" if line is None else f"died with {code}"
                row["stages"][stage] = f"fail: {what}"
                break
            key, value = json.loads(line)
            if key == "starts":
                stage = value
            elif key == stage:
                row["stages"][key] = value
            else:
                row[key] = value
        return row

    def _started(self) -> subprocess.Popen[bytes]:
        self._rest = b""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.corpus.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )

    def _line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """Return the worker's next line; None if it takes too long, nothing if it is gone."""
        assert process.stdout is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([process.stdout], [], [], self.seconds)
            if not ready:
                return None
            said = os.read(process.stdout.fileno(), 65536)
            if not said:
                return b""
            self._rest += said
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None


def read() -> dict[str, Any]:
    """Return the versions that were run, and the rows by key."""
    if not RESULTS.is_file():
        return {"versions": {}, "models": {}}
    return json.loads(RESULTS.read_text("utf-8"))


def write(models: dict[str, Row]) -> None:
    """Keep the rows, in the order of the lists, with the versions of what was run."""
    order = {name: place for place, name in enumerate(names())}
    keys = sorted(models, key=lambda key: order.get(key.partition("/")[0], len(order)))
    packages = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "numpy")
    versions = {name: version(name) for name in packages}
    lines = [f"  {json.dumps(key)}: {json.dumps(models[key])}" for key in keys]
    text = f'{{"versions": {json.dumps(versions)},\n "models": {{\n'
    RESULTS.write_text(text + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
