"""The bytes of a data file: from files, from torch's storages, packed ones; each as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import numpy_helper, parser
from onnx_ir.tensor_adapters import TorchTensor

import tieops
from tieops.errors import ExportError
from tieops.exporters.data_file import write_data
from tieops.exporters.layout import Layout, Range

RNG = np.random.default_rng(0)


def written(tensor: onnx_ir.TensorProtocol, folder: Path) -> bytes:
    layout = Layout([Range(tensor, [], 64)], 64 + int(tensor.nbytes))
    with (folder / "out").open("w+b") as file:
        write_data(layout, file.fileno(), "out")
        return file.read()[64:]


def test_numbers_of_any_width(tmp_path):
    values = RNG.integers(0, 2, (30, 7))
    for dtype in (np.float32, np.float16, np.int8, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2,
                  ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2):  # fmt: skip
        for array in (values.astype(dtype), values.astype(dtype).T):
            tensor = onnx_ir.Tensor(array)
            assert written(tensor, tmp_path) == tensor.tobytes()


def test_a_tensor_of_torch(tmp_path):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
        array = torch.randint(0, 9, (30, 7)).to(dtype)
        for tensor in (array, array.T, array[::2, 1:3]):
            held = TorchTensor(tensor)
            assert written(held, tmp_path) == TorchTensor(tensor.contiguous()).tobytes()


def external(path: Path, elements: int = 100, offset: int = 8) -> onnx_ir.ExternalTensor:
    return onnx_ir.ExternalTensor(
        path.name,
        offset,
        4 * elements,
        onnx_ir.DataType.FLOAT,
        shape=onnx_ir.Shape([elements]),
        name="w",
        base_dir=str(path.parent),
    )


def test_a_range_of_a_file(tmp_path):
    data = RNG.bytes(1000)
    (tmp_path / "data").write_bytes(data)
    assert written(external(tmp_path / "data"), tmp_path) == data[8:408]


def test_a_file_that_changed_is_an_error(tmp_path):
    path = tmp_path / "data"
    with pytest.raises(ExportError, match="the data of w can no longer be read"):
        written(external(path), tmp_path)
    path.write_bytes(bytes(100))
    with pytest.raises(
        ExportError, match="the data of w is shorter than its shape needs"
    ) as caught:
        written(external(path), tmp_path)
    assert caught.value.facts["bytes there"] == 92
    assert caught.value.facts["bytes needed"] == 400
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ExportError, match="the data of w is no longer a regular file"):
        written(external(path), tmp_path)


def imported(path: Path, array: np.ndarray[Any, Any]) -> tieops.TiedModel:
    """Return a model whose weight lies in a data file that is imported now."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, k] x) => (float[n, 40] y) { y = MatMul(x, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(array, "w"))
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data")
    return tieops.from_onnx(path)


ONES = np.ones((40, 40), np.float32)


@pytest.mark.parametrize("how", ["replaced", "gone", "a FIFO", "a link"])
def test_another_file_of_the_name_is_not_copied(how, tmp_path):
    model = imported(tmp_path / "m.onnx", ONES)
    data, other = tmp_path / "m.onnx.data", tmp_path / "other"
    other.write_bytes(2 * ONES.tobytes())
    data.unlink()
    if how == "replaced":
        other.rename(data)
    elif how == "a FIFO":
        os.mkfifo(data)
    elif how == "a link":
        data.symlink_to(other)
    written = tieops.to_onnx(model, tmp_path / "out.onnx", external_data=True)
    (weight,) = tieops.from_onnx(written).parameters
    np.testing.assert_array_equal(weight.numpy(), ONES)


def test_a_file_that_was_written_to_is_not_copied(tmp_path):
    model = imported(tmp_path / "m.onnx", ONES)
    (tmp_path / "m.onnx.data").write_bytes((2 * ONES).tobytes())
    os.utime(tmp_path / "m.onnx.data", ns=(0, 0))
    with pytest.raises(ExportError, match="the data of w can no longer be read") as caught:
        tieops.to_onnx(model, tmp_path / "out.onnx", external_data=True)
    assert "fix: another program changed it after the import" in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_two_imports_of_one_path_are_two_files(tmp_path):
    """What the second import has checked says nothing about what the first one had."""
    large = np.full((60, 40), 3, np.float32)
    old = imported(tmp_path / "m.onnx", ONES)
    new = imported(tmp_path / "m.onnx", large)
    for models in ([old, new], [new, old]):
        written = tieops.to_onnx(models, [tmp_path / "a.onnx", tmp_path / "b.onnx"])
        for model, path in zip(models, written, strict=True):
            (weight,) = tieops.from_onnx(path).parameters
            np.testing.assert_array_equal(weight.numpy(), ONES if model is old else large)


@pytest.mark.slow
def test_weights_of_torch_are_not_copied_in_memory(tmp_path):
    """A transposed and a plain weight of 128 MB each: blocks of 16 MiB, and nothing more."""
    code = """
    import sys, torch, tieops
    from tests.support.memory import growth

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = torch.nn.Embedding(32768, 1024)
            self.out = torch.nn.Linear(1024, 32768, bias=False)

        def forward(self, x):
            return self.out(self.emb(x))

    model = tieops.from_torch(Net(), (torch.zeros(2, dtype=torch.long),))
    print(growth(lambda: tieops.to_onnx(model, sys.argv[1])))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m.onnx")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(found.split()[-1]) < 40 << 20
