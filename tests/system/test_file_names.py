"""Names of files: what leads out of a folder on any system, and what Windows gives to devices."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import pytest

import tieops
from tests.support.files import files
from tests.support.heads import tied_head
from tieops.errors import ExportError
from tieops.system import file_names, folders, opening
from tieops.system.file_names import leads_out, steps_back, unfit_here


@pytest.mark.parametrize(
    "location",
    ["..", "../x", "a/../../x", "/x", "//x", "C:x", "c:/x", "x:y", "x::$DATA", "\\x", "a\\b",
     "\\\\server\\x", ".. /x", "... /x", ". ./x", "x\0y"],
)  # fmt: skip
def test_what_leads_out_on_some_system(location):
    assert leads_out(location)


@pytest.mark.parametrize("location", ["x", "./x", "a/b.data", "a/../b", ".x", "x..", "a..b/c", " "])
def test_what_stays_inside(location):
    assert not leads_out(location)
    assert steps_back(location) == (location == "a/../b")


@pytest.mark.parametrize(
    ("name", "fits"),
    [("con", False), ("NUL.onnx", False), ("aux.onnx.data", False), ("com1", False),
     ("LPT9.onnx", False), ("com¹.x", False), ("CONIN$", False), ("a?.onnx", False),
     ("m.onnx:x", False), ("m.onnx.", False), ("m.onnx ", False), ("a\x1f", False),
     ("m.onnx", True), ("console.onnx", True), ("com10.onnx", True), ("nul_.onnx", True)],
)  # fmt: skip
def test_names_that_windows_gives_to_others(name, fits, monkeypatch):
    assert unfit_here(name) is None
    monkeypatch.setattr(file_names.os, "name", "nt")
    assert (unfit_here(name) is None) is fits


@pytest.mark.parametrize("name", ["a:b.onnx", "a\\b.onnx"])
def test_no_data_file_gets_a_name_that_no_model_can_refer_to(name, tmp_path):
    with pytest.raises(ExportError, match="a model cannot refer to a data file named"):
        tieops.to_onnx(tied_head(), tmp_path / name, external_data=True)
    assert files(tmp_path) == []
    written = tieops.to_onnx(tied_head(), tmp_path / name, external_data=False)
    assert onnx.load(written.path).graph.initializer


def test_two_models_whose_names_differ_in_case_alone(tmp_path, monkeypatch):
    paths = [tmp_path / "m.onnx", tmp_path / "M.onnx"]
    if not folders.ignores_case(_file(tmp_path / "probe")):
        assert len(tieops.to_onnx([tied_head(), tied_head()], paths)) == 2
    monkeypatch.setattr("tieops.exporters.model_files.ignores_case", lambda path: True)
    before = files(tmp_path)
    with pytest.raises(ExportError, match="two models cannot be written to one file"):
        tieops.to_onnx([tied_head(), tied_head()], paths)
    assert files(tmp_path) == before


def test_data_whose_name_is_taken_by_a_file_that_is_listed_under_another(tmp_path, monkeypatch):
    """As on macOS, where ``M.ONNX.DATA`` is found as ``m.onnx.data``: no endless loop."""
    original = os.path.lexists
    monkeypatch.setattr(
        os.path, "lexists", lambda path: Path(path).name == "m.onnx.data" or original(path)
    )
    written = tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True)
    assert [path.name for path in written.data_paths] == ["m.onnx.1.data"]


def _file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_links_are_not_followed_where_no_flag_says_so(tmp_path, monkeypatch):
    target = _file(tmp_path / "target")
    (tmp_path / "link").symlink_to(target)
    monkeypatch.delattr(os, "O_NOFOLLOW")
    monkeypatch.delattr(os, "O_DIRECTORY")
    os.close(opening.open_regular(target))
    os.close(opening.open_below(str(tmp_path), str(target)))
    for way in (opening.open_regular, lambda path: opening.open_below(str(tmp_path), str(path))):
        with pytest.raises(OSError, match="symbolic links") as caught:
            way(tmp_path / "link")
        assert caught.value.errno == errno.ELOOP
