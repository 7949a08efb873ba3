"""Tensors that lie on the device, in and out, and in which order streams are waited for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import tieops
from tests.support.fake_cuda import FakeCuda
from tests.support.files import written
from tests.support.graphs import DTYPES, stored, weight
from tieops.errors import PreconditionError

TEXT = "({kind}[n, 3] x) => ({kind}[n, 4] y) {{ y = MatMul(x, w) }}"


def model(dtype: str = "float") -> tieops.TiedModel:
    return stored(TEXT.format(kind=dtype), w=weight(3, 4, dtype=dtype))


BEFORE = """
import os, numpy as np, onnx, onnxruntime, tieops
calls = os.environ["FAKE_CUDA_CALLS"]
def fed(dtype=onnx.TensorProto.FLOAT, shape=(2, 3), device=0):
    make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    return make(list(shape), int(dtype), "cuda", device)
def told(words):
    with open(calls, "a") as file:
        print(words, file=file)
"""

VALUES = """
session = tieops.session(sys.argv[1], "cuda")
there = fed(int(sys.argv[2]))
session.run_values({"x": there})
session.run({"x": there})
open(calls, "w").close()
found = session.run_values({"x": there})["y"]
copies = [line for line in open(calls).read().splitlines() if line.startswith("copy")]
array = session.run({"x": there})["y"]
again = [line for line in open(calls).read().splitlines() if line.startswith("copy")]
print(json.dumps([found.__dlpack_device__(), found.shape(), found.element_type(), copies,
    array.shape, str(array.dtype), again]))
"""


@pytest.mark.fake_cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_on_the_device_goes_in_and_comes_out_without_a_copy(
    dtype: str, cuda: FakeCuda, tmp_path: Path
):
    kind = {"float": 1, "float16": 10, "bfloat16": 16}[dtype]
    path, _ = written(model(dtype), tmp_path / "m.onnx")
    found = cuda.run(BEFORE + VALUES, path, kind, calls=tmp_path / "calls")
    assert found[:4] == [[2, 0], [2, 4], kind, []]
    assert found[4:6] == [[2, 4], np.dtype(DTYPES[dtype]).name]
    assert [line.split()[:4] for line in found[6]] == [
        ["copy", str(8 * np.dtype(DTYPES[dtype]).itemsize), "kind", "2"]  # the output, to the CPU
    ]


EXPORTED = """
class Exported:
    dtype = np.dtype(np.float32)
    def __init__(self, value, device):
        self.value, self.device, self.shape = value, device, tuple(value.shape())
    def __dlpack_device__(self):
        return 2, self.device
    def __dlpack__(self, *, stream=None, **other):
        told(f"exported on {stream}")
        return self.value.__dlpack__()

options = json.loads(sys.argv[2])
session = tieops.session(sys.argv[1], "cuda", provider_options=options)
there = Exported(fed(device=options.get("device_id", 0)), options.get("device_id", 0))
session.run_values({"x": there})
open(calls, "w").close()
for run in (session.run_values, session.run):
    told("run")
    run({"x": there})
told("end")
print(json.dumps(open(calls).read().splitlines()))
"""


@pytest.mark.fake_cuda
@pytest.mark.parametrize(
    ("options", "stream"),
    [("{}", 1), ('{"device_id": 1}', 1), ('{"user_compute_stream": 77777}', 77777)],
)
def test_what_is_still_computed_elsewhere_is_waited_for(
    options: str, stream: int, cuda: FakeCuda, tmp_path: Path
):
    path, _ = written(model(), tmp_path / "m.onnx")
    calls = cuda.run(BEFORE + EXPORTED, path, options, calls=tmp_path / "calls", devices=2)
    first, second = calls.index("run"), len(calls) - 1 - calls[::-1].index("run")
    device = 1 if "device_id" in options else 0
    for run in (calls[first:second], calls[second:]):
        # The producer makes it ready on a stream; that is done before the first kernel starts; and
        # the results are there before the caller goes on.
        exported, kernel = run.index(f"exported on {stream}"), run.index("cublasSgemm_v2")
        assert f"wait for device {device}" in run[exported:kernel]
        assert any(call.startswith("wait for stream") for call in run[kernel:])


MISFITS = """
session = tieops.session(sys.argv[1], "cuda")
found = []
for value in (fed(onnx.TensorProto.FLOAT16), fed(shape=(2, 5))):
    for run in (session.run, session.run_values):
        try:
            run({"x": value})
        except tieops.TieopsError as error:
            found.append(str(error).splitlines()[0])
try:
    session.run_tensors({"x": fed()})
except tieops.TieopsError as error:
    found.append(str(error))
found.append(tieops.session(sys.argv[1], "cpu").run({"x": fed()})["y"].shape)
print(json.dumps(found))
"""


@pytest.mark.fake_cuda
@pytest.mark.slow
def test_what_does_not_fit_is_said_and_the_cpu_takes_a_copy(cuda: FakeCuda, tmp_path: Path):
    path, _ = written(model(), tmp_path / "m.onnx")
    found = cuda.run(BEFORE + MISFITS, path, calls=tmp_path / "calls")
    assert found[:2] == ["the inputs do not fit: x is float16, not float32, and is not converted "
                         "there"] * 2  # fmt: skip
    assert found[2:4] == ["the inputs do not fit: x has shape [2, 5]"] * 2
    assert "need a CUDA build of torch" in found[4]
    assert "run_values" in found[4]
    assert found[5] == [2, 4]


# Without a device.


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_onnx_runtime_go_in_and_out_on_the_cpu(dtype: str):
    session = tieops.session(
        stored(f"({dtype}[n] x) => ({dtype}[n] y) {{ y = Identity(x) }}"), "cpu"
    )
    fed = np.array([1, 2, 3]).astype(DTYPES[dtype])
    value = session.run_values({"x": fed})["y"]
    assert isinstance(value, onnxruntime.OrtValue)
    assert session.run({"x": value})["y"].tolist() == [1, 2, 3]
    assert session.run_tensors({"x": value})["y"].tolist() == [1, 2, 3]
    assert session.run_values({"x": value})["y"].shape() == [3]


def test_a_value_of_another_dtype_or_shape_is_said():
    session = tieops.session(model(), "cpu")
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    with pytest.raises(PreconditionError, match="x has shape \\[2, 5\\]"):
        session.run({"x": make(np.ones((2, 5), np.float32))})
    with pytest.raises(PreconditionError, match="x is float64, not float32"):
        session.run({"x": make(np.ones((2, 3), np.float64))})
