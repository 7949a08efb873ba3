"""Properties that hold for whatever hypothesis draws: duplicates, views, ties, and joining them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.drawn_graphs import (
    SEEDS,
    Drawn,
    Shape,
    a_range,
    by_hand,
    check_tie,
    factored,
    found_ties,
    graphs,
    one_bit_changed,
)
from tests.support.plain_runtime import PlainRuntime
from tieops.analysis.duplicates import bit_equality as bits
from tieops.analysis.duplicates import by_content as content
from tieops.ir.parameter import Parameter
from tieops.ir.view import Reshape, Slice, Step, Transpose, View

DTYPES = [np.dtype(name) for name in ("f4", "f2", "f8", "i1", "i4", "u8", "?", "c8", "c16")] + [
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn),
    np.dtype(ml_dtypes.int4),
]


def random_bits(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array of any bits: NaNs with payloads, signed zeros and denormals among them."""
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype == ml_dtypes.int4:
        return rng.integers(-8, 8, shape).astype(dtype)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype="u1")
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape).copy()


def permutations_of(rank: int) -> list[Shape]:
    return list(itertools.permutations(range(rank)))


def stored(name: str, array: np.ndarray) -> Parameter:
    tensor = onnx_ir.tensor(array, name=name)
    return Parameter(onnx_ir.Value(name=name, const_value=tensor))


# -- duplicates against brute force ---------------------------------------------------------------


@st.composite
def aliased(draw: st.DrawFn) -> list[np.ndarray]:
    """Draw base tensors with permuted copies and near copies among them, in any order."""
    rng = np.random.default_rng(draw(SEEDS))
    arrays: list[np.ndarray] = []
    for _ in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 4, 5]), max_size=4)))
        dtype = draw(st.sampled_from(DTYPES))
        fill = draw(st.sampled_from(["bits", "bits", "zeros", "mixed"]))
        base = random_bits(rng, shape, dtype)
        if fill == "zeros":
            base = np.zeros(shape, dtype)
        elif fill == "mixed":
            base = rng.choice(np.array([0.0, -0.0, 1.0, np.nan])[:2], shape).astype(dtype)
        arrays.append(base)
        for _ in range(draw(st.integers(0, 3))):
            perm = draw(st.sampled_from(permutations_of(len(shape))))
            copy = np.ascontiguousarray(base.transpose(perm)) if shape else base.copy()
            if draw(st.booleans()):
                position = draw(st.integers(0, base.size - 1))
                copy = one_bit_changed(copy, position, draw(st.integers(0, 63)))
            arrays.append(copy)
    return draw(st.permutations(arrays))


def fitting(one: np.ndarray, other: np.ndarray) -> list[Shape]:
    """Return every order of ``one``'s axes that gives the bytes of ``other``."""
    if one.dtype != other.dtype or one.ndim != other.ndim:
        return []
    return [
        perm
        for perm in permutations_of(one.ndim)
        if one.transpose(perm).shape == other.shape
        and one.transpose(perm).tobytes() == other.tobytes()
    ]


@given(aliased(), st.integers(1, 7))
def test_duplicates_are_what_brute_force_finds(arrays: list[np.ndarray], made_up: int) -> None:
    names = [f"val_{i}" if i % made_up else f"w{i}" for i in range(len(arrays))]
    by_name = dict(zip(names, arrays, strict=True))
    expected: list[list[str]] = []
    for name, array in by_name.items():
        home = next((group for group in expected if fitting(by_name[group[0]], array)), None)
        if home is None:
            expected.append([name])
        else:
            home.append(name)
    found = content.find_duplicates([stored(name, array) for name, array in by_name.items()])
    assert {frozenset(p.name for p in each.parameters) for each in found} == {
        frozenset(group) for group in expected if len(group) > 1
    }
    for duplicate in found:
        first = by_name[duplicate.parameters[0].name]
        own = [p.name for p in duplicate.parameters if p.name.startswith("w")]
        in_order = own or [p.name for p in duplicate.parameters]
        assert duplicate.parameters[0].name == min(in_order, key=names.index)
        for parameter, perm in zip(duplicate.parameters, duplicate.perms, strict=True):
            orders = fitting(first, by_name[parameter.name])
            assert perm in orders
            if tuple(range(first.ndim)) in orders:
                assert perm == tuple(range(first.ndim))
        constant = len({element.tobytes() for element in first.reshape(-1)}) == 1
        assert bool(duplicate.held_back) is (first.size < content.MIN_ELEMENTS or constant)
        assert duplicate.wasted_bytes == sum(p.nbytes for p in duplicate.parameters[1:])


# -- bit_equal ------------------------------------------------------------------------------------

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)
BLOCKS = st.sampled_from([1, 2, 3, 7, 16, 24, 100, 1 << 20])


@given(SHAPES, st.sampled_from(DTYPES), SEEDS, BLOCKS, st.data())
def test_bit_equal_is_equality_of_bytes(
    shape: Shape, dtype: np.dtype[Any], seed: int, block_bytes: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    perm = data.draw(st.sampled_from(permutations_of(len(shape))))
    array = random_bits(rng, shape, dtype)
    # The same elements laid out in another order in memory, seen as a transposed view.
    laid_out = np.ascontiguousarray(array.transpose(perm)) if shape else array.copy()
    view = laid_out.transpose(np.argsort(perm)) if shape else laid_out
    position = data.draw(st.integers(0, array.size - 1))
    changed = one_bit_changed(view, position, data.draw(st.integers(0, 63)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "BLOCK_BYTES", block_bytes)
        patch.setattr(bits, "TILE_BYTES", block_bytes)
        patch.setattr(bits, "LINE_BYTES", max(1, block_bytes // 4))
        assert bits.bit_equal(array, view)
        assert bits.bit_equal(view, array)
        assert not bits.bit_equal(array, changed)
        assert not bits.bit_equal(changed, view)


@given(SHAPES, SHAPES, st.sampled_from(DTYPES), st.sampled_from(DTYPES))
def test_bit_equal_needs_one_shape_and_one_dtype(
    shape: Shape, other: Shape, dtype: np.dtype[Any], other_dtype: np.dtype[Any]
) -> None:
    one, two = np.zeros(shape, dtype), np.zeros(other, other_dtype)
    assert bits.bit_equal(one, two) is (shape == other and dtype == other_dtype)


@given(SHAPES, st.integers(1, 16), BLOCKS)
def test_blocks_cover_every_element_once(shape: Shape, itemsize: int, block_bytes: int) -> None:
    seen = np.zeros(shape, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "BLOCK_BYTES", block_bytes)
        for block in bits.blocks(shape, itemsize):
            assert seen[block].size <= max(1, block_bytes // itemsize)
            seen[block] += 1
    assert (seen == 1).all()


@given(SHAPES.filter(lambda shape: len(shape) > 1), st.integers(1, 16), BLOCKS, st.data())
def test_tiles_cover_every_element_once(
    shape: Shape, itemsize: int, tile_bytes: int, data: st.DataObject
) -> None:
    one, other = data.draw(st.permutations(range(len(shape))))[:2]
    seen = np.zeros(shape, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "TILE_BYTES", tile_bytes)
        for tile in bits._tiles(shape, one, other, itemsize):
            seen[tile] += 1
    assert (seen == 1).all()


# -- views ----------------------------------------------------------------------------------------


@st.composite
def chains(
    draw: st.DrawFn, kinds: Sequence[str] = ("transpose", "reshape", "slice", "strided")
) -> tuple[Shape, list[Step]]:
    """Draw the shape of a parameter and the steps of a view of it."""
    source = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    shape, steps = source, []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(kinds))
        step: Step
        if kind == "transpose":
            step = Transpose(tuple(draw(st.permutations(range(len(shape))))))
        elif kind == "reshape":
            step = Reshape(draw(factored(math.prod(shape))))
        else:
            ranges = [draw(a_range(size, forward=kind == "slice")) for size in shape]
            step = Slice(tuple(ranges))
        steps.append(step)
        shape = step.shape(shape)
    return source, steps


def composed(source: Shape, steps: Iterable[Step]) -> View:
    view = View(source)
    for step in steps:
        view = view.then(step)
    return view


@settings(max_examples=400)
@given(chains())
def test_a_view_applies_as_its_steps_one_by_one(chain: tuple[Shape, list[Step]]) -> None:
    source, steps = chain
    array = np.arange(math.prod(source)).reshape(source)
    view, expected = composed(source, steps), array
    for step in steps:
        expected = by_hand(step, expected)
    assert view.shape == expected.shape
    assert view.elements == expected.size
    assert np.array_equal(view.apply(array), expected)
    assert len(view.steps) <= len(steps)
    if view.permutation is not None:
        assert np.array_equal(array.transpose(view.permutation), expected)
    if view.is_identity:
        assert np.array_equal(expected, array)


@settings(max_examples=400)
@given(chains(("transpose", "reshape")))
def test_a_view_that_drops_nothing_inverts(chain: tuple[Shape, list[Step]]) -> None:
    source, steps = chain
    view = composed(source, steps)
    array = np.arange(math.prod(source)).reshape(source)
    assert np.array_equal(view.invert().apply(view.apply(array)), array)
    assert view.invert().shape == source


def read_by(source: Shape, steps: list[Step]) -> tuple[View, set[int]]:
    view = composed(source, steps)
    labels = np.arange(math.prod(source)).reshape(source)
    return view, set(view.apply(labels).flat)


@settings(max_examples=400)
@given(st.data(), chains())
def test_views_that_share_an_element_overlap(
    data: st.DataObject, chain: tuple[Shape, list[Step]]
) -> None:
    source, steps = chain
    one, mine = read_by(source, steps)
    cut = data.draw(st.integers(0, len(steps)))
    other, others = read_by(source, steps[:cut])
    assert bool(mine & others) <= one.overlaps(other)
    assert one.overlaps(other) == other.overlaps(one)


@settings(max_examples=400)
@given(st.data())
def test_overlap_is_exact_for_slices_of_a_reshaped_tensor(data: st.DataObject) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    found = []
    for _ in range(2):
        ranges = []
        for size in (rows, columns):
            start = data.draw(st.integers(0, size - 1))
            ranges.append(
                (start, data.draw(st.integers(start, size)), data.draw(st.integers(1, 3)))
            )
        found.append(read_by((rows * columns,), [Reshape((rows, columns)), Slice(tuple(ranges))]))
    (one, mine), (other, others) = found
    assert one.overlaps(other) is bool(mine & others)


# -- ties and joining, over whole graphs ----------------------------------------------------------


@given(graphs())
def test_ties_are_the_readers_that_see_a_common_element(drawn: Drawn) -> None:
    assert found_ties(drawn.model()) == drawn.tied("labels")


@given(graphs())
def test_every_slot_sees_the_elements_that_it_reads(drawn: Drawn) -> None:
    labels = {known.name: known.labels for known in drawn.readers.values()}
    sizes = {init.name: tuple(init.dims) for init in drawn.proto.graph.initializer}
    for slot in drawn.model().slots:
        known = drawn.readers[slot.node.outputs[0].name, slot.index]
        shape = sizes[slot.parameter.name]
        first = known.labels.min() // 10_000 * 10_000
        stored_labels = np.arange(math.prod(shape)).reshape(shape) + first
        assert np.array_equal(slot.view.apply(stored_labels), labels[known.name])


@given(graphs(views_first=True))
def test_tie_joins_what_is_equal_and_changes_no_bit(
    plain_runtime: PlainRuntime, drawn: Drawn
) -> None:
    check_tie(drawn, plain_runtime)
