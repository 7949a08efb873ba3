"""How much private memory some work takes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much anonymous memory a process has")


def growth(work: Callable[[], object]) -> int:
    """Return the peak of anonymous memory while ``work`` runs, less what there was before."""
    gc.collect()
    before = _anonymous_bytes()
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
        peak = max(peak, _anonymous_bytes())
    finally:
        done.set()
        watcher.join()
    del result
    return peak - before
