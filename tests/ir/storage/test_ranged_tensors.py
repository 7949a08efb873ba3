"""Tensors in ranges of a file: what is read for samples, whole tensors, every dtype."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir
import pytest

from tieops.analysis.duplicates.by_content import find_duplicates
from tieops.errors import PreconditionError
from tieops.ir.evidence import Evidence
from tieops.ir.parameter import Parameter
from tieops.ir.storage.byte_ranges import storage_key
from tieops.ir.storage.ranged_tensors import RangedTensor, elements_at, prefetch


class Memory:
    """A file in memory that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.name = data, len(data), "memory"
        self.read_bytes = self.calls = 0

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.calls += 1
        self.read_bytes += sum(stop - start for start, stop in ranges)
        return [self.data[start:stop] for start, stop in ranges]


def floats(*arrays: np.ndarray) -> tuple[Memory, list[RangedTensor]]:
    source = Memory(b"".join(array.astype("<f4").tobytes() for array in arrays))
    tensors, offset = [], 0
    for number, array in enumerate(arrays):
        name = f"w{number}"
        tensor = RangedTensor(source, offset, onnx_ir.DataType.FLOAT, array.shape, name=name)
        tensors.append(tensor)
        offset += array.size * 4
    return source, tensors


def stored(tensors: Sequence[RangedTensor]) -> list[Parameter]:
    return [Parameter(onnx_ir.Value(name=each.name, const_value=each)) for each in tensors]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


PLAIN = [t for t in onnx_ir.DataType if t.name not in ("UNDEFINED", "STRING")]


@pytest.mark.parametrize("dtype", PLAIN, ids=lambda dtype: dtype.name)
def test_samples_and_the_whole_are_what_onnx_ir_reads(dtype: onnx_ir.DataType) -> None:
    elements = 60_000  # whole bytes in every width, and more than a small tensor has
    high = 2 if dtype.name == "BOOL" else 256
    rng = np.random.default_rng(0)
    raw = rng.integers(0, high, elements * dtype.bitwidth // 8, dtype=np.uint8).tobytes()
    proto = onnx.TensorProto(data_type=int(dtype), dims=[200, 300], raw_data=raw)
    expected = onnx_ir.from_proto(proto).numpy()
    source = Memory(b"xyz" + raw)
    tensor = RangedTensor(source, 3, dtype, (200, 300))
    index = (np.array([0, 199, 5, 7]), np.array([0, 299, 7, 5]))
    assert elements_at(tensor, index).tobytes() == expected[index].tobytes()
    assert 0 < source.read_bytes <= 4 * max(3, dtype.bitwidth // 8) or tensor.is_small
    assert tensor.numpy().tobytes() == expected.tobytes()
    assert tensor.tobytes() == raw


def test_samples_of_many_tensors_are_one_reading_and_are_kept() -> None:
    source, tensors = floats(*(normal(seed, 100, 100) for seed in range(5)))
    index = (np.array([1, 50]), np.array([2, 99]))
    prefetch((tensor, index) for tensor in tensors)
    assert (source.calls, source.read_bytes) == (1, 5 * 2 * 4)
    for tensor in tensors:
        elements_at(tensor, index)
    assert source.calls == 1


def test_a_large_tensor_is_fetched_once_and_in_blocks() -> None:
    array = normal(0, 3000, 2000)
    source, (tensor,) = floats(array)
    assert np.array_equal(tensor.numpy(), array)
    assert np.array_equal(tensor.numpy(), array)
    assert tensor.tobytes() == array.tobytes()
    assert source.read_bytes == array.nbytes


def test_no_room_for_a_large_tensor_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (tensor,) = floats(normal(0, 1000, 1000))
    monkeypatch.setattr("tieops.ir.storage.ranged_tensors.tempfile.TemporaryFile", _full)
    with pytest.raises(PreconditionError, match="no disk space to buffer w0 while it is read"):
        tensor.numpy()


def _full(**_: object) -> None:
    raise OSError(28, "No space left on device")


def test_different_tensors_cost_a_few_samples_each() -> None:
    source, tensors = floats(*(normal(seed, 300, 300) for seed in range(10)))
    assert not find_duplicates(stored(tensors))
    assert source.calls == 1
    assert source.read_bytes <= 10 * 2 * 4 * 4  # two orders of axes, four places


@pytest.mark.parametrize("whole", [True, False])
def test_equal_tensors_are_read_whole_or_said_to_be_likely(whole: bool) -> None:
    one = normal(0, 300, 200)
    source, tensors = floats(one, one.T, normal(1, 300, 200))
    (duplicate,) = find_duplicates(stored(tensors), whole=whole)
    assert [each.name for each in duplicate.parameters] == ["w0", "w1"]
    assert duplicate.perms == ((0, 1), (1, 0))
    assert duplicate.wasted_bytes == one.nbytes
    if whole:
        assert (duplicate.evidence, duplicate.held_back) == (Evidence.CONTENT, "")
        assert source.read_bytes >= 2 * one.nbytes
    else:
        assert (duplicate.evidence, duplicate.held_back) == (Evidence.SAMPLES, "not read whole")
        assert source.read_bytes < 1000


def test_small_tensors_are_compared_whole_in_any_case() -> None:
    one = normal(0, 30, 20)
    _, tensors = floats(one, one)
    (duplicate,) = find_duplicates(stored(tensors), whole=False)
    assert duplicate.evidence is Evidence.CONTENT


def test_one_difference_that_no_sample_sees_is_likely_equal_and_found_by_reading_whole() -> None:
    one = normal(0, 300, 200)
    other = one.copy()
    other[17, 23] += 1
    _, tensors = floats(one, other)
    assert len(find_duplicates(stored(tensors), whole=False)) == 1
    assert find_duplicates(stored(tensors)) == ()


def test_two_tensors_of_one_range_are_known_to_be_equal_without_reading() -> None:
    source, (one,) = floats(normal(0, 300, 200))
    other = RangedTensor(source, 0, one.dtype, (300, 200), name="again")
    assert storage_key(one) == storage_key(other)
    for whole in (False, True):
        (duplicate,) = find_duplicates(stored([one, other]), whole=whole)
        assert (duplicate.evidence, duplicate.wasted_bytes) == (Evidence.STORAGE, 0)
    assert source.read_bytes < 1000


def test_scalars_and_empty_tensors() -> None:
    source, tensors = floats(normal(0), normal(1), np.zeros((0, 3), "f4"))
    assert [each.numpy().shape for each in tensors] == [(), (), (0, 3)]
    assert find_duplicates(stored(tensors)) == ()
    assert source.read_bytes <= 16
