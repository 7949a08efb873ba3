"""Comparing arrays: bits, tolerances, and what is neither."""

import ml_dtypes
import numpy as np
import pytest

from tieops.errors import PreconditionError
from tieops.verification import compare


def test_bits_and_tolerances_are_told_apart():
    found = compare(np.float32([0.0, 1.0]), np.float32([-0.0, 1.0]))
    assert found.ok
    assert not found.bitwise
    assert (found.max_abs_diff, found.worst, found.worst_reference) == (0, (0,), "-0.0")
    assert not compare(np.float32([0.0]), np.float32([-0.0]), rtol=0, atol=0).ok
    assert compare(np.float32([1.5]), np.float32([1.5]), rtol=0, atol=0).ok
    assert compare(np.float32([1.00001]), np.float32([1.0])).ok
    assert not compare(np.float32([1.001]), np.float32([1.0])).ok


def test_nan_and_infinity():
    nan, inf = float("nan"), float("inf")
    same = np.float32([nan, inf, -inf, 1])
    assert compare(same, same.copy(), rtol=0, atol=0).bitwise
    payload = same.copy()
    payload.view(np.uint32)[0] ^= 1
    found = compare(payload, same)
    assert found.ok
    assert not found.bitwise
    assert found.worst == (0,)
    for a, b in ((nan, 1), (1, nan), (inf, 1), (1, inf), (inf, -inf), (nan, inf)):
        found = compare(np.float32([0, a]), np.float32([0, b]))
        assert not found.ok
        assert (found.max_abs_diff, found.worst) == (inf, (1,))


def test_the_worst_is_the_one_furthest_out_of_tolerance():
    found = compare(np.float64([[1001.0, 0.2]]), np.float64([[1000.0, 0.1]]), rtol=1e-2)
    assert (found.worst, found.worst_candidate, found.worst_reference) == ((0, 1), "0.2", "0.1")
    assert found.max_abs_diff == 1.0
    assert found.max_rel_diff == 1e-3
    assert compare(np.float64([1.0]), np.float64([0.0])).max_rel_diff == float("inf")


@pytest.mark.parametrize(
    ("a", "b", "diff"),
    [
        (np.int64([2**63 - 1, -(2**63)]), np.int64([2**63 - 1, -(2**63) + 1]), 1),
        (np.int64([2**63 - 1]), np.int64([-(2**63)]), 2.0**64),
        (np.uint64([2**64 - 1]), np.uint64([2**64 - 2]), 1),
        (np.int64([50000]), np.int64([50001]), 1),
        (np.bool_([True]), np.bool_([False]), 1),
        (np.array([3], ml_dtypes.int4), np.array([-8], ml_dtypes.int4), 11),
        (np.array(["a", "b"]), np.array(["a", "long"]), 1),
        (np.array(["a"], object), np.array(["b"]), 1),
        (np.array([1.0], ml_dtypes.bfloat16), np.array([2.0], ml_dtypes.bfloat16), 1),
        (np.array([1.0], ml_dtypes.float8_e4m3fn), np.array([2.0], ml_dtypes.float8_e4m3fn), 1),
        (np.float16([65504]), np.float16([-65504]), 131008),
        (np.complex64([1 + 1j]), np.complex64([1 + 3j]), 2),
    ],
)
def test_dtypes(a, b, diff):
    found = compare(a, b)
    assert not found.ok
    assert found.max_abs_diff == diff
    assert compare(b, b.copy(), rtol=0, atol=0).bitwise


def test_shapes_and_dtypes_that_differ_are_facts():
    found = compare(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))
    assert (found.ok, found.mismatch) == (False, "shape [2, 3] instead of [3, 2]")
    found = compare(np.zeros(2, np.float64), np.zeros(2, np.float32))
    assert (found.ok, found.mismatch) == (False, "dtype float64 instead of float32")
    assert found.elements == 0


def test_empty_and_scalar_arrays():
    found = compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert (found.ok, found.bitwise, found.elements) == (True, True, 0)
    found = compare(np.float32(1), np.float32(2))
    assert (found.ok, found.worst) == (False, ())


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_tolerances_within_which_all_is_equal_are_refused(bad):
    with pytest.raises(PreconditionError, match="must be a finite number of at least 0"):
        compare(np.float32([1]), np.float32([2]), rtol=bad)
    with pytest.raises(PreconditionError, match="must be a finite number of at least 0"):
        compare(np.float32([1]), np.float32([2]), atol=bad)
