"""Checked external data: mapped once, given back, and never another file than was looked at."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

import tieops
from tieops.errors import UntrustedFileError
from tieops.ir.storage import external_tensors
from tieops.ir.storage.external_tensors import CheckedTensor, open_data

VALUES = np.arange(16, dtype=np.float32)


def saved(folder: Path, count: int = 1) -> Path:
    """Write a model whose tensors are parts of one file."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w0) }""")
    for index in range(count):
        made = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[4, 4])
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="w.bin")
        made.external_data.add(key="offset", value=str(64 * index))
        proto.graph.initializer.append(made)
    (folder / "w.bin").write_bytes(np.tile(VALUES, count).tobytes())
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def tensors(model: tieops.TiedModel) -> list[CheckedTensor]:
    found = [value.const_value for value in model.ir.graph.initializers.values()]
    assert all(isinstance(tensor, CheckedTensor) for tensor in found)
    return found  # type: ignore[return-value]


def descriptors(folder: Path) -> int:
    """Return how many files of a folder this process has open, those without a name included."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{number}").startswith(f"{folder}/")
    return found


def test_many_tensors_are_one_mapping_and_hold_one_descriptor(tmp_path):
    before = descriptors(tmp_path)
    model = tieops.from_onnx(saved(tmp_path, 50))
    assert descriptors(tmp_path) == before + 1
    for tensor in tensors(model):
        np.testing.assert_array_equal(tensor.numpy(), VALUES.reshape(4, 4))
        assert tensor.tobytes() == VALUES.tobytes()
    mappings = sys.version_info < (3, 13)  # that have a descriptor of their own
    assert descriptors(tmp_path) == before + 1 + mappings
    for tensor in tensors(model):
        tensor.release()
    assert descriptors(tmp_path) == before + 1


@pytest.mark.parametrize("how", ["replaced", "link", "gone", "fifo"])
def test_what_takes_the_name_of_a_file_is_not_read(how, tmp_path):
    (tensor,) = tensors(tieops.from_onnx(saved(tmp_path)))
    data = tmp_path / "w.bin"
    (tmp_path / "secret").write_bytes(bytes(64))
    data.unlink()
    if how == "replaced":
        (tmp_path / "secret").rename(data)
    elif how == "link":
        data.symlink_to(tmp_path / "secret")
    elif how == "fifo":
        os.mkfifo(data)
    assert tensor.numpy().tobytes() == tensor.tobytes() == VALUES.tobytes()
    with os.fdopen(open_data(tensor), "rb") as file:
        assert os.pread(file.fileno(), 64, 0) == VALUES.tobytes()
    with (tmp_path / "copy").open("w+b") as file:
        tensor.tofile(file)
    assert (tmp_path / "copy").read_bytes() == VALUES.tobytes()


@pytest.mark.parametrize("how", ["longer", "shorter", "rewritten"])
def test_a_file_that_was_written_to_is_not_read(how, tmp_path):
    (tensor,) = tensors(tieops.from_onnx(saved(tmp_path)))
    data = tmp_path / "w.bin"
    data.write_bytes(bytes({"longer": 65, "shorter": 63, "rewritten": 64}[how]))
    os.utime(data, ns=(0, 0))
    before = descriptors(tmp_path)
    for read in (tensor.numpy, tensor.tobytes, lambda: open_data(tensor)):
        with pytest.raises(UntrustedFileError, match=r"w\.bin changed since it was imported"):
            read()
    with (tmp_path / "copy").open("wb") as file, pytest.raises(UntrustedFileError):
        tensor.tofile(file)
    assert descriptors(tmp_path) == before


@pytest.mark.parametrize("how", ["replaced", "link", "longer", "gone", "fifo"])
def test_a_file_that_is_not_held_open_must_be_the_same(how, tmp_path, monkeypatch):
    """Beyond the limit to descriptors, the path is opened again when the bytes are wanted."""
    monkeypatch.setattr(external_tensors, "most_held_open", lambda: 0)
    before = descriptors(tmp_path)
    (tensor,) = tensors(tieops.from_onnx(saved(tmp_path)))
    assert descriptors(tmp_path) == before
    data = tmp_path / "w.bin"
    (tmp_path / "secret").write_bytes(bytes(64))
    if how == "longer":
        data.write_bytes(bytes(65))
    else:
        data.unlink()
    if how == "replaced":
        (tmp_path / "secret").rename(data)
    elif how == "link":
        data.symlink_to(tmp_path / "secret")
    elif how == "fifo":
        os.mkfifo(data)
    for read in (tensor.numpy, tensor.tobytes, lambda: open_data(tensor)):
        with pytest.raises(UntrustedFileError, match=r"w\.bin changed since it was imported"):
            read()
    assert descriptors(tmp_path) == before


def test_what_was_mapped_stays_when_the_file_goes(tmp_path):
    (tensor,) = tensors(tieops.from_onnx(saved(tmp_path)))
    values = tensor.numpy()
    (tmp_path / "w.bin").unlink()
    np.testing.assert_array_equal(values, VALUES.reshape(4, 4))
    assert tensor.numpy() is values


def test_bytes_are_copied_to_a_file_as_they_are(tmp_path):
    first, second = tensors(tieops.from_onnx(saved(tmp_path, 2)))
    with (tmp_path / "copy").open("wb") as file:
        second.tofile(file)
        first.tofile(file)
    assert (tmp_path / "copy").read_bytes() == VALUES.tobytes() * 2


def test_packed_values_are_unpacked(tmp_path):
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g () => (int4[5] y) { y = Identity(w) }""")
    made = helper.make_tensor("w", TensorProto.INT4, [5], [1, -2, 3, -4, 5])
    (tmp_path / "w.bin").write_bytes(made.raw_data or bytes(made.int32_data))
    outside = TensorProto(name="w", data_type=TensorProto.INT4, dims=[5])
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="w.bin")
    proto.graph.initializer.append(outside)
    (tensor,) = tensors(tieops.from_onnx(proto, base_dir=tmp_path))
    assert tensor.numpy().dtype == ml_dtypes.int4
    assert np.asarray(tensor).astype(int).tolist() == [1, -2, 3, -4, 5]
    assert len(tensor.tobytes()) == 3
