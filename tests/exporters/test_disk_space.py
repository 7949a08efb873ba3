"""Room on the disk: what surely does not fit is refused before anything is written."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import tieops
from tieops.errors import ExportError
from tieops.exporters import data_file
from tieops.exporters.data_file import check_disk_space
from tieops.system import disk

SPARSE_BYTES = 2**42 - 4096
"""Just within the limit of a data file; more than the disks of those who test have free."""


def sparse(folder: Path) -> tieops.TiedModel:
    """Return a model whose weight has terabytes, of which the disk holds nothing."""
    rows = SPARSE_BYTES // 4096
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[rows, 1024],
        data_location=TensorProto.EXTERNAL,
    )  # fmt: skip
    weight.external_data.add(key="location", value="m.data")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1024])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "m.onnx")
    (folder / "m.data").touch()
    os.truncate(folder / "m.data", SPARSE_BYTES)
    return tieops.from_onnx(folder / "m.onnx")


@pytest.fixture(autouse=True)
def no_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong here must not fill the disk."""

    def refused(*args: Any) -> int:
        raise OSError(f"copies {args[-1]} bytes")

    monkeypatch.setattr(data_file, "copy_range", refused)


def test_a_sparse_file_of_terabytes_is_refused_before_it_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_writes_every_byte", lambda descriptor: True)
    model = sparse(tmp_path)
    before = sorted(each.name for each in tmp_path.iterdir())
    with pytest.raises(ExportError, match="No space left on device") as caught:
        tieops.to_onnx(model, tmp_path / "out.onnx")
    assert caught.value.what.startswith("cannot write out.onnx.data: ")
    assert caught.value.facts["bytes wanted"] == "4.40 TB"
    assert "fix: free disk space or choose another folder" in str(caught.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == before


def test_reuse_needs_no_room(tmp_path):
    written = tieops.to_onnx(sparse(tmp_path), tmp_path / "out.onnx", external_data="reuse")
    assert written.data_paths == (tmp_path / "m.data",)
    assert written.stored_bytes == SPARSE_BYTES


def test_what_may_fit_is_tried(tmp_path, monkeypatch):
    """Where blocks are shared, or compressed, a copy of terabytes may take nothing."""
    monkeypatch.setattr(disk, "_writes_every_byte", lambda descriptor: False)
    with pytest.raises(ExportError, match=r"cannot write .*out\.onnx\n.* copies \d+ bytes"):
        tieops.to_onnx(sparse(tmp_path), tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("blocks", "free", "refused"),
    [(100, 10, True), (100, 11, False), (0, 0, False)],
    ids=["one byte too many", "as many as there are", "a file system that does not tell"],
)
def test_what_is_wanted_against_what_is_free(blocks, free, refused, monkeypatch):
    status = SimpleNamespace(f_blocks=blocks, f_bfree=free, f_frsize=4096)
    monkeypatch.setattr(disk.sys, "platform", "linux")
    monkeypatch.setattr(disk.os, "fstatvfs", lambda descriptor: status)
    monkeypatch.setattr(disk, "_writes_every_byte", lambda descriptor: True)
    if refused:
        with pytest.raises(ExportError, match="No space left on device"):
            check_disk_space(0, 10 * 4096 + 1, "m.data")
    else:
        check_disk_space(0, 10 * 4096 + 1, "m.data")


def test_asking_the_file_system_writes_nothing():
    with tempfile.TemporaryFile() as file:
        first = disk._writes_every_byte(file.fileno())
        assert disk._writes_every_byte(file.fileno()) is first
        assert os.fstat(file.fileno()).st_size == 0


@pytest.mark.parametrize(
    ("kind", "clones", "known"),
    [
        ("ext4", errno.EOPNOTSUPP, True),
        ("tmpfs", errno.EOPNOTSUPP, True),
        ("xfs", errno.EOPNOTSUPP, True),
        ("xfs", 0, False),
        ("zfs", errno.EOPNOTSUPP, False),  # before 2.2 it compresses, and shares no blocks
        ("fuse.squash", errno.EOPNOTSUPP, False),
        ("ext4", errno.EIO, False),
    ],
)
def test_every_byte_counts_on_file_systems_that_are_known(
    kind, clones, known, tmp_path, monkeypatch
):
    def answer(*args: Any) -> int:
        if clones:
            raise OSError(clones, os.strerror(clones))
        return 0

    with tempfile.TemporaryFile(dir=tmp_path) as file:
        device = os.fstat(file.fileno()).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        mounts = tmp_path / "mountinfo"
        mounts.write_text(
            "21 1 0:0 / /sys rw shared:7 - sysfs sysfs rw\n"
            f"36 21 {number} / /mnt\\040here rw,noatime shared:1 master:2 - {kind} /dev/d rw\n"
        )
        monkeypatch.setattr(disk, "_MOUNTS", mounts)
        monkeypatch.setattr("fcntl.ioctl", answer)
        assert disk._writes_every_byte(file.fileno()) is known
        mounts.unlink()
        assert not disk._writes_every_byte(file.fileno())
