"""Where tensors lie: data files that are reused, new tensors beside them, and who reads both."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

import tieops
from tests.support.files import files
from tests.support.heads import ids, tied_head, weight_of
from tieops.cli import app
from tieops.cli.streams import check_out
from tieops.errors import ExportError, PreconditionError


@pytest.fixture
def source(tmp_path) -> tieops.TiedModel:
    tieops.to_onnx(tied_head(20_000, 64, bias=True), tmp_path / "m.onnx", external_data=True)
    return tieops.from_onnx(tmp_path / "m.onnx")


def stats(path: Path) -> tuple[int, int, bytes]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


def takes(path: Path) -> None:
    """Check that every reader takes a model, in every way that it can be opened."""
    onnx.checker.check_model(path, full_check=True)
    expected = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"x": ids(2, 3)}
    )
    for memory in ("packed", "mapped", "default"):
        session = tieops.session(path, "cpu", memory=memory)
        (found,) = session.run({"x": ids(2, 3)}).values()
        assert found.shape == expected[0].shape


def test_reuse_writes_the_graph_and_no_weights(source, tmp_path):
    before = stats(tmp_path / "m.onnx.data")
    smaller = tieops.remove_disconnected_outputs(source)
    written = tieops.to_onnx(smaller, tmp_path / "n.onnx", external_data="reuse")
    assert files(tmp_path) == ["m.onnx", "m.onnx.data", "n.onnx"]
    assert stats(tmp_path / "m.onnx.data") == before
    assert written.data_paths == (tmp_path / "m.onnx.data",)
    assert written.unread_bytes == 0
    assert written.file_bytes == sum(
        (tmp_path / n).stat().st_size for n in ("n.onnx", "m.onnx.data")
    )
    assert str(written).endswith("n.onnx + m.onnx.data: 5.20 MB stored")
    takes(written.path)
    assert tieops.verify(written, against=tmp_path / "m.onnx", rtol=0, atol=0)


def test_reuse_over_the_own_source(source, tmp_path):
    weight = weight_of(source).copy()
    before = stats(tmp_path / "m.onnx.data")
    for _ in range(3):
        tieops.to_onnx(source, tmp_path / "m.onnx", external_data="reuse")
        source = tieops.from_onnx(tmp_path / "m.onnx")
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert stats(tmp_path / "m.onnx.data") == before
    np.testing.assert_array_equal(weight_of(source), weight)


def test_new_tensors_go_to_a_second_data_file_which_every_reader_takes(source, tmp_path):
    small = tieops.replace_head(source, out_features=300)
    written = tieops.to_onnx(small, tmp_path / "n.onnx", external_data="reuse")
    assert written.data_paths == (tmp_path / "n.onnx.data", tmp_path / "m.onnx.data")
    assert written.data_path == tmp_path / "n.onnx.data"
    assert (tmp_path / "n.onnx.data").stat().st_size == 300 * 64 * 4 + 300 * 4
    assert written.unread_bytes == 80_000  # the old bias
    takes(written.path)
    assert tieops.verify(written, against=small, rtol=1e-4)
    free = tieops.untie(source)
    written = tieops.to_onnx(free, tmp_path / "free.onnx", external_data="reuse")
    assert written.data_paths == (tmp_path / "free.onnx.data", tmp_path / "m.onnx.data")
    takes(written.path)
    again = tieops.from_onnx(written)
    (head,) = (p for p in again.parameters if p.nbytes > 1_000_000 and p.name != "w")
    wanted = weight_of(source)
    np.testing.assert_array_equal(head.numpy(), wanted if head.shape[1] == 64 else wanted.T)
    # The model is tied again and saved over itself: what was new is read no more, and goes.
    tieops.to_onnx(tieops.tie(again), tmp_path / "free.onnx", external_data="reuse")
    assert "free.onnx.data" not in files(tmp_path)
    takes(tmp_path / "free.onnx")


def test_writing_without_reuse_is_what_compacts(source, tmp_path):
    small = tieops.replace_head(source, out_features=300)
    loose = tieops.to_onnx(small, tmp_path / "m.onnx", external_data="reuse")
    assert loose.data_paths == (tmp_path / "m.onnx.1.data", tmp_path / "m.onnx.data")
    read = tieops.from_onnx(loose)
    compact = tieops.to_onnx(read, tmp_path / "m.onnx", external_data=True)
    assert files(tmp_path) == ["m.onnx", "m.onnx.2.data"]
    assert compact.unread_bytes == 0
    assert compact.file_bytes < loose.file_bytes - 79_000
    assert tieops.verify(compact, against=small, rtol=1e-4)


def test_reused_data_goes_with_its_last_reader(source, tmp_path):
    tieops.to_onnx(source, tmp_path / "n.onnx", external_data="reuse")
    tieops.to_onnx(tied_head(), tmp_path / "m.onnx")
    assert files(tmp_path) == ["m.onnx", "m.onnx.data", "n.onnx"]
    takes(tmp_path / "n.onnx")
    tieops.to_onnx(tied_head(), tmp_path / "n.onnx")
    assert files(tmp_path) == ["m.onnx", "n.onnx"]


def test_data_elsewhere_cannot_be_reused(source, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ExportError, match="data outside the folder") as caught:
        tieops.to_onnx(source, tmp_path / "other" / "n.onnx", external_data="reuse")
    assert str(tmp_path / "m.onnx.data") in str(caught.value)
    assert f"write the model into {tmp_path}" in str(caught.value)
    assert files(tmp_path / "other") == []


def test_a_data_file_is_not_replaced_by_the_model_that_reads_it(source, tmp_path):
    before = stats(tmp_path / "m.onnx.data")
    with pytest.raises(ExportError, match="the model's weights lie in this file"):
        tieops.to_onnx(source, tmp_path / "m.onnx.data", external_data="reuse")
    assert stats(tmp_path / "m.onnx.data") == before


def test_data_below_the_folder_is_reused(tmp_path):
    (tmp_path / "data").mkdir()
    tieops.to_onnx(tied_head(), tmp_path / "data" / "m.onnx", external_data=True)
    source = tieops.from_onnx(tmp_path / "data" / "m.onnx")
    written = tieops.to_onnx(source, tmp_path / "n.onnx", external_data="reuse")
    (tensor,) = (
        t for t in onnx.load(written, load_external_data=False).graph.initializer if t.external_data
    )
    assert tensor.external_data[0].value == "data/m.onnx.data"
    takes(tmp_path / "n.onnx")


def test_another_tools_data_is_reused_and_never_removed(tmp_path):
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[n] x) => (float[n, 64] y) { y = Gather(w, x) }""")
    weight = np.random.default_rng(0).standard_normal((100, 64), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin")
    tieops.to_onnx(
        tieops.from_onnx(tmp_path / "m.onnx"), tmp_path / "m.onnx", external_data="reuse"
    )
    np.testing.assert_array_equal(weight_of(tieops.from_onnx(tmp_path / "m.onnx")), weight)
    tieops.to_onnx(tied_head(), tmp_path / "m.onnx")
    assert files(tmp_path) == ["m.onnx", "weights.bin"]


def test_what_lies_in_no_data_file_yet_gets_one(tmp_path):
    written = tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data="reuse")
    assert written.data_paths == (tmp_path / "m.onnx.data",)
    takes(tmp_path / "m.onnx")


def test_several_models_reuse_one_file(source, tmp_path):
    small = tieops.replace_head(source, out_features=300)
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    first, second = tieops.to_onnx([source, small], paths, external_data="reuse")
    assert first.data_paths == (tmp_path / "m.onnx.data",)
    assert second.data_paths == (tmp_path / "a.onnx.data", tmp_path / "m.onnx.data")
    for path in paths:
        takes(path)


@pytest.mark.parametrize("how", ["gone", "replaced", "written to"])
def test_data_that_went_meanwhile_is_not_reused(how, source, tmp_path):
    tieops.to_onnx(source, tmp_path / "n.onnx")
    before = stats(tmp_path / "n.onnx")
    data = tmp_path / "m.onnx.data"
    size = data.stat().st_size
    if how != "written to":
        data.unlink()
    if how != "gone":
        data.write_bytes(bytes(size))
        os.utime(data, ns=(0, 0))
    with pytest.raises(tieops.TieopsError, match=r"m\.onnx\.data"):
        tieops.to_onnx(source, tmp_path / "n.onnx", external_data="reuse")
    assert stats(tmp_path / "n.onnx") == before
    if how == "written to":
        return
    # It is held open by the model, and can still be copied.
    again = tieops.from_onnx(tieops.to_onnx(source, tmp_path / "n.onnx", external_data=True))
    for parameter, other in zip(source.parameters, again.parameters, strict=True):
        np.testing.assert_array_equal(parameter.numpy(), other.numpy())


@pytest.mark.parametrize("wrong", ["resue", 2, "True"])
def test_another_value_is_refused(wrong, tmp_path):
    with pytest.raises(ExportError, match="unknown external_data mode"):
        tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=wrong)


def test_the_command_line_reuses(source, tmp_path):
    out = tmp_path / "n.onnx"
    given = ["replace-head", tmp_path / "m.onnx", out, "--out-features", 300, "--reuse"]
    result = CliRunner().invoke(app, [str(each) for each in given])
    assert result.exit_code == 0, result.output
    assert "80.0 kB of its data unread" in result.output
    assert files(tmp_path) == ["m.onnx", "m.onnx.data", "n.onnx", "n.onnx.data"]
    assert len(source.ties) == 1


def test_a_model_on_stdout_reuses_nothing():
    with pytest.raises(PreconditionError, match="must contain its weights"):
        check_out(Path("-"), as_json=False, reuse=True)


def test_permissions_stay(source, tmp_path):
    os.chmod(tmp_path / "m.onnx", 0o600)
    tieops.to_onnx(source, tmp_path / "m.onnx", external_data=True)
    assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "m.onnx.1.data").stat().st_mode & 0o777 == 0o600
