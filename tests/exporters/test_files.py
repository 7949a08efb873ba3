"""Temporary files and locks: whose they are, and that nobody waits for the dead."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.files import dead_writer
from tieops.errors import ExportError
from tieops.exporters import files as module
from tieops.exporters.files import (
    folder_lock,
    free_name,
    left_over,
    remove_left_over,
    temporary,
)
from tieops.ir.storage.data_files import is_temporary


def test_a_temporary_file_is_new_and_goes(tmp_path):
    with temporary(tmp_path, "model", 0o600) as one, temporary(tmp_path, "model") as other:
        assert one.path != other.path
        assert is_temporary(one.path.name)
        assert one.path.stat().st_mode & 0o777 == 0o600
        os.write(one.descriptor, b"abc")
        assert one.path.read_bytes() == b"abc"
        one.path.rename(tmp_path / "named")
    assert [each.name for each in tmp_path.iterdir()] == ["named"]


def test_only_a_dead_writers_files_are_left_over(tmp_path):
    dead_writer(tmp_path)
    dead = sorted(tmp_path.iterdir())
    assert [each.suffix for each in dead] == [".tmp", ".lock"]
    with temporary(tmp_path, "data") as living:
        assert left_over(tmp_path) == dead
        assert living.path.exists()
        living.close()
        assert left_over(tmp_path) == dead
    assert [remove_left_over(each) for each in dead] == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_what_only_looks_like_one_is_not_left_over(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    free_name(tmp_path, "data").symlink_to(victim)
    free_name(tmp_path, "model").mkdir()
    os.mkfifo(free_name(tmp_path, "model"))
    (tmp_path / ".tieops-12.model.tmp").write_bytes(b"")
    (tmp_path / ".m.onnx.tmp").write_bytes(b"")
    assert left_over(tmp_path) == []


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    original, made = module.try_lock, []

    def swept(descriptor: int) -> bool | None:
        if not made:
            for path in tmp_path.iterdir():
                made.append(path)
                path.unlink()
        return original(descriptor)

    monkeypatch.setattr(module, "try_lock", swept)
    with temporary(tmp_path, "data") as file:
        assert file.path not in made
        assert file.path.exists()


def test_a_folder_is_locked_for_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0.02)
    with (
        folder_lock(tmp_path),
        pytest.raises(ExportError, match="another process is writing to the folder"),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):
        pass


def test_a_forked_process_does_not_keep_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0.5)
    with folder_lock(tmp_path):
        child = os.fork()
        if not child:
            signal.pause()
    try:
        with folder_lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_where_there_are_no_locks_nobody_waits_and_nothing_is_swept(tmp_path, monkeypatch):
    dead_writer(tmp_path)

    def missing(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", missing)
    with folder_lock(tmp_path), temporary(tmp_path, "data"):
        assert left_over(tmp_path) == []
