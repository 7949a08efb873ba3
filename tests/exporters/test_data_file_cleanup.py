"""Data files that nobody reads any more: which are ours, which go, and which names are free."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

import tieops
from tests.support.files import dead_writer, files
from tests.support.heads import tied_head
from tieops.exporters.data_file_cleanup import (
    DATA,
    data_of,
    free_data_path,
    is_data_name,
    sweep,
    unread,
)
from tieops.exporters.files import free_name


@pytest.fixture
def model(tmp_path) -> Path:
    return tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True).path


def test_a_number_is_not_given_twice(model, tmp_path):
    """Who has read the old model must not find the new one's bytes under the old name."""
    assert free_data_path(model) == tmp_path / "m.onnx.1.data"
    (tmp_path / "m.onnx.7.data").touch()
    (tmp_path / "other.onnx.9.data").touch()
    assert free_data_path(model) == tmp_path / "m.onnx.8.data"
    names = []
    for _ in range(3):
        written = tieops.to_onnx(tied_head(), model, external_data=True)
        assert written.data_path is not None
        names.append(written.data_path.name)
    assert names == [f"m.onnx.{number}.data" for number in (8, 9, 10)]


def test_a_broken_model_gets_no_foreign_data(model, tmp_path):
    (tmp_path / "m.onnx.data").unlink()
    assert free_data_path(model) == tmp_path / "m.onnx.1.data"


@pytest.mark.parametrize(
    ("name", "ours"),
    [("m.onnx.data", True), ("m.onnx.12.data", True), ("m.data", False), ("../m.onnx.data", False),
     ("m.onnx.x.data", False), ("weights.bin", False), ("m.onnx.data.bak", False)],
)  # fmt: skip
def test_names_of_ours(name, ours):
    assert is_data_name(name) is ours


def test_what_a_model_refers_to(model, tmp_path):
    assert data_of(model) == {"m.onnx.data"}
    (tmp_path / "link.onnx").symlink_to(model)
    assert data_of(tmp_path / "link.onnx") == set()
    assert data_of(tmp_path / "none.onnx") == set()
    proto = onnx.load(model, load_external_data=False)
    longer = "n" * 180 + ".onnx"
    for name, marked in ((longer, True), ("n.onnx", False)):
        copy = onnx.ModelProto.FromString(proto.SerializeToString())
        os.link(tmp_path / "m.onnx.data", tmp_path / f"{name}.data")
        for tensor in copy.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{name}.data"
        if marked:
            copy.metadata_props.add(key=DATA, value=f"{name}.data/gone.onnx.data")
        (tmp_path / "reader.onnx").write_bytes(copy.SerializeToString())
        assert data_of(tmp_path / "reader.onnx") == ({f"{name}.data"} if marked else set())


def test_data_that_any_model_refers_to_is_not_unread(model, tmp_path):
    assert unread(tmp_path, ["m.onnx.data"]) == []
    model.rename(tmp_path / "renamed.bak")  # a model still, by what it begins with
    assert unread(tmp_path, ["m.onnx.data"]) == []
    (tmp_path / "renamed.bak").unlink()
    assert unread(tmp_path, ["m.onnx.data"]) == [tmp_path / "m.onnx.data"]


def test_a_copy_of_the_model_keeps_its_data(model, tmp_path):
    (tmp_path / "backup").write_bytes(model.read_bytes())
    tieops.to_onnx(tied_head(), model, external_data=True)
    assert files(tmp_path) == ["backup", "m.onnx", "m.onnx.1.data", "m.onnx.data"]


def test_an_inline_model_removes_the_data_of_the_one_before(model, tmp_path):
    tieops.to_onnx(tied_head(), model, external_data=False)
    assert files(tmp_path) == ["m.onnx"]


def test_what_killed_writers_left_is_swept_by_the_next(model, tmp_path):
    dead_writer(tmp_path)
    # Killed between the name of the data and the rename of the model.
    draft = onnx.load(model, load_external_data=False)
    for tensor in draft.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "m.onnx.1.data"
    (tmp_path / "m.onnx.1.data").write_bytes((tmp_path / "m.onnx.data").read_bytes())
    free_name(tmp_path, "model").write_bytes(draft.SerializeToString())
    assert len(files(tmp_path)) == 6  # the temporary file, its lock, and the model that was killed
    sweep(tmp_path)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert len(tieops.from_onnx(model).ties) == 1


def test_data_that_is_younger_than_what_was_left_is_not_swept(model, tmp_path):
    left = free_name(tmp_path, "model")
    model.rename(left)
    os.utime(left, ns=(0, 0))
    sweep(tmp_path)
    assert files(tmp_path) == ["m.onnx.data"]


def test_a_name_that_only_ends_alike_is_not_swept(model, tmp_path):
    model.rename(free_name(tmp_path, "model"))
    (tmp_path / "n.onnx.data").write_bytes(b"precious")
    (tmp_path / "nm.onnx.data").write_bytes(b"precious")
    os.utime(tmp_path / "n.onnx.data", ns=(0, 0))
    os.utime(tmp_path / "nm.onnx.data", ns=(0, 0))
    sweep(tmp_path)
    assert files(tmp_path) == ["n.onnx.data", "nm.onnx.data"]
