"""Views, case by case; what holds for all of them is in tests/properties."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from tieops.ir.view import (
    Cast,
    Dequantize,
    Join,
    Reshape,
    Slice,
    Transpose,
    View,
    permuted,
)


def labelled(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((), ""),
        ((Transpose((1, 0)),), "transpose"),
        ((Transpose((2, 0, 1)),), "transpose[2, 0, 1]"),
        ((Reshape((3, 4)), Transpose((1, 0))), "reshape[3, 4] → transpose"),
        ((Slice(((0, 2, 1), (6, 0, -2))),), "slice[0:2,6:0:-2]"),
        ((Cast(onnx_ir.DataType.BFLOAT16),), "cast bf16"),
        ((Join(0, 1, (4, 2)),), "from 1 on in a concat"),
    ],
)
def test_a_view_prints_its_steps(steps: tuple, text: str) -> None:
    assert str(View((12, 7), steps)) == text


def test_two_transposes_that_cancel_are_no_step() -> None:
    view = View((2, 3, 4)).then(Transpose((2, 0, 1))).then(Transpose((1, 2, 0)))
    assert view.is_identity
    assert view.permutation == (0, 1, 2)


def test_two_transposes_compose_in_the_order_of_reading() -> None:
    array = labelled(2, 3, 4)
    view = View((2, 3, 4)).then(Transpose((1, 0, 2))).then(Transpose((0, 2, 1)))
    assert view.permutation == (1, 2, 0)
    expected = array.transpose(1, 0, 2).transpose(0, 2, 1)
    assert np.array_equal(view.apply(array), expected)


def test_two_reshapes_are_one_and_back_again_none() -> None:
    view = View((2, 6)).then(Reshape((12,))).then(Reshape((3, 4)))
    assert view.steps == (Reshape((3, 4)),)
    assert view.then(Reshape((2, 6))).is_identity


def test_whole_slices_are_no_step() -> None:
    assert View((2, 6)).then(Slice(((0, 2, 1), (0, 6, 1)))).is_identity
    assert not View((2, 6)).then(Slice(((1, -1, -1), (0, 6, 1)))).is_identity


def test_a_slice_may_go_backwards_to_the_first_element() -> None:
    view = View((5,)).then(Slice(((4, -1, -2),)))
    assert view.shape == (3,)
    assert view.apply(labelled(5)).tolist() == [4, 2, 0]


def test_an_empty_slice_overlaps_nothing() -> None:
    empty = View((4,)).then(Slice(((2, 2, 1),)))
    assert empty.elements == 0
    assert not empty.overlaps(View((4,)))
    assert not View((4,)).overlaps(empty)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (((0, 4, 1), (0, 2, 1)), ((4, 8, 1), (0, 2, 1)), False),
        (((0, 5, 1), (0, 2, 1)), ((4, 8, 1), (0, 2, 1)), True),
        (((0, 5, 1), (0, 2, 1)), ((4, 8, 1), (2, 4, 1)), False),
        (((0, 8, 2), (0, 4, 1)), ((1, 8, 2), (0, 4, 1)), False),
        (((0, 8, 2), (0, 4, 1)), ((1, 8, 3), (0, 4, 1)), True),
    ],
)
def test_slices_overlap_where_every_axis_does(one: tuple, other: tuple, share: bool) -> None:
    first, second = (View((8, 4)).then(Slice(each)) for each in (one, other))
    assert first.overlaps(second) is share
    assert second.overlaps(first) is share


@pytest.mark.parametrize(
    "step",
    [
        Slice(((0, 1, 1), (0, 3, 1))),
        Cast(onnx_ir.DataType.FLOAT16),
        Join(0, 0, (4, 3)),
    ],
)
def test_what_drops_or_changes_elements_has_no_inverse(step: Slice | Cast | Join) -> None:
    with pytest.raises(ValueError, match="cannot be undone"):
        View((2, 3)).then(Transpose((0, 1))).then(step).invert()


def test_a_view_applies_to_its_own_shape_only() -> None:
    with pytest.raises(ValueError, match=r"expected an array of shape \(2, 3\), got \(3, 2\)"):
        View((2, 3)).apply(labelled(3, 2))


def test_a_part_of_a_concat_is_shown_and_not_applied() -> None:
    view = View((2, 3)).then(Join(0, 1, (4, 3)))
    assert view.shape == (4, 3)
    with pytest.raises(ValueError, match="without the other parts"):
        view.apply(labelled(2, 3))


def test_applying_a_transpose_copies_nothing() -> None:
    array = labelled(3, 4)
    assert np.shares_memory(View((3, 4)).then(Transpose((1, 0))).apply(array), array)


def test_a_cast_gives_the_other_dtype() -> None:
    view = View((2,)).then(Cast(onnx_ir.DataType.FLOAT))
    seen = view.apply(np.array([1.5, -0.0], "f2"))
    assert seen.dtype == np.float32
    assert seen.tobytes() == np.array([1.5, -0.0], "f4").tobytes()


def dequantize(scale: np.ndarray, zero: np.ndarray | None, axis: int, block: int) -> Dequantize:
    def value(name: str, array: np.ndarray) -> onnx_ir.Value:
        return onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array))

    inputs = [onnx_ir.Value(name="w"), value("scale", scale)]
    inputs += [] if zero is None else [value("zero", zero)]
    node = onnx_ir.node("DequantizeLinear", inputs, {"axis": axis, "block_size": block})
    return Dequantize(node, "scale", None if zero is None else "zero", axis, block)


STORED = np.arange(-6, 6, dtype="i1").reshape(2, 6)


def test_dequantizing_by_one_scale() -> None:
    view = View((2, 6)).then(dequantize(np.array(0.5, "f4"), np.array(3, "i1"), 1, 0))
    assert np.array_equal(view.apply(STORED), (STORED.astype("f4") - 3) * 0.5)


@pytest.mark.parametrize("axis", [0, 1])
def test_dequantizing_along_an_axis(axis: int) -> None:
    scale = np.arange(1, STORED.shape[axis] + 1, dtype="f4")
    view = View((2, 6)).then(dequantize(scale, None, axis, 0))
    along = scale[:, None] if axis == 0 else scale
    assert np.array_equal(view.apply(STORED), STORED * along)


def test_dequantizing_by_blocks() -> None:
    scale = np.array([[1, 2], [3, 4]], "f4")
    view = View((2, 6)).then(dequantize(scale, None, 1, 3))
    assert np.array_equal(view.apply(STORED), STORED * np.repeat(scale, 3, axis=1))


def test_permuted_shapes() -> None:
    assert permuted((2, 3, 4), (2, 0, 1)) == (4, 2, 3)
