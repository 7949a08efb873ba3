"""Processes for models of strangers: dying, hanging, taking too much, ending."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tieops.errors import UnsupportedModelError
from tieops.scanning.workers import WorkerPool


def test_a_process_that_dies_costs_its_own_task() -> None:
    with WorkerPool(2) as pool:
        dying = [pool.submit(os._exit, 3), pool.submit(signal.raise_signal, signal.SIGSEGV)]
        living = [pool.submit(len, "a" * number) for number in range(20)]
        assert [each.result() for each in living] == list(range(20))
        for each, how in zip(dying, ("exit code 3", "SIGSEGV"), strict=True):
            with pytest.raises(UnsupportedModelError, match=f"how: {how}"):
                each.result()


def test_a_process_that_is_killed_once_is_tried_again(tmp_path: object) -> None:
    with WorkerPool(1) as pool:
        pool.submit(len, "").result()
        task = pool.submit(time.sleep, 0.5)
        while not pool._busy:
            time.sleep(0.01)
        (process,) = pool._busy
        process._child.kill()
        assert task.result() is None


def test_a_task_that_hangs_is_stopped_and_starting_is_not_its_time() -> None:
    with WorkerPool(1, timeout_s=0.3) as pool:
        hanging, short = pool.submit(time.sleep, 60), pool.submit(len, "abc")
        with pytest.raises(UnsupportedModelError, match="it took too long"):
            hanging.result()
        assert short.result() == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can limit memory so")
def test_a_task_that_takes_too_much_memory_is_stopped() -> None:
    with WorkerPool(1, max_memory_bytes=400_000_000) as pool:
        with pytest.raises(MemoryError):
            pool.submit(bytearray, 1_000_000_000).result()
        assert pool.submit(len, "abc").result() == 3


def test_errors_and_what_is_printed_come_back_as_they_are() -> None:
    with WorkerPool(1) as pool:
        with pytest.raises(ValueError, match="invalid literal"):
            pool.submit(int, "x").result()
        assert pool.submit(print, "to stdout").result() is None
        assert pool.submit(len, "abc").result() == 3


class Awkward(Exception):
    """An error that pickle cannot make again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def fail_awkwardly() -> None:
    raise Awkward("one", "other")


def test_an_error_that_cannot_travel_is_told_by_its_text() -> None:
    with WorkerPool(1) as pool:
        with pytest.raises(RuntimeError, match="Awkward: one other"):
            pool.submit(fail_awkwardly).result()
        assert pool.submit(len, "abc").result() == 3


def test_no_process_is_left() -> None:
    pool = WorkerPool(2)
    pids = {pool.submit(os.getpid).result() for _ in range(4)}
    task = pool.submit(time.sleep, 60)
    while not pool._busy:
        time.sleep(0.01)
    pids |= {process._child.pid for process in pool._busy}
    pool.shutdown(cancel_futures=True)
    assert isinstance(task.exception(), UnsupportedModelError)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
