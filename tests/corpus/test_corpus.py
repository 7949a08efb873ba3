"""The corpus: its page is what its rows say, and a sample of the rows is what comes out today."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.families import FAMILIES, VOCABULARIES, build
from tests.corpus.packages import PACKAGES
from tests.corpus.page import PAGE, STEPS, not_run, page
from tests.corpus.runner import Runner, jobs_of, read

# Decoders, encoders and both; buffers that are equal, a head that is joined of two tensors.
SAMPLE = ("roberta", "distilbert")
SAMPLE_PACKAGES = ("swift-f0", "faster-whisper", "pyopenjtalk-plus", "onnxruntime")
LARGE_PACKAGES = ("chython-rxnmap", "ddddocr", "speechmos", "piper-tts", "rapidocr-onnxruntime")
"""Left to ``python -m tests.corpus``: minutes of work, or 300 MB of downloads."""


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return read()["models"]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as started:
        yield started


@pytest.fixture(scope="module")
def wheels(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("wheels")


def kinds(row: dict[str, Any]) -> dict[str, str]:
    """Return what came of each stage, without the reasons, which are the words of many packages."""
    return {stage: outcome.partition(":")[0] for stage, outcome in row["stages"].items()}


def marked(names: list[str], quick: tuple[str, ...]) -> list[Any]:
    return [pytest.param(n, marks=[] if n in quick else [pytest.mark.slow]) for n in names]


def test_the_page_is_what_the_rows_say():
    assert PAGE.read_text("utf-8") == page(read()), "run python -m tests.corpus"


def test_every_family_has_rows_at_both_sizes_and_every_package_has_rows(kept):
    assert not_run(kept) == []
    assert len(FAMILIES) >= 30
    assert {key.partition("/")[0] for key in kept} <= FAMILIES.keys() | PACKAGES.keys()


def test_nothing_fails_and_what_is_refused_has_a_reason(kept):
    for key, row in kept.items():
        for stage, outcome in row["stages"].items():
            kind, _, reason = outcome.partition(": ")
            assert kind in ("pass", "none", "refused"), (key, stage, outcome)
            assert reason or kind == "pass", (key, stage)
        refused = row["stages"]["import"] != "pass"
        assert refused or STEPS.keys() - {"old exporter"} <= row["stages"].keys(), key


def test_both_sides_of_the_size_that_torch_minds_are_there():
    sizes = [build("gpt2", vocab).module.get_parameter("lm_head.weight").numel()
             for vocab in VOCABULARIES]  # fmt: skip
    assert sizes[0] <= 8192 < sizes[1]


HALF = list(dict.fromkeys((*SAMPLE, *[*FAMILIES][::2])))
"""The others are left to ``python -m tests.corpus``: each costs seconds of export."""


@pytest.mark.parametrize("name", marked(HALF, SAMPLE))
def test_a_family_comes_out_as_its_row_says(name, runner, kept, wheels):
    jobs = jobs_of(name, wheels)
    key = f"{name}/{VOCABULARIES[HALF.index(name) % 2]}"
    row = runner.take(jobs[key])
    assert kinds(row) == kinds(kept[key]), row
    assert row.get("ties") == kept[key].get("ties")


PACKAGES_HERE = [name for name in PACKAGES if name not in LARGE_PACKAGES]
"""All of them have rows."""


@pytest.mark.parametrize("name", marked(PACKAGES_HERE, SAMPLE_PACKAGES))
def test_a_package_comes_out_as_its_rows_say(name, runner, kept, wheels):
    jobs = jobs_of(name, wheels)
    assert jobs
    rows = {key: runner.take(job) for key, job in jobs.items()}
    assert {k: kinds(row) for k, row in rows.items()} == {k: kinds(kept[k]) for k in jobs}


def test_a_model_that_takes_too_long_is_stopped_and_the_next_one_runs():
    job = {"family": "gpt2", "vocab": VOCABULARIES[0]}
    with Runner(seconds=0.01) as hasty:
        assert hasty.take(job)["stages"] == {"import": "fail: no end after 0 s"}


@pytest.mark.slow
def test_a_process_that_dies_leaves_the_stage_that_it_died_in(tmp_path):
    with Runner() as started:
        row = started.take({"family": "no such family", "vocab": VOCABULARIES[0]})
        assert row["stages"]["import"].startswith("fail: KeyError")
        assert started.take("nonsense")["stages"] == {"import": "fail: died with 1"}
        again = {"package": "onnx", "member": "x.onnx", "path": str(tmp_path / "x.onnx")}
        assert started.take(again)["stages"]["import"].startswith("refused: ")
