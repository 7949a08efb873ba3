"""Parts of one tensor that share elements: the same groups as comparing each with each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.counting import assert_linear
from tieops.ir import overlap
from tieops.ir.overlap import sharing_groups


def compared(parts: list[list[np.ndarray]]) -> list[list[int]]:
    """Return the groups by comparing each with each."""
    groups = [{index} for index in range(len(parts))]
    for one in range(len(parts)):
        for other in range(one):
            if any(np.shares_memory(a, b) for a in parts[one] for b in parts[other]):
                mine, theirs = (next(g for g in groups if i in g) for i in (one, other))
                if mine is not theirs:
                    mine |= theirs
                    groups.remove(theirs)
    return sorted(sorted(group) for group in groups)


@st.composite
def cuts(draw: st.DrawFn, ground: np.ndarray) -> np.ndarray:
    def cut(size: int) -> slice:
        start = draw(st.integers(0, size))
        return slice(start, draw(st.integers(start, size)), draw(st.integers(1, 3)))

    part = ground.reshape(-1) if draw(st.booleans()) else ground
    part = part[tuple(cut(size) for size in part.shape)]
    return part.T[::-1] if draw(st.booleans()) else part


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_groups_are_those_of_comparing_each_with_each(data: st.DataObject) -> None:
    ground = np.empty(data.draw(st.sampled_from([(12,), (6, 5), (3, 4, 2), (1, 7)])), np.uint8)
    part = cuts(ground)
    parts = data.draw(st.lists(st.lists(part, min_size=1, max_size=2), min_size=1, max_size=8))
    assert sharing_groups(parts, ground) == compared(parts)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.slow
def test_a_hundred_thousand_slices_are_sorted_and_not_compared(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_sizes: list[int] = []
    compared_pairs: list[object] = []
    original = overlap._apart

    def apart(cluster: np.ndarray, spans: np.ndarray) -> list[np.ndarray]:
        sorted_sizes.append(len(cluster))
        return original(cluster, spans)

    monkeypatch.setattr(overlap, "_apart", apart)
    monkeypatch.setattr(overlap, "share", lambda *pair: compared_pairs.append(pair))
    ground = np.empty((100_000, 2) if axis == 0 else (2, 100_000), np.uint8)
    slices = [[np.take(ground, [0], axis=axis)[:0]]]
    slices += [[ground[i : i + 1] if axis == 0 else ground[:, i : i + 1]] for i in range(100_000)]
    groups = sharing_groups(slices, ground)
    assert [len(group) for group in groups] == [1] * 100_001
    assert not compared_pairs
    # Each slice is sorted along memory and both axes: once among all of them, once alone.
    assert sum(sorted_sizes) <= 6 * 100_000


def test_a_grid_is_told_apart_by_both_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_COMPARED", 0)
    ground = np.empty((40, 40), np.uint8)
    cells = [[ground[i : i + 2, j : j + 2]] for i in range(0, 40, 2) for j in range(0, 40, 2)]
    assert len(sharing_groups(cells, ground)) == 400


def test_what_is_not_settled_counts_as_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = np.empty(64, np.uint8)
    combs = [[ground[0::4]], [ground[1::4]], [ground[2::4]], [ground[3::8]]]
    assert sharing_groups(combs, ground) == [[0], [1], [2], [3]]
    monkeypatch.setattr(overlap, "MAX_COMPARED", 1)
    assert sharing_groups(combs, ground) == [[0, 1, 2, 3]]


def test_a_part_that_cannot_be_told_shares_with_all() -> None:
    ground = np.empty(8, np.uint8)
    assert sharing_groups([[ground[:2]], [None], [ground[4:]]], ground) == [[0, 1, 2]]


def test_empty_parts_share_nothing() -> None:
    ground = np.empty((4, 4), np.uint8)
    assert sharing_groups([[ground[2:2]], [ground], [ground[2:2]]], ground) == [[0], [1], [2]]
    assert sharing_groups([], ground) == []


MANY: dict[str, Callable[[int, int], slice]] = {
    "apart": lambda i, n: slice(4 * i, 4 * i + 4),
    "one into the next": lambda i, n: slice(3 * i, 3 * i + 4),
    "one within the other": lambda i, n: slice(0, i + 1),
    "each n-th": lambda i, n: slice(i, None, n),
    "each n-th, from two on": lambda i, n: slice(2 * (i // 2), None, n),
    "backwards": lambda i, n: slice(4 * i + 3, 4 * i - 1 if i else None, -1),
}  # fmt: skip


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("columns", [slice(None), slice(1, 3), slice(0, 4, 2)])
def test_work_grows_with_the_parts(kind: str, columns: slice) -> None:
    def parts(count: int) -> tuple[list[list[np.ndarray]], np.ndarray]:
        ground = np.empty((4 * count, 4), np.uint8)
        return [[ground[MANY[kind](i, count), columns]] for i in range(count)], ground

    some, ground = parts(24)
    wanted = compared(some)
    assert sharing_groups(some, ground) == wanted
    assert_linear(lambda size: partial(sharing_groups, *parts(size)), 100)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(*(st.integers(0, 7), st.integers(1, 8), st.integers(1, 3)) * 2),
        min_size=1,
        max_size=8,
    )
)
def test_groups_are_those_of_the_elements(boxes: list[tuple[int, ...]]) -> None:
    ground = np.zeros((8, 8), np.uint8)
    parts = [[ground[a : a + b : c, d : d + e : f]] for a, b, c, d, e, f in boxes]
    assert sharing_groups(parts, ground) == compared(parts)
