"""How many bytes of a device a session takes, counted on a stand-in for NVIDIA's libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tieops
from tests.benchmarks.tied_models import MODELS
from tests.support.fake_cuda import FakeCuda
from tests.support.graphs import DTYPES, head, recurrent, written

pytestmark = pytest.mark.fake_cuda

OPENED = """
import tieops
path, warm, options = *sys.argv[1:3], json.loads(sys.argv[3])
empty = tieops.session(warm, "cuda")
before = used()
session = tieops.session(path, "cuda", options=options)
after = used()
assert session.providers[0] == "CUDAExecutionProvider"
session.close()
print(json.dumps([after - before, used() - before]))
"""


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """A small model, so that what every session costs is paid before."""
    return written(recurrent(20, 4), tmp_path / "warm.onnx")[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tied_head_takes_its_unique_bytes(dtype: str, cuda: FakeCuda, warm: Path, tmp_path: Path):
    path, unique = written(head(20_000, 64, dtype), tmp_path / "tied.onnx")
    took, left = cuda.run(OPENED, path, warm, "{}")
    assert 0.99 * unique <= took <= 1.05 * unique
    assert left == 0


def test_cudnn_copies_the_weights_of_a_recurrent_layer_and_none_else(
    cuda: FakeCuda, warm: Path, tmp_path: Path
):
    path, unique = written(recurrent(40_000, 128), tmp_path / "tied.onnx")
    took, left = cuda.run(OPENED, path, warm, "{}")
    assert 0.99 * unique <= took <= 1.2 * unique + 4_000_000  # what the stand-in says of cuDNN
    assert left == 0


def test_an_option_that_is_given_is_left_as_it_is(cuda: FakeCuda, warm: Path, tmp_path: Path):
    path, unique = written(head(20_000, 64), tmp_path / "tied.onnx")
    option = '{"session.use_device_allocator_for_initializers": "0"}'
    took, _ = cuda.run(OPENED, path, warm, option)
    assert took > 1.2 * unique  # powers of two, out of an arena


@pytest.mark.slow
@pytest.mark.parametrize("title", MODELS)
def test_every_model_of_the_benchmarks_takes_its_unique_bytes(
    title: str, cuda: FakeCuda, warm: Path, tmp_path: Path
):
    case: Any = MODELS[title]()
    case.module.eval()
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path, unique = written(model, tmp_path / "tied.onnx")
    took, left = cuda.run(OPENED, path, warm, "{}")
    assert 0.99 * unique <= took <= 1.05 * unique
    assert left == 0
