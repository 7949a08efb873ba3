"""Runs what has no row yet, and writes docs/corpus.md.

python -m tests.corpus                    what has no row yet
python -m tests.corpus gpt2 silero-vad    these families and packages alone
python -m tests.corpus --again gpt2       what has a row too
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from tests.corpus.families import VOCABULARIES
from tests.corpus.page import PAGE, page
from tests.corpus.runner import Runner, jobs_of, names, read, write

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "d" / "wheels"


def main() -> None:
    """Run models, keep their rows, write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("name", nargs="*", help="families and packages; all, if none is named")
    parser.add_argument("--again", action="store_true", help="run what has a row too")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where wheels are unzipped")
    chosen = parser.parse_args()
    chosen.cache.mkdir(parents=True, exist_ok=True)
    models = read()["models"]
    with Runner() as runner:
        jobs = {
            key: job
            for name in chosen.name or names()
            for key, job in jobs_of(name, chosen.cache).items()
            if chosen.again or key not in models
        }
        # The larger of two sizes last: most of what fails does at both.
        for key in sorted(jobs, key=lambda key: jobs[key].get("vocab", 0) == VOCABULARIES[-1]):
            models[key] = row = runner.take(jobs[key])
            write(models)
            odd = {k: v for k, v in row["stages"].items() if not v.startswith(("pass", "none"))}
            print(key, row.get("seconds", "-"), odd or "pass", flush=True)
    with contextlib.suppress(BrokenPipeError):
        PAGE.write_text(page(read()), encoding="utf-8")


if __name__ == "__main__":
    main()
