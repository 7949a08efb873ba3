"""Duplicates by content: what is read, how much of it, and how long it takes."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from tests.support.counting import assert_linear
from tieops.analysis.duplicates import bit_equality as bits_module
from tieops.analysis.duplicates import by_content as content
from tieops.analysis.duplicates.bit_equality import bit_equal, bits
from tieops.analysis.duplicates.by_content import find_duplicates, same_range
from tieops.ir.evidence import Evidence
from tieops.ir.parameter import Parameter


class Counted(np.ndarray):
    """An array that counts the elements that are taken out of it and of its views."""

    taken: ClassVar[int] = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        Counted.taken += int(np.size(part))
        return part


class CountedTensor(onnx_ir.Tensor):
    def numpy(self) -> np.ndarray:
        return super().numpy().view(Counted)


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    Counted.taken = 0


def counted(name: str, array: np.ndarray) -> Parameter:
    return Parameter(onnx_ir.Value(name=name, const_value=CountedTensor(array, name=name)))


def stored(name: str, array: np.ndarray) -> Parameter:
    return Parameter(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name)))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def test_different_tensors_cost_their_samples_alone() -> None:
    arrays = [normal(seed, 512, 512) for seed in range(5)]
    assert not find_duplicates([counted(f"w{i}", array) for i, array in enumerate(arrays)])
    orders = 2
    assert 0 < Counted.taken <= len(arrays) * orders * (content.SAMPLES + 2)


def test_a_tensor_without_a_match_in_shape_is_not_looked_at() -> None:
    assert not find_duplicates([counted("w", normal(0, 64, 64)), counted("v", normal(0, 64, 65))])
    assert Counted.taken == 0


def test_a_lazy_tensor_without_a_match_in_shape_is_not_loaded() -> None:
    loaded: list[str] = []

    def load() -> onnx_ir.Tensor:
        loaded.append("w")
        return onnx_ir.Tensor(normal(0, 64, 64))

    lazy = onnx_ir.LazyTensor(
        load, dtype=onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape((64, 64)), name="w"
    )
    parameter = Parameter(onnx_ir.Value(name="w", const_value=lazy))
    assert not find_duplicates([parameter, stored("v", normal(0, 64, 65))])
    assert loaded == []


def test_comparing_stops_at_the_first_block_that_differs() -> None:
    one = normal(0, 2048, 1024)
    other = one.copy()
    places = content._places(one.shape)
    row = next(row for row in range(1, 100) if row not in places[0])
    other[row] += 1
    assert not find_duplicates([counted("w", one), counted("v", other)])
    block = bits_module.BLOCK_BYTES // one.itemsize
    corners, samples = 2 * 2, 2 * (content.SAMPLES + 2)
    assert samples < Counted.taken <= 2 * block + corners + samples


def test_one_difference_that_no_sample_sees_is_found() -> None:
    one = normal(0, 300, 300)
    places = content._places(one.shape)
    row = next(row for row in range(300) if row not in places[0])
    other = one.copy()
    other[row, 7] = np.nextafter(other[row, 7], np.float32(9))
    assert not find_duplicates([stored("w", one), stored("v", other)])
    assert len(find_duplicates([stored("w", one), stored("v", one.copy())])) == 1


@pytest.mark.slow
def test_twenty_thousand_equal_tensors_are_one_duplicate() -> None:
    base = np.arange(64, dtype="f4").reshape(8, 8)

    def parameters(count: int) -> list[Parameter]:
        return [stored(f"w{i}", (base.T if i % 2 else base).copy()) for i in range(count)]

    (duplicate,) = find_duplicates(parameters(20_000))
    assert len(duplicate.parameters) == 20_000
    assert set(duplicate.perms[::2]) == {(0, 1)}
    assert set(duplicate.perms[1::2]) == {(1, 0)}
    assert_linear(lambda count: partial(find_duplicates, parameters(count)), 1000)


def test_many_near_copies_are_not_compared_pair_by_pair() -> None:
    base = normal(0, 128, 128)
    places = content._places(base.shape)
    free = [row for row in range(128) if row not in places[0]]
    near: list[np.ndarray] = []
    for i in range(400):
        array = base.copy()
        array[free[i % len(free)], i // len(free)] = 100 + i
        near.append(array)
    parameters = [counted(f"w{i}", array) for i, array in enumerate(near)]
    parameters.append(counted("again", near[250].copy()))
    (duplicate,) = find_duplicates(parameters)
    assert [each.name for each in duplicate.parameters] == ["w250", "again"]
    # Both orders of axes of each are read a few times, and not once for every other one.
    assert Counted.taken < len(parameters) * base.size * 2 * (content.MAX_REPRESENTATIVES + 4)


@pytest.mark.parametrize("array", [np.array(1.5, "f4"), np.array(1.5, ml_dtypes.bfloat16)])
def test_scalars_compare(array: np.ndarray) -> None:
    assert bit_equal(array, array.copy())
    assert not bit_equal(array, -array)


def test_nothing_equals_nothing_of_the_same_shape() -> None:
    assert bit_equal(np.zeros((0, 3), "f4"), np.zeros((0, 3), "f4"))
    assert not bit_equal(np.zeros((0, 3), "f4"), np.zeros((3, 0), "f4"))


def test_strings_compare_by_value() -> None:
    words = np.array(["a", "bc"], dtype=object)
    assert bit_equal(words, words.copy())
    assert not bit_equal(words, np.array(["a", "bd"], dtype=object))


def test_bits_are_views() -> None:
    array = normal(0, 4, 4)
    assert np.shares_memory(bits(array), array)
    assert bits(np.zeros(3, "c16")).shape == (3, 2)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.ones((16, 16), "f4"), "constant"),
        (np.full((16, 16), np.nan, "f4"), "constant"),
        (np.arange(63, dtype="f4"), "fewer than 64 elements"),
        (np.arange(64, dtype="f4"), ""),
        (np.where(np.arange(64) == 63, -0.0, 0.0).astype("f4"), ""),
    ],
)
def test_what_may_be_equal_by_chance_is_held_back(array: np.ndarray, why: str) -> None:
    (duplicate,) = find_duplicates([stored("w", array), stored("v", array.copy())])
    assert duplicate.held_back == why
    assert duplicate.evidence is Evidence.CONTENT
    assert ("not joined by default" in str(duplicate)) is bool(why)


def test_the_largest_waste_comes_first() -> None:
    small, large = normal(0, 8, 8), normal(1, 80, 8)
    pairs = [stored("a", small), stored("b", large), stored("c", small), stored("d", large)]
    assert [each.parameters[0].name for each in find_duplicates(pairs)] == ["b", "a"]
    assert [each.wasted_bytes for each in find_duplicates(pairs)] == [80 * 8 * 4, 8 * 8 * 4]


def test_above_five_axes_only_the_stored_order_is_compared() -> None:
    array = normal(0, 2, 2, 2, 2, 2, 2)
    swapped = array.transpose(1, 0, 2, 3, 4, 5).copy()
    assert not find_duplicates([stored("w", array), stored("v", swapped)])
    assert len(find_duplicates([stored("w", array), stored("v", array.copy())])) == 1


def test_empty_and_text_tensors_are_no_duplicates() -> None:
    empty = [stored(name, np.zeros((0, 8), "f4")) for name in "ab"]
    words = onnx_ir.StringTensor([b"x"] * 64, shape=onnx_ir.Shape((64,)))
    text = [Parameter(onnx_ir.Value(name=name, const_value=words)) for name in "cd"]
    assert not find_duplicates([*empty, *text])


def external(folder: Any, name: str, offset: int, shape: tuple[int, ...]) -> Parameter:
    tensor = onnx_ir.ExternalTensor(
        "data.bin", offset, int(np.prod(shape)) * 4, onnx_ir.DataType.FLOAT,
        shape=onnx_ir.Shape(shape), name=name, base_dir=str(folder),
    )  # fmt: skip
    return Parameter(onnx_ir.Value(name=name, const_value=tensor))


def test_one_range_of_a_file_is_evidence_of_storage(tmp_path: Any) -> None:
    # Zeros: as content they would be held back; as one range they are one tensor.
    (tmp_path / "data.bin").write_bytes(bytes(2 * 16 * 16 * 4))
    same = [external(tmp_path, name, 0, (16, 16)) for name in "ab"]
    (duplicate,) = find_duplicates(same)
    assert duplicate.evidence is Evidence.STORAGE
    assert duplicate.held_back == ""
    apart = external(tmp_path, "c", 16 * 16 * 4, (16, 16))
    (duplicate,) = find_duplicates([same[0], apart])
    assert duplicate.evidence is Evidence.CONTENT
    assert duplicate.held_back == "constant"
    assert not same_range(same[0].tensor, external(tmp_path, "d", 0, (256,)).tensor)
