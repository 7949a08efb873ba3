"""Options of the CUDA provider, on a stand-in for NVIDIA's libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tieops
from tests.support.fake_cuda import FakeCuda
from tests.support.files import written
from tests.support.graphs import stored, weight
from tests.support.heads import head
from tieops.errors import PreconditionError

TEXT = "(float[{n}, 3] x) => (float[{n}, 4] y) {{ y = MatMul(x, w) }}"


@pytest.fixture
def varying(tmp_path: Path) -> Path:
    return written(stored(TEXT.format(n="n"), w=weight(3, 4)), tmp_path / "varying.onnx")[0]


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    return written(stored(TEXT.format(n=2), w=weight(3, 4)), tmp_path / "fixed.onnx")[0]


OPENED = """
import tieops
path, options, provider = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
before = [used(0), used(1)]
try:
    session = tieops.session(path, provider, provider_options=options)
except tieops.TieopsError as error:
    print(json.dumps([type(error).__name__, str(error)]))
else:
    taken = session._inner.get_provider_options().get("CUDAExecutionProvider", {})
    took = [used(0) - before[0], used(1) - before[1]]
    print(json.dumps([session.provider, session.note, took, {k: taken[k] for k in options if k in taken}]))
"""  # noqa: E501


@pytest.mark.fake_cuda
@pytest.mark.parametrize(
    ("given", "as_taken"),
    [
        ({"use_tf32": 0}, "0"),
        ({"use_tf32": False}, "0"),
        ({"gpu_mem_limit": 2**30}, str(2**30)),
        ({"cudnn_conv_algo_search": "HEURISTIC"}, "HEURISTIC"),
    ],
)
def test_an_option_reaches_the_provider(
    given: dict[str, Any], as_taken: str, cuda: FakeCuda, varying: Path
):
    found = cuda.run(OPENED, varying, json.dumps(given), "cuda")
    assert found[0] == "cuda"
    assert list(found[3].values()) == [as_taken]


@pytest.mark.fake_cuda
def test_a_session_runs_on_the_gpu_that_is_named(cuda: FakeCuda, tmp_path: Path):
    path, unique = written(head(20_000, 64), tmp_path / "tied.onnx")
    found = cuda.run(OPENED, path, '{"device_id": 1}', "cuda", devices=2)
    assert found[2][0] < unique // 10 <= unique <= found[2][1]


@pytest.mark.fake_cuda
def test_a_gpu_that_is_not_there_is_said(cuda: FakeCuda, varying: Path):
    found = cuda.run(OPENED, varying, '{"device_id": 2}', "cuda", devices=2)
    assert found[0] == "ProviderError"
    assert "there is no GPU 2: the driver shows 2 GPUs, counted from 0" in found[1]
    found = cuda.run(OPENED, varying, '{"device_id": 2}', "auto", devices=2)
    assert found[0] == "cpu"
    assert found[1].startswith("running on the CPU: there is no GPU 2")


@pytest.mark.fake_cuda
@pytest.mark.parametrize("provider", ["cuda", "auto"])
@pytest.mark.parametrize("given", [{"bogus": 1}, {"use_tf32": "maybe"}, {"gpu_mem_limit": -1}])
def test_an_option_that_the_provider_refuses_is_an_error(
    given: dict[str, Any], provider: str, cuda: FakeCuda, varying: Path
):
    found = cuda.run(OPENED, varying, json.dumps(given), provider)
    assert found[0] == "PreconditionError"
    assert f"does not take the option {next(iter(given))}" in found[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1], "must be a mapping"),
        ({1: 2}, "must be a mapping"),
        ({"device_id": object()}, "expected a string or a number for the option device_id"),
        ({"device_id": -1}, "device_id must be the number of a GPU"),
        ({"device_id": "two"}, "device_id must be the number of a GPU"),
    ],
)
def test_what_are_no_options_is_refused_anywhere(given: Any, words: str):
    model = stored(TEXT.format(n="n"), w=weight(3, 4))
    with pytest.raises(PreconditionError, match=words):
        tieops.session(model, provider_options=given)
    with pytest.raises(PreconditionError, match=words):
        tieops.sessions({"a": model}, provider_options=given)


def test_the_cpu_has_no_options():
    model = stored(TEXT.format(n="n"), w=weight(3, 4))
    with pytest.raises(PreconditionError, match="provider='cpu' was requested"):
        tieops.session(model, "cpu", provider_options={"use_tf32": 0})
    assert tieops.session(model, "cpu", provider_options={}).provider == "cpu"


@pytest.mark.fake_cuda
@pytest.mark.slow
def test_a_limit_of_memory_covers_the_weights(cuda: FakeCuda, tmp_path: Path):
    path, unique = written(head(20_000, 64), tmp_path / "tied.onnx")
    found = cuda.run(OPENED, path, json.dumps({"gpu_mem_limit": 2 * unique}), "cuda")
    assert found[2][0] <= 1.05 * unique + 2**21  # and a small block of the arena
    found = cuda.run(OPENED, path, json.dumps({"gpu_mem_limit": unique // 2}), "cuda")
    assert found[0] == "ProviderError"
    assert "does not fit in GPU memory" in found[1]
    assert "raise gpu_mem_limit" in found[1]
    found = cuda.run(OPENED, path, json.dumps({"gpu_mem_limit": unique // 2}), "auto")
    assert found[0] == "cpu"


@pytest.mark.fake_cuda
def test_a_gpu_that_is_full_is_said(cuda: FakeCuda, tmp_path: Path):
    path, unique = written(head(20_000, 64), tmp_path / "tied.onnx")
    found = cuda.run(OPENED, path, "{}", "cuda", memory=unique // 2)
    assert found[0] == "ProviderError"
    assert "does not fit in GPU memory" in found[1]
    code = OPENED.replace("tieops.session(path", "tieops.sessions({'a': path, 'b': path}")
    found = cuda.run(code, path, "{}", "cuda", memory=unique // 2)
    assert found[0] == "ProviderError"
    assert "does not fit in GPU memory" in found[1]


# Runs that are captured.

CAPTURED = """
import os, numpy as np, onnxruntime, tieops
session = tieops.session(sys.argv[1], "cuda", provider_options={"enable_cuda_graph": True})
there = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((2, 3), np.float32), "cuda", 0)
open(os.environ["FAKE_CUDA_CALLS"], "w").close()
shapes = [session.run({"x": np.ones((2, 3), np.float32)})["y"].shape for _ in range(2)]
shapes += [session.run({"x": there})["y"].shape]
first = session.run_values({"x": there})["y"]
second = session.run_values({"x": np.ones((2, 3), np.float32)})["y"]
calls = open(os.environ["FAKE_CUDA_CALLS"]).read().splitlines()
session.close()
print(json.dumps([shapes, first.device_name(), first.data_ptr() != second.data_ptr(),
    calls.count("capture"), calls.count("launch graph"), calls.count("cublasSgemm_v2")]))
"""


@pytest.mark.fake_cuda
def test_runs_of_fixed_sizes_are_captured_once_and_launched(
    cuda: FakeCuda, fixed: Path, tmp_path: Path
):
    shapes, device, apart, captures, launches, computed = cuda.run(
        CAPTURED, fixed, calls=tmp_path / "calls"
    )
    assert shapes == [[2, 4]] * 3
    assert device == "cuda"
    assert apart  # what one run returned is not what the next one writes
    assert captures == 1
    assert launches == 5
    assert computed < 5  # not on each run


REFUSED = """
import tieops
try:
    tieops.session(sys.argv[1], "cuda", provider_options={"enable_cuda_graph": 1})
except tieops.TieopsError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.fake_cuda
def test_what_cannot_be_captured_is_refused_with_the_reason(
    cuda: FakeCuda, varying: Path, tmp_path: Path
):
    kind, text = cuda.run(REFUSED, varying)
    assert kind == "PreconditionError"
    assert "not fixed: x: f32[n,3], y: f32[n,4]" in text
    gru = stored(
        "(float[1, 2, 3] x) => (float[1, 1, 2, 4] z) { y, h = GRU<hidden_size = 4>(x, w, r) "
        "z = Neg(y) }",
        w=weight(1, 12, 3),
        r=weight(1, 12, 4),
    )
    kind, text = cuda.run(REFUSED, written(gru, tmp_path / "gru.onnx")[0])
    assert kind == "PreconditionError"
    assert "cannot be captured" in text
    assert "have not been partitioned to the CUDAExecutionProvider" in text


# A stream of the user's.

ON_STREAM = """
import os, numpy as np, tieops
class Stream:
    cuda_stream = 77777
given = Stream() if sys.argv[2] == "torch's" else 77777
session = tieops.session(sys.argv[1], "cuda", provider_options={"user_compute_stream": given})
open(os.environ["FAKE_CUDA_CALLS"], "w").close()
session.run({"x": np.ones((2, 3), np.float32)})
calls = open(os.environ["FAKE_CUDA_CALLS"]).read().splitlines()
print(json.dumps([hex(77777), [call for call in calls if "stream" in call or "copy" in call]]))
"""


@pytest.mark.fake_cuda
@pytest.mark.parametrize("given", ["torch's", "an address"])
def test_a_session_works_on_a_stream_that_is_given(
    given: str, cuda: FakeCuda, varying: Path, tmp_path: Path
):
    stream, calls = cuda.run(ON_STREAM, varying, given, calls=tmp_path / "calls")
    assert f"wait for stream {stream}" in calls
    assert {call.rpartition(" ")[2] for call in calls if call.startswith("copy")} == {stream}
    assert not any(call.startswith("new stream") for call in calls)
