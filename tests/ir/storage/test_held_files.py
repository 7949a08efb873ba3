"""Models in memory outlive the files that they were read from."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.files import files
from tests.support.heads import tied_head, weight_of
from tieops.errors import UntrustedFileError


@pytest.mark.parametrize("external_data", [True, False])
def test_another_model_of_the_same_file_is_whole_after_a_save_over_it(external_data, tmp_path):
    path = tmp_path / "m.onnx"
    first = tied_head()
    weight = weight_of(first).copy()
    tieops.to_onnx(first, path, external_data=True)
    one, other, third = (tieops.from_onnx(path) for _ in range(3))
    derived = tieops.untie(other)
    tieops.to_onnx(one, path, external_data=external_data)
    tieops.to_onnx(tied_head(), path, external_data=external_data)
    assert "m.onnx.data" not in files(tmp_path)
    for model in (one, other, derived, third):
        np.testing.assert_array_equal(weight_of(model), weight)
    again = tieops.to_onnx(third, tmp_path / "again.onnx", external_data=True)
    np.testing.assert_array_equal(weight_of(tieops.from_onnx(again)), weight)
    assert tieops.verify(derived, against=first, rtol=1e-4)


def test_what_is_one_range_of_a_file_that_went_is_one_range_still(tmp_path):
    path = tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True).path
    proto = onnx.load(path, load_external_data=False)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(next(each for each in proto.graph.initializer if each.name == "w"))
    twin.name = "twin"
    proto.graph.node.append(onnx.helper.make_node("Identity", ["twin"], ["copy"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("copy", 1, [200, 16]))
    path.write_bytes(proto.SerializeToString())
    model = tieops.from_onnx(path)
    stored = model.ledger.stored_bytes
    tieops.to_onnx(tied_head(), path, external_data=True)
    assert tieops.TiedModel(model.clone()).ledger.stored_bytes == stored
    written = tieops.to_onnx(model, path, external_data=True)
    assert written.stored_bytes == stored


@pytest.mark.parametrize("how", ["removed", "replaced", "a link", "a FIFO", "the folder removed"])
@pytest.mark.parametrize("looked_at", [False, True])
def test_a_model_that_was_read_stays_readable_whatever_happens_to_the_name(
    how, looked_at, tmp_path
):
    folder = tmp_path / "folder"
    folder.mkdir()
    first = tied_head()
    weight = weight_of(first)
    path = tieops.to_onnx(first, folder / "m.onnx", external_data=True).path
    model, derived = tieops.from_onnx(path), tieops.untie(tieops.from_onnx(path))
    if looked_at:
        weight_of(model)
    data = folder / "m.onnx.data"
    size = data.stat().st_size
    data.unlink()
    if how == "replaced":
        data.write_bytes(bytes(size))
    elif how == "a link":
        (tmp_path / "other").write_bytes(bytes(size))
        data.symlink_to(tmp_path / "other")
    elif how == "a FIFO":
        os.mkfifo(data)
    elif how == "the folder removed":
        shutil.rmtree(folder)
    for each in (model, derived):
        np.testing.assert_array_equal(weight_of(each), weight)
        again = tieops.to_onnx(each, tmp_path / "again.onnx", external_data=True)
        np.testing.assert_array_equal(weight_of(tieops.from_onnx(again)), weight)
    with tieops.session(model, "cpu") as one, tieops.session(first, "cpu") as other:
        feeds = {port.name: np.zeros((2, 3), np.int64) for port in one.inputs}
        (got,), (wanted,) = one.run(feeds).values(), other.run(feeds).values()
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("how", ["cut", "longer", "other bytes"])
def test_data_that_was_written_to_after_the_import_is_refused(how, tmp_path):
    path = tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True).path
    model = tieops.from_onnx(path)
    with (tmp_path / "m.onnx.data").open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if how == "other bytes":
            file.write(b"other")
        else:
            os.truncate(file.fileno(), {"cut": size // 2, "longer": 2 * size}[how])
    os.utime(tmp_path / "m.onnx.data", ns=(0, 0))
    (tmp_path / "m.onnx.data").unlink()  # it is the file that is asked, not its name
    with pytest.raises(UntrustedFileError, match="changed since it was imported"):
        weight_of(model)


def test_thousands_of_models_do_not_use_up_the_descriptors(tmp_path):
    """Of each file there is one descriptor, and of a quarter of what a process may open."""
    code = """
    import os, resource, sys
    import numpy as np, tieops
    from tests.support.heads import tied_head, weight_of
    first = tied_head()
    weight = weight_of(first)
    path = tieops.to_onnx(first, sys.argv[1] + "/m.onnx", external_data=True)
    def opened():
        return len(os.listdir("/proc/self/fd"))
    before = opened()
    same = [tieops.from_onnx(path) for _ in range(50)]
    for each in same:
        weight_of(each)
    assert opened() <= before + 2, (before, opened())
    most = before + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    models, kept = [], []
    for number in range(most + 20):
        folder = f"{sys.argv[1]}/{number}"
        os.mkdir(folder)
        models.append(tieops.from_onnx(tieops.to_onnx(first, folder + "/m.onnx",
                                                      external_data=True)))
    assert opened() <= before + 2 + most // 4
    # What is not held open is, once its name goes by our own hand.
    for number in (0, 1, most, most + 10):
        tieops.to_onnx(tied_head(), f"{sys.argv[1]}/{number}/m.onnx", external_data=True)
        assert not os.path.exists(f"{sys.argv[1]}/{number}/m.onnx.data")
    for each in models:
        np.testing.assert_array_equal(weight_of(each), weight)
        for parameter in each.parameters:
            parameter.tensor.release()
    print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


def test_a_graph_of_onnx_ir_holds_its_data_as_well(tmp_path):
    first = tied_head()
    weight = weight_of(first)
    path = tieops.to_onnx(first, tmp_path / "m.onnx", external_data=True).path
    model = tieops.TiedModel(onnx_ir.load(path))
    tieops.to_onnx(model, path, external_data=True)
    assert "m.onnx.data" not in files(tmp_path)
    np.testing.assert_array_equal(weight_of(model), weight)


def test_a_model_that_nobody_holds_holds_no_file(tmp_path):
    path = tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True).path

    def is_open() -> bool:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        data = str(tmp_path / "m.onnx.data")
        return any(os.path.lexists(each) and os.readlink(each) == data for each in links)

    gc.collect()
    assert not is_open()
    model = tieops.from_onnx(path)
    assert is_open()
    del model
    gc.collect()
    assert not is_open()
