"""NVIDIA's libraries: where they are found, and what is said where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.fake_cuda import FakeCuda
from tests.support.files import written
from tests.support.graphs import stored, weight
from tests.support.heads import head, recurrent
from tieops.ir.operators.on_cuda import NEEDS_CUDNN

pytestmark = pytest.mark.fake_cuda

ASKED = """
import tieops
from tieops.runtime import cuda_blocker, environment
found = {"blocker": cuda_blocker(), **environment(), "torch loaded": "torch" in sys.modules}
try:
    session = tieops.session(sys.argv[1], sys.argv[2])
    found |= {"provider": session.provider, "note": session.note}
    if sys.argv[3:]:
        found["held"] = tieops.resident_bytes(session).measured.device_bytes
except tieops.TieopsError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(head(20_000, 64), tmp_path / "tied.onnx")[0]


def without(cuda: FakeCuda, name: str, folder: Path) -> Path:
    """Return a folder of packages that lacks one library."""
    shutil.copytree(cuda.packages, folder)
    for each in folder.glob(f"nvidia/*/lib/{name}*"):
        each.unlink()
    return folder


@pytest.mark.slow
def test_they_are_found_along_the_path_without_torch_and_in_child_processes(
    cuda: FakeCuda, path: Path
):
    found = cuda.run(ASKED, path, "cuda", "held")
    assert found["blocker"] is None
    assert (found["cuda"], found["cudnn"]) == ("loads", "loads")
    assert (found["provider"], found["torch loaded"]) == ("cuda", False)
    assert found["held"] > 5_000_000  # measured by a child of that process


def test_wheels_of_one_library_each_are_found_too(cuda: FakeCuda, path: Path, tmp_path: Path):
    apart = tmp_path / "apart"
    names = {"cudart": "cuda_runtime", "cublas": "cublas", "cublasLt": "cublas",
             "curand": "curand", "cudnn": "cudnn"}  # fmt: skip
    for folder in cuda.libraries:
        for library in folder.glob("*.so.*"):
            name = names[library.name.removeprefix("lib").partition(".")[0]]
            place = apart / "nvidia" / name / "lib"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
    found = cuda.run(ASKED, path, "cuda", path=(apart,))
    assert (found["provider"], found["cudnn"]) == ("cuda", "loads")


def test_what_is_missing_is_named_with_a_command_that_brings_it(
    cuda: FakeCuda, path: Path, tmp_path: Path
):
    lacking = without(cuda, "libcublas.so", tmp_path / "packages")
    found = cuda.run(ASKED, path, "cuda", path=(lacking,))
    assert "libcublas.so.13: cannot open shared object file" in found["error"]
    assert "fix: pip install 'tieops[cuda]'" in found["error"]
    assert "cudnn" not in found  # where CUDA does not load, cuDNN is nobody's concern
    found = cuda.run(ASKED, path, "auto", path=(lacking,))
    assert found["provider"] == "cpu"
    assert found["note"].startswith("running on the CPU: libcublas.so.13")


def test_a_driver_without_a_gpu_is_said(cuda: FakeCuda, path: Path):
    found = cuda.run(ASKED, path, "cuda", devices=0)
    assert "the NVIDIA driver shows no GPU" in found["error"]
    assert "CUDA_VISIBLE_DEVICES" in found["error"]


@pytest.mark.slow
def test_without_cudnn_a_recurrent_layer_is_refused_and_a_product_is_not(
    cuda: FakeCuda, path: Path, tmp_path: Path
):
    lacking = without(cuda, "libcudnn", tmp_path / "packages")
    found = cuda.run(ASKED, path, "cuda", path=(lacking,))
    assert found["provider"] == "cuda"
    assert "libcudnn.so.9: cannot open" in found["cudnn"]
    lstm, _ = written(recurrent(20, 4), tmp_path / "lstm.onnx")
    found = cuda.run(ASKED, lstm, "cuda", path=(lacking,))
    assert "missing: cuDNN" in found["error"]
    assert "fix: pip install 'tieops[cuda]'" in found["error"]
    assert found["error"].count("\n") == 2
    found = cuda.run(ASKED, lstm, "auto", path=(lacking,))
    assert found["note"].startswith("running on the CPU: cuDNN")
    conv = stored("(float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y) { y = Conv(x, w) }",
                  w=weight(4, 3, 3, 3))  # fmt: skip
    found = cuda.run(ASKED, written(conv, tmp_path / "c.onnx")[0], "cuda", path=(lacking,))
    assert "missing: cuDNN, which Conv is computed by" in found["error"]


REDUCED = """
import numpy as np, tieops
session = tieops.session(sys.argv[1], "cuda")
try:
    session.run({"x": np.ones((2, 3, 4), np.float32)})
except tieops.TieopsError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def test_a_reduction_that_turns_out_to_need_cudnn_says_so_when_it_runs(
    cuda: FakeCuda, tmp_path: Path
):
    lacking = without(cuda, "libcudnn", tmp_path / "packages")
    text = "(float[a, b, c] x) => (float[a, d, c] y) { y = ReduceL2<keepdims = 1>(x, axes) }"
    path, _ = written(stored(text, axes=np.int64([1])), tmp_path / "reduced.onnx")
    kind, error = cuda.run(REDUCED, path, path=(lacking,))
    assert kind == "ProviderError"
    assert "missing: cuDNN: libcudnn.so.9: cannot open" in error


FAILS = """
import onnxruntime, numpy as np
from tieops.runtime import cuda_blocker
cuda_blocker()
found = {}
for name in sys.argv[1:]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(name, settings, providers=["CUDAExecutionProvider"])
        parts = session.get_provider_graph_assignment_info()
        shape = session.get_inputs()[0].shape
        session.run(None, {"x": np.ones(shape, np.float32)})
        found[name] = "ran on " + parts[0].ep_name
    except Exception as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def nodes() -> dict[str, tuple[list[int], dict[str, tuple[int, ...]], dict[str, object]]]:
    """Return, for each operator, the shape of its input, of its weights, and its attributes."""
    image, one = [1, 3, 8, 8], (3,)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}
    found: dict[str, tuple[list[int], dict[str, tuple[int, ...]], dict[str, object]]] = {
        "Conv": (image, {"w": (4, 3, 3, 3)}, {}),
        "ConvTranspose": (image, {"w": (3, 4, 3, 3)}, {}),
        "BatchNormalization": (image, dict.fromkeys("abcd", one), {}),
        "InstanceNormalization": (image, dict.fromkeys("ab", one), {}),
        "MaxPool": (image, {}, {"kernel_shape": [2, 2]}),
        "AveragePool": (image, {}, {"kernel_shape": [2, 2]}),
        "GlobalAveragePool": (image, {}, {}),
        "GlobalMaxPool": (image, {}, {}),
        "LRN": (image, {}, {"size": 3}),
    }
    for op_type, count in gates.items():
        weights = {"w": (1, 4 * count, 3), "r": (1, 4 * count, 4)}
        extra = {"linear_before_reset": 1} if op_type == "GRU" else {}
        found[op_type] = [2, 1, 3], weights, {"hidden_size": 4, **extra}
    return found


def test_the_operators_that_are_refused_without_cudnn_fail_without_it(
    cuda: FakeCuda, tmp_path: Path
):
    lacking = without(cuda, "libcudnn", tmp_path / "packages")
    assert NEEDS_CUDNN - {"FusedConv"} == nodes().keys()  # which optimizations make of Conv
    paths = {}
    for op_type, (shape, weights, attributes) in nodes().items():
        node = helper.make_node(op_type, ["x", *weights], ["y"], **attributes)
        tensors = [
            helper.make_tensor(name, TensorProto.FLOAT, sizes, weight(*sizes).ravel())
            for name, sizes in weights.items()
        ]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node], "g", [value("x", TensorProto.FLOAT, shape)],
            [value("y", TensorProto.FLOAT, None)], tensors,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        paths[op_type] = tmp_path / f"{op_type}.onnx"
        onnx.save(model, paths[op_type])
    found = cuda.run(FAILS, *paths.values(), path=(lacking,))
    for op_type, path in paths.items():
        assert not found[str(path)].startswith("ran on"), (op_type, found[str(path)])
