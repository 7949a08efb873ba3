"""Bytes into files: every way of copying forced, every layout of arrays, in bounded memory."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tieops.exporters import data_file as arrays
from tieops.exporters.data_file import write_array
from tieops.system import file_bytes
from tieops.system.file_bytes import copy_range, write_at

WAYS = ("_by_copy_file_range", "_by_sendfile", "_plainly")
DATA = np.random.default_rng(0).bytes(300_001)


@contextmanager
def opened(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield descriptors of a file with the data in it and of one with a few other bytes."""
    (folder / "source").write_bytes(DATA)
    (folder / "target").write_bytes(b"before")
    source = os.open(folder / "source", os.O_RDONLY)
    target = os.open(folder / "target", os.O_RDWR)
    yield source, target
    os.close(source)
    os.close(target)


def only(monkeypatch: pytest.MonkeyPatch, *ways: str) -> list[str]:
    """Let only these ways be there, and note which are called."""
    called: list[str] = []

    def noted(name: str) -> Callable[..., int]:
        original = getattr(file_bytes, name)

        def way(*args: int) -> int:
            called.append(name)
            return original(*args)

        return way

    monkeypatch.setattr(file_bytes, "_WAYS", tuple((noted(name), None) for name in ways))
    return called


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("offset", "to", "length"), [(0, 0, 300_001), (7, 4096, 250_000), (5, 6, 1)]
)
def test_each_way_copies_a_range(way, offset, to, length, tmp_path, monkeypatch):
    called = only(monkeypatch, way)
    monkeypatch.setattr(file_bytes, "STEP_BYTES", 100_000)
    with opened(tmp_path) as (source, target):
        assert copy_range(source, offset, target, to, length) == length
    assert len(called) == -(-length // 100_000)
    written = (tmp_path / "target").read_bytes()
    assert written[to : to + length] == DATA[offset : offset + length]
    assert written[:to] == b"before"[:to].ljust(to, b"\0")


def test_the_ways_are_tried_in_this_order():
    assert tuple(way.__name__ for way, _ in file_bytes._WAYS) == WAYS


@pytest.mark.parametrize("code", ["EXDEV", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EPERM", "nothing"])
def test_what_one_way_cannot_do_the_next_one_does(code, tmp_path, monkeypatch):
    """From where it came to: the first call works, the second says that it does not."""
    monkeypatch.setattr(file_bytes, "STEP_BYTES", 70_000)
    calls = {"copy_file_range": 0, "sendfile": 0}

    def failing(name: str) -> Callable[..., int]:
        original = getattr(os, name)

        def call(*args: int) -> int:
            calls[name] += 1
            if calls[name] == 1:
                return original(*args)
            if code == "nothing":  # as some file systems do
                return 0
            raise OSError(getattr(errno, code), code)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, failing(name))
    with opened(tmp_path) as (source, target):
        assert copy_range(source, 1, target, 10, 300_000) == 300_000
    assert calls == {"copy_file_range": 2, "sendfile": 2}
    assert (tmp_path / "target").read_bytes()[10:] == DATA[1:]


@pytest.mark.parametrize("way", ["copy_file_range", "sendfile", "pread", "pwrite"])
def test_what_breaks_is_told(way, tmp_path, monkeypatch):
    if way in ("pread", "pwrite"):
        only(monkeypatch, "_plainly")
    elif way == "sendfile":
        only(monkeypatch, "_by_sendfile", "_plainly")

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, way, broken)
    with opened(tmp_path) as (source, target), pytest.raises(OSError, match="broken"):
        copy_range(source, 0, target, 0, 1000)


@pytest.mark.parametrize("way", WAYS)
def test_short_copies_are_gone_on_with(way, tmp_path, monkeypatch):
    only(monkeypatch, way)
    copy, send, read, write = os.copy_file_range, os.sendfile, os.pread, os.pwrite
    monkeypatch.setattr(os, "copy_file_range", lambda s, t, n, *at: copy(s, t, min(n, 999), *at))
    monkeypatch.setattr(os, "sendfile", lambda t, s, at, n: send(t, s, at, min(n, 777)))
    monkeypatch.setattr(os, "pread", lambda s, n, at: read(s, min(n, 1234), at))
    monkeypatch.setattr(os, "pwrite", lambda t, data, at: write(t, data[:500], at))
    with opened(tmp_path) as (source, target):
        assert copy_range(source, 3, target, 0, 50_000) == 50_000
        write_at(target, DATA[:5000], 60_000)
    written = (tmp_path / "target").read_bytes()
    assert written[:50_000] == DATA[3:50_003]
    assert written[60_000:] == DATA[:5000]


@pytest.mark.parametrize("way", WAYS)
def test_a_source_that_ends_early_is_counted(way, tmp_path, monkeypatch):
    only(monkeypatch, way)
    with opened(tmp_path) as (source, target):
        assert copy_range(source, 300_000, target, 0, 10) == 1


@pytest.mark.parametrize("way", WAYS)
def test_signals_do_not_break_a_copy(way, tmp_path, monkeypatch):
    only(monkeypatch, way)
    block = np.random.default_rng(0).bytes(32 << 20)
    (tmp_path / "large").write_bytes(block)
    came = []
    before = signal.signal(signal.SIGALRM, lambda *_: came.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with (tmp_path / "large").open("rb") as source, (tmp_path / "copy").open("wb") as target:
            came.clear()  # those that came while the files were opened
            copied = 0
            while not copied or not came:
                copied = copy_range(source.fileno(), 0, target.fileno(), 0, len(block))
                assert copied == len(block)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "copy").read_bytes() == block


def written(array: np.ndarray[Any, Any], folder: Path) -> bytes:
    path = folder / "array"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    write_array(descriptor, array, 64)
    os.close(descriptor)
    found = path.read_bytes()
    assert found[:64] in (bytes(64), b"")
    return found[64:]


@pytest.mark.parametrize("block", [1000, 5000, arrays.BLOCK_BYTES])
@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, np.int8, bool, np.float64, np.complex128, ml_dtypes.bfloat16,
     ml_dtypes.float8_e4m3fn],
)  # fmt: skip
@pytest.mark.slow
def test_any_view_is_written_as_numpy_would(dtype, block, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", block)
    array = np.random.default_rng(0).integers(0, 2, (5, 90, 3, 33)).astype(dtype)
    views = [array.transpose(perm) for perm in itertools.permutations(range(4))]
    views += [array[:, ::2, :, 5:20], array[0, 0, 0, ::2], array[0, 0, 0], array[0, 0, 0, 0]]
    views += [array.reshape(-1, 99).T, np.broadcast_to(array[0, 0, 0], (50, 33)), array[:0]]
    views += [array[::-1], array.reshape(-1)[::3]]
    for view in views:
        assert written(view, tmp_path) == np.ascontiguousarray(view).tobytes()


def test_bytes_are_little_endian_whatever_the_array_is(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    assert written(array, tmp_path) == array.astype("<f4").tobytes()
    assert written(array.T, tmp_path) == array.T.astype("<f4").tobytes()


@pytest.mark.slow
def test_a_transposed_view_takes_no_copy_of_the_whole(tmp_path):
    """256 MB transposed: anonymous memory grows by a block of 16 MiB, and a tile."""
    code = """
    import os, sys
    import numpy as np
    from tests.support.memory import growth
    from tieops.exporters.data_file import write_array

    array = np.zeros((65536, 1024), np.float32)
    array[:, 0] = np.arange(65536)
    target = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    print(growth(lambda: write_array(target, array.T, 0)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(found) < 20 << 20
    with (tmp_path / "out").open("rb") as file:
        np.testing.assert_array_equal(np.fromfile(file, np.float32, 65536), np.arange(65536))
