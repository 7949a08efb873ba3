"""Reads, looks at, ties and writes mutated models: nothing comes of it but success or an error.

Run by the test suite on a fixed set of seeds, and by hand for as long as one likes::

    python -m tests.hostile.fuzz --first 0 --count 100000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType

import tieops
from tests.hostile.fuzz_seeds import seeds
from tests.hostile.mutate import mutated, spoiled
from tests.hostile.server import use
from tieops.errors import PostconditionError, TieopsError

CLOCK_S = 60
MEMORY_BYTES = 2 << 30
"""Above what the process has when it begins."""


class TookTooLongError(Exception):
    """A seed had not come to an end in time."""


def _ring(signum: int, frame: FrameType | None) -> None:
    raise TookTooLongError


def fuzz(first: int, count: int) -> dict[str, object]:
    """Try seeds in a folder of their own; return how often what came of it, and what should not.

    One seed in four spoils bytes, the others change fields.
    """
    protos = seeds()
    outcomes: Counter[str] = Counter()
    crashes: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("out").mkdir()
        Path("w.bin").write_bytes(bytes(range(48)))
        signal.signal(signal.SIGALRM, _ring)
        for seed in range(first, first + count):
            proto = protos[seed % len(protos)]
            plain = seed // len(protos) % 4 == 0
            data = spoiled(proto.SerializeToString(), seed) if plain else mutated(proto, seed)
            Path("m.onnx").write_bytes(data)
            signal.alarm(CLOCK_S)
            try:
                model = tieops.from_onnx("m.onnx")
                outcomes["read"] += 1
                use(model, Path("out"))
                outcomes["written"] += 1
            except PostconditionError:
                crashes[seed] = traceback.format_exc()  # an error, but a bug of ours
            except TieopsError as error:
                outcomes[type(error).__name__] += 1
            except BaseException:
                crashes[seed] = traceback.format_exc()
            finally:
                signal.alarm(0)
        os.chdir("/")
    return {"executions": count, "outcomes": dict(outcomes), "crashes": crashes}


def main() -> None:
    """Print the outcomes as JSON; end with 1 if there is a crash."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    found = fuzz(options.first, options.count)
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["crashes"] else 0)


if __name__ == "__main__":
    main()
