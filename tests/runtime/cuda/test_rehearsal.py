"""The tests and the benchmark for a GPU, run to their end on a stand-in for one."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.gpu import NEED_NUMBERS, NEED_TORCH
from tests.support.fake_cuda import ROOT, FakeCuda

pytestmark = [pytest.mark.fake_cuda, pytest.mark.slow]


def run(cuda: FakeCuda, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**cuda.environment(), "PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_every_test_for_a_gpu_passes_but_those_that_need_numbers_or_torch(cuda: FakeCuda, tmp_path):
    text = run(
        cuda, "pytest", "-m", "gpu", "tests/gpu", "-q", "-rA", "-W", "default",
        "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'gpu'}",
    )  # fmt: skip
    results = re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", text, re.MULTILINE)
    ended = {kind: {name for found, name in results if found == kind} for kind, _ in results}
    assert ended.get("ERROR", set()) == set(), text
    assert ended["FAILED"] == NEED_NUMBERS | NEED_TORCH, text
    assert len(ended["PASSED"]) >= 7
    assert ended["PASSED"].isdisjoint(ended["FAILED"])


def test_the_benchmark_counts_bytes_and_says_what_was_not_measured(cuda: FakeCuda):
    text = run(cuda, "tests.benchmarks.cuda", "bytes", "head 32k")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| head 32k")]
    shares = {row[2]: float(row[5].rstrip(" |")) for row in rows}
    assert shares["tied"] <= 1.05
    assert shares["untied"] >= 1.9
