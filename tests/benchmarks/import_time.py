"""What ``import tieops`` costs beside ``import onnx_ir``, which it cannot do without.

    python -m tests.benchmarks.import_time [rounds]

The limit is a ratio of 1.3 of the medians, as ``python -X importtime`` counts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from tests.benchmarks.timing import versions

LIMIT = 1.3


def _microseconds(package: str) -> int:
    command = [sys.executable, "-X", "importtime", "-c", f"import {package}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(lines.strip().splitlines()[-1].split("|")[1])


def main(rounds: int = 9) -> None:
    """Print both medians in seconds and their ratio."""
    found: dict[str, list[int]] = {"onnx_ir": [], "tieops": []}
    for _ in range(rounds):
        for package, times in found.items():
            times.append(_microseconds(package))
    peer, ours = (statistics.median(times) / 1e6 for times in found.values())
    print(versions())
    print(f"| import onnx_ir, s | import tieops, s | ratio (limit {LIMIT}) |")
    print("|---|---|---|")
    print(f"| {peer:.3f} | {ours:.3f} | {ours / peer:.2f} |")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
