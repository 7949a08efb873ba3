"""Takes models through the stages, in a process that may be stopped: ``python -m`` this module.

A job is a line of JSON on standard input. What comes of it is told line by line, as it is known, so
that a process that dies or hangs leaves what it had, and the stage that it died in.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tieops
from tests.corpus.families import FAMILIES, VOCABULARIES, build
from tests.corpus.packages import PACKAGES, feeds
from tests.corpus.stages import MODULE_STAGES, STAGES, Taken, take_file, take_module
from tieops.errors import PostconditionError, VerificationError

__all__ = ["take"]

MEMORY_BYTES = 5 * 1000**3
_LONGEST = 300


def take(job: dict[str, Any], folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield what is found about one model: facts, and the outcome of each stage."""
    # The older exporter copies a tied weight whatever its size: one vocabulary is enough.
    stages = STAGES | (MODULE_STAGES if job.get("vocab") == VOCABULARIES[0] else {})
    yield "starts", "import"
    try:
        run = _imported(job, folder)
    except Exception as error:
        yield "import", _outcome(error, folder)
        return
    yield "import", "pass"
    yield "parameters", len(run.model.parameters)
    yield "elements", sum(each.elements for each in run.model.parameters)
    yield "ties", len([tie for tie in run.tied.ties if len(tie.slots) > 1])
    yield "saved_bytes", sum(tie.saved_bytes for tie in run.tied.ties)
    yield "joined_bytes", run.model.ledger.stored_bytes - run.tied.ledger.stored_bytes
    for name, stage in stages.items():
        yield "starts", name
        try:
            nothing = stage(run)
        except Exception as error:
            yield name, _outcome(error, folder)
        else:
            yield name, f"none: {nothing}" if nothing else "pass"


def _imported(job: dict[str, Any], folder: Path) -> Taken:
    if "family" not in job:
        name = job["package"]
        found = feeds(name, job["member"])
        return take_file(Path(job["path"]), found, PACKAGES[name].atol, folder)
    case = build(job["family"], job["vocab"])
    return take_module(case, FAMILIES[job["family"]].atol, folder)


def _outcome(error: Exception, folder: Path) -> str:
    """Return a refusal by its reason, and all else that was raised as a failure."""
    faults = (VerificationError, PostconditionError)
    if isinstance(error, tieops.TieopsError) and not isinstance(error, faults):
        said = next((fact for key, fact in error.facts.items() if key.endswith("says")), None)
        text = f"refused: {error.what}{f'; {said}' if said else ''}"
        return text.replace(f"{folder}/", "")[:_LONGEST]
    if isinstance(error, VerificationError) and error.what.startswith("nothing was compared"):
        return f"none: {error.what}"
    text = " ".join(str(error).split())
    return f"fail: {type(error).__name__}: {text}"[:_LONGEST]


def main() -> None:
    """Answer jobs until there are none."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for line in sys.stdin:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            for found in take(json.loads(line), Path(folder)):
                print(json.dumps(found), file=answers, flush=True)
        seconds = round(time.monotonic() - begun, 1)
        print(json.dumps(("seconds", seconds)), file=answers, flush=True)


if __name__ == "__main__":
    main()
