"""Equality bit for bit: every single position counts, in every dtype and order of axes."""

from __future__ import annotations

import itertools
import tracemalloc

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from tieops.analysis.duplicates import bit_equality as module
from tieops.analysis.duplicates.bit_equality import Packed, bit_equal, unsigned

FLOATS = ["f2", "f4", "f8", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
DTYPES = [*FLOATS, "c8", "c16", "?", "i1", "u2", "i8", ml_dtypes.int4]


def random(dtype: object, *shape: int) -> np.ndarray:
    dtype = np.dtype(dtype)  # type: ignore[call-overload]
    rng = np.random.default_rng(0)
    if dtype.kind == "b" or dtype == ml_dtypes.int4:
        return rng.integers(0, 2, shape).astype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def changed(array: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    """Return a copy with one bit of one element turned."""
    other = array.copy()
    other.view("u1").reshape(*array.shape, -1)[(*place, -1)] ^= 1
    return other


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BLOCK_BYTES", "TILE_BYTES", "LINE_BYTES"):
        monkeypatch.setattr(module, name, 16)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_difference_at_any_place_is_found_in_every_order(dtype: object) -> None:
    array = random(dtype, 3, 5, 4)
    for order in itertools.permutations(range(3)):
        moved = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
        assert bit_equal(array, moved)
        for place in np.ndindex(*array.shape):
            assert not bit_equal(changed(array, place), moved), (order, place)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_nans_differ_by_their_bits(dtype: object) -> None:
    zeros = np.zeros((70, 90), dtype)  # type: ignore[call-overload]
    assert not bit_equal(zeros, (-zeros).T.copy().T)
    nans = np.full((70, 90), np.nan, zeros.dtype)
    assert bit_equal(nans, nans.T.copy().T)
    assert not bit_equal(nans, changed(nans, (69, 89)).T.copy().T)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("shape", [(5, 7), (4, 6), (3, 5, 7), (1, 9), (9,)])
def test_packed_elements_are_those_that_onnx_ir_unpacks(width: int, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    data = np.frombuffer(np.random.default_rng(1).bytes(-(-size * width // 8)), np.uint8)
    dtype = {2: onnx_ir.DataType.UINT2, 4: onnx_ir.DataType.UINT4}[width]
    whole = onnx_ir.PackedTensor(data, dtype, shape=onnx_ir.Shape(shape)).numpy().view("u1")
    packed = Packed(data, width, shape)
    everything = tuple(slice(None) for _ in shape)
    assert (packed[everything] == whole).all()
    for order in itertools.permutations(range(len(shape))):
        turned = packed.transpose(order)
        assert turned.shape == whole.transpose(order).shape
        assert (turned[everything] == whole.transpose(order)).all()
        assert (turned[1:3] == whole.transpose(order)[1:3]).all()
        places = tuple(np.array([0, size - 1]) for size in turned.shape)
        assert (turned[places] == whole.transpose(order)[places]).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", [(5, 7), (4, 6)])
def test_packed_elements_compare_in_every_order_and_not_beside_the_last(
    shape: tuple[int, int],
) -> None:
    values = np.random.default_rng(2).integers(0, 16, shape).astype(np.uint8)

    def packed(array: np.ndarray, filling: int = 0) -> Packed:
        flat = np.append(array.reshape(-1), np.full(array.size % 2, filling, np.uint8))
        return Packed(flat[::2] | flat[1::2] << 4, 4, array.shape)

    one, turned = packed(values), packed(values.T.copy(), 9).transpose((1, 0))
    assert bit_equal(one, packed(values, 9))
    assert bit_equal(one, turned)
    for place in np.ndindex(*shape):
        other = values.copy()
        other[place] ^= 8
        assert not bit_equal(packed(other), one)
        assert not bit_equal(packed(other), turned)


def test_unsigned_views_keep_shape_and_memory_whatever_the_strides() -> None:
    for dtype in ("f4", "c16", ml_dtypes.bfloat16):
        array = random(dtype, 6, 4).T[::2]
        view = unsigned(array)
        assert view.shape == array.shape
        assert np.shares_memory(view, array)


def test_a_transposed_comparison_takes_no_second_copy() -> None:
    array = random("f4", 1024, 2048)
    other = array.T.copy().T
    tracemalloc.start()
    assert bit_equal(array, other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARED_BYTES", 0)
    monkeypatch.setattr(module, "BLOCKS_A_TURN", 3)
    monkeypatch.setattr(module, "processors", lambda: 3)


@pytest.mark.usefixtures("small_tiles", "threads")
def test_threads_find_a_difference_at_any_place() -> None:
    array = random("f4", 9, 14)
    turned = array.T.copy().T
    assert bit_equal(array, array.copy())
    assert bit_equal(array, turned)
    for place in np.ndindex(*array.shape):
        assert not bit_equal(changed(array, place), turned), place
        assert not bit_equal(changed(array, place), array), place


@pytest.mark.usefixtures("small_tiles", "threads")
def test_threads_stop_soon_after_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    original = module._equal_at

    def equal_at(one: np.ndarray, other: np.ndarray, cut: tuple[slice, ...]) -> bool:
        compared.append(cut)
        return original(one, other, cut)

    monkeypatch.setattr(module, "_equal_at", equal_at)
    array = random("f4", 100, 100)
    assert not bit_equal(array, changed(array, (0, 0)))
    assert len(compared) < 100 < array.nbytes / module.BLOCK_BYTES


@pytest.mark.usefixtures("small_tiles", "threads")
def test_what_fails_in_a_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "_equal_at", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        bit_equal(random("f4", 9, 14), random("f4", 9, 14))
