"""How many bytes of a device a session takes, counted on a stand-in for NVIDIA's libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tieops
from tests.benchmarks.tied_models import MODELS
from tests.support.fake_cuda import FakeCuda
from tests.support.files import written
from tests.support.graphs import DTYPES
from tests.support.heads import head, recurrent

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
@pytest.mark.slow
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


@pytest.mark.parametrize("inside", [False, True])
def test_a_tie_through_a_transpose_is_not_folded_into_a_second_copy(
    inside: bool, cuda: FakeCuda, warm: Path, tmp_path: Path
):
    model, path = head(20_000, 64), tmp_path / "tied.onnx"
    tieops.to_onnx(model, path, external_data=not inside, tie_form="portable")
    took, _ = cuda.run(OPENED, path, warm, "{}")
    assert took <= 1.05 * model.ledger.stored_bytes


def test_without_optimizations_a_tie_through_a_transpose_is_one_copy_too(
    cuda: FakeCuda, warm: Path, tmp_path: Path
):
    model, path = head(20_000, 64), tmp_path / "tied.onnx"
    tieops.to_onnx(model, path, external_data=True, tie_form="portable")
    code = OPENED.replace("options=options", "optimize=False")
    took, _ = cuda.run(code, path, warm, "{}")
    assert took <= 1.05 * model.ledger.stored_bytes


SHARED = """
import gc, tieops
paths, warm = json.loads(sys.argv[1]), sys.argv[2]
empty = tieops.sessions({"a": warm, "b": warm}, "cuda")
before = used()
group = tieops.sessions(paths, "cuda")
after = used()
shared = [each.nbytes for each in group.shared]
names = list(group)
group[names[0]].close()
gc.collect()
one = used()
group[names[1]].run({"ids": [[1, 2]]})
group.close()
del group
gc.collect()
print(json.dumps([after - before, one - before, used() - before, shared]))
"""


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_sessions_hold_what_they_share_once_and_give_it_back(
    dtype: str, cuda: FakeCuda, warm: Path, tmp_path: Path
):
    paths = {name: str(tmp_path / f"{name}.onnx") for name in "ab"}
    for seed, path in enumerate(paths.values()):
        _, unique = written(head(20_000, 64, dtype, seed=seed), Path(path))
    took, one, left, shared = cuda.run(SHARED, json.dumps(paths), warm)
    table = 20_000 * 64 * (4 if dtype == "float" else 2)
    assert shared == [table]
    assert 0.99 * unique <= took <= 1.1 * unique
    assert one >= table  # the other session still reads it
    assert left == 0


HELD = """
import tieops
session = tieops.session(sys.argv[1], "cuda", provider_options=json.loads(sys.argv[2]))
found = tieops.resident_bytes(session)
tie = found.ties[0]
print(json.dumps([found.provider, found.undone == (), tie.verdict,
    [[copy.kind, copy.place, copy.nbytes] for copy in tie.copies],
    found.measured.device_bytes, found.counted_bytes("device"), found.unmeasured]))
"""


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.slow
def test_what_is_counted_is_what_a_child_process_measures(
    device: int, cuda: FakeCuda, tmp_path: Path
):
    path, unique = written(head(20_000, 64), tmp_path / "tied.onnx")
    found = cuda.run(HELD, path, json.dumps({"device_id": device}), devices=2)
    assert found[:4] == ["cuda", True, "kept", [["original", "device", 20_000 * 64 * 4]]]
    assert 0.99 * unique <= found[4] <= 1.05 * unique
    assert found[5] == pytest.approx(found[4], rel=0.05)
    assert found[6] == ""


COPIED = """
import tieops
found = tieops.resident_bytes(tieops.session(sys.argv[1], "cuda"))
print(json.dumps([[each.names[0], each.verdict, len(each.copies)] for each in found.parameters]
    + [found.counted_bytes("device"), found.measured.device_bytes]))
"""


@pytest.mark.slow
def test_cudnns_copy_of_a_recurrent_layer_is_counted(cuda: FakeCuda, tmp_path: Path):
    path, unique = written(recurrent(8000, 256), tmp_path / "tied.onnx")
    *held, counted, measured = cuda.run(COPIED, path)
    assert sorted(held) == [["r", "prepacked", 2], ["table", "kept", 1], ["w", "prepacked", 2]]
    weights = 2 * 4 * 256 * 256 * 4
    assert counted == pytest.approx(unique + weights, rel=0.01)
    assert measured >= counted  # the stand-in's cuDNN wants more
