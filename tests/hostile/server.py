"""Runs cases, each in a process of its own, forked from one that has imported everything.

Reads the names of cases from stdin, one a line; prints one line of JSON for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import selectors
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import tieops
from tests.hostile.case import PREPARED, SECRET, Case, all_cases
from tieops.errors import TieopsError

BUILD_S = 30.0


def run(case: Case) -> dict[str, Any]:
    """Run one case in a child of this process and tell what became of it."""
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    (root / "secret.bin").write_bytes(SECRET)
    (root / "model").mkdir()
    (root / "out").mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(case, root, writing)
    os.close(writing)
    try:
        parts = _answers(reading, BUILD_S + case.clock_s)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reading)
    if not parts or parts[-1].get("kind") is None:
        ended = "out of time" if status == signal.SIGKILL else f"wait status {status}"
        outcome: dict[str, Any] = {"kind": "died", "text": ended}
    else:
        outcome = parts[-1]
    outcome["printed"] = (root / "printed").read_text("utf-8", "replace")
    if parts:
        outcome["changed"] = _differences(parts[0]["files"], listing(root))
    outcome["leaked"] = [str(path) for path in _regular(root / "out") if _holds_secret(path)]
    shutil.rmtree(root, ignore_errors=True)
    return {"case": case.name, **outcome}


def _answers(descriptor: int, clock_s: float) -> list[dict[str, Any]]:
    """Return what the child says: first that it has built its files, then what became of it."""
    parts: list[dict[str, Any]] = []
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        end = time.monotonic() + clock_s
        while len(parts) < 2 and selector.select(max(0.0, end - time.monotonic())):
            block = os.read(descriptor, 1 << 16)
            if not block:
                break
            data += block
            *whole, data = data.split(b"\n")
            parts += [json.loads(line) for line in whole]
    return parts


def _in_child(case: Case, root: Path, writing: int) -> None:
    printed = os.open(root / "printed", os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(root / "model")

    def answer(**what: Any) -> None:
        os.write(writing, json.dumps(what).encode() + b"\n")

    try:
        source = case.build(root / "model")
        answer(files=listing(root))
        answer(**_outcome(case, source, root / "out"))
    except BaseException:
        answer(files={})
        answer(kind="not built", text=traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(0)


def _outcome(case: Case, source: Any, out: Path) -> dict[str, Any]:
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    cap = used + (case.memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    start = time.monotonic()
    try:
        model = case.read(source, **case.options)
        if isinstance(model, tieops.TiedModel):
            use(model, out)
        if case.holds is not None:
            case.holds(model)
        found: dict[str, Any] = {"kind": "ok", "text": ""}
    except TieopsError as error:
        found = {"kind": "error", "type": type(error).__name__, "text": str(error)}
    except BaseException as error:
        text = traceback.format_exc()
        found = {"kind": "traceback", "type": type(error).__name__, "text": text[-4000:]}
    return {**found, "seconds": time.monotonic() - start}


def use(model: tieops.TiedModel, out: Path) -> None:
    """Do with a model that was read what people do: look, tie, write and read again."""
    str(model)
    model.analysis.to_dict()
    written = tieops.to_onnx(tieops.tie(model), out / "written.onnx")
    tieops.from_onnx(written.path)
    tieops.to_onnx(model, out / "apart.onnx", external_data=True)
    tieops.from_onnx(out / "apart.onnx")


def listing(root: Path) -> dict[str, str]:
    """Return every file below a folder but those of ``out``, with what it is and holds."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders.remove("out")
            files = [name for name in files if name != "printed"]
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            what = f"{stat.filemode(status.st_mode)} {status.st_size} {status.st_ino}"
            if stat.S_ISREG(status.st_mode) and status.st_blocks * 512 < 1 << 24:
                what += " " + hashlib.sha256(_head(path)).hexdigest()
            found[os.path.relpath(path, root)] = what
    return found


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 24)


def _differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _regular(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _holds_secret(path: Path) -> bool:
    return SECRET[:16] in path.read_bytes()


def main() -> None:
    """Answer until stdin ends."""
    cases = all_cases()
    for prepare in PREPARED:
        prepare()
    print(json.dumps({"ready": len(cases)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(cases[line.strip()])), flush=True)


if __name__ == "__main__":
    main()
