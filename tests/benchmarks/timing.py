"""Interleaved timing: contenders take turns in one process, so that all see the same noise.

Each round has an order of its own: who runs after whom decides what the caches hold.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["interleaved", "versions"]


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of every round of each contender, after ``warm_up`` rounds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    turns = list(contenders)
    order = random.Random(0)
    for turn in range(warm_up + rounds):
        order.shuffle(turns)
        for name in turns:
            start = time.perf_counter()
            contenders[name]()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return each contender's median."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def versions() -> str:
    """Return the versions that the figures were measured with, in one line."""
    import platform

    from tieops.runtime import environment

    found = environment()
    packages = ("onnx", "onnx_ir", "onnxruntime", "torch")
    python = f"Python {platform.python_version()}"
    return ", ".join([python, *(f"{name} {found[name]}" for name in packages if name in found)])
