"""A Reshape behind a head whose size changes: the old classes keep their places, or it refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from tieops.ir.operators.reshaping_shapes import resized_target
from tieops.ir.operators.shape_rules import output_shapes
from tieops.ir.operators.sizes import NotKnownError, Resized, Size

OLD, NEW = 10, 15


def reshaped(array: np.ndarray, target: list[int]) -> np.ndarray:
    """Reshape as ONNX does: 0 takes the size of the input at that place."""
    return array.reshape([array.shape[at] if size == 0 else size for at, size in enumerate(target)])


def node_of(target: list[int]) -> onnx_ir.Node:
    x = onnx_ir.Value(name="x")
    to = onnx_ir.Value(name="to", const_value=onnx_ir.tensor(np.array(target, np.int64)))
    return onnx_ir.node("Reshape", [x, to])


def drawn(rng: np.random.Generator) -> tuple[list[int], int, list[int]]:
    """Return a shape, the axis of the classes, and sizes that the shape can be reshaped to."""
    rank = int(rng.integers(1, 5))
    axis = int(rng.integers(rank))
    shape = [int(size) for size in rng.choice([1, 2, 3, OLD], rank)]
    shape[axis] = OLD
    before, behind = shape[:axis], shape[axis + 1 :]
    sizes = [_regrouped(rng, before), [OLD], _regrouped(rng, behind)]
    if rng.random() < 0.25:  # mixed with its neighbours
        sizes = [_regrouped(rng, shape), [], []]
    target = [size for part in sizes for size in part]
    for at, size in enumerate(target):
        if at < rank and shape[at] == size and rng.random() < 0.4:
            target[at] = 0
    if target and rng.random() < 0.6:
        target[int(rng.integers(len(target)))] = -1
    return shape, axis, target


def _regrouped(rng: np.random.Generator, sizes: list[int]) -> list[int]:
    kind = rng.integers(4)
    if kind == 0:
        return list(sizes)
    if kind == 1:
        return [int(np.prod(sizes))]
    if kind == 2:
        return [1, *sizes]
    return [size for size in sizes if size != 1]


@pytest.mark.parametrize("known", [True, False], ids=["sizes", "symbols"])
@pytest.mark.parametrize("seed", range(40))
def test_old_classes_stay_where_they_were(seed: int, known: bool) -> None:
    followed = 0
    for count in range(50):
        rng = np.random.default_rng((seed, count))
        shape, axis, target = drawn(rng)
        sizes: list[Size] = [
            size if known or rng.random() < 0.5 else onnx_ir.SymbolicDim(f"s{at}")
            for at, size in enumerate(shape)
        ]
        sizes[axis] = Resized(OLD, NEW)
        try:
            new = resized_target(node_of(target), [sizes, None]) or tuple(target)
            (out,) = output_shapes(node_of(target), [sizes, None])
        except NotKnownError:
            continue
        followed += 1
        old_array = np.arange(np.prod(shape)).reshape(shape)
        more = [*shape[:axis], NEW - OLD, *shape[axis + 1 :]]
        wide = np.concatenate([old_array, np.full(more, -1)], axis)
        spot = next(at for at, size in enumerate(out) if isinstance(size, Resized))
        got = reshaped(wide, list(new))
        want = reshaped(old_array, target)
        assert np.array_equal(np.take(got, range(OLD), spot), want), (shape, axis, target, new)
        told = [size.new if isinstance(size, Resized) else size for size in out]
        assert all(not isinstance(a, int) or a == b for a, b in zip(told, got.shape, strict=True))
    assert followed > 5


@pytest.mark.parametrize(
    ("shape", "target", "new"),
    [
        ([1, OLD, 4, 4], [1, OLD, -1], (1, NEW, -1)),
        (["n", OLD, "h", "w"], [0, OLD, -1], (0, NEW, -1)),
        (["n", OLD, "h", "w"], [0, 0, -1], None),
        ([1, OLD, 4, 4], [1, -1, 16], None),
    ],
)
def test_what_is_left_open_behind_the_classes_takes_what_lies_there(shape, target, new):
    sizes = [onnx_ir.SymbolicDim(each) if isinstance(each, str) else each for each in shape]
    sizes[1] = Resized(OLD, NEW)
    assert resized_target(node_of(target), [sizes, None]) == new


@pytest.mark.parametrize("target", [[OLD, 0, -1], [0, -1, 4], [0, 5, 2, -1], [-1, OLD * 16]])
def test_classes_that_are_mixed_with_others_are_refused(target):
    sizes: list[Size] = [onnx_ir.SymbolicDim("n"), Resized(OLD, NEW), 4, 4]
    with pytest.raises(NotKnownError, match="it reshapes"):
        resized_target(node_of(target), [sizes, None])
