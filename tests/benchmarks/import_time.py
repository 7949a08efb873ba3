"""What starting tieops costs beside ``import onnx_ir``, each in a fresh process.

    python -m tests.benchmarks.import_time [rounds]

The limits are ratios of the medians. Importing tieops alone loads little; the first verb that reads
a graph loads onnx_ir too, which is the third line.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.benchmarks.timing import versions

COMMANDS = {
    "import onnx_ir": (["-c", "import onnx_ir"], None),
    "import tieops": (["-c", "import tieops"], 1.2),
    "import tieops, first verb": (["-c", "import tieops; tieops.from_onnx"], None),
    "tieops --help": (["-m", "tieops", "--help"], 1.5),
}
"""What is run, and the limit of its ratio."""


def _seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print a table, in Markdown."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, (arguments, _) in COMMANDS.items():
            taken[name].append(_seconds(arguments))
    peer = statistics.median(taken["import onnx_ir"])
    print(f"{versions()}:\n")
    print("| a fresh process | s | ratio | limit |\n|---|---|---|---|")
    for name, (_, limit) in COMMANDS.items():
        seconds = statistics.median(taken[name])
        print(f"| `{name}` | {seconds:.3f} | {seconds / peer:.2f} | {limit or '–'} |")


if __name__ == "__main__":
    main()
