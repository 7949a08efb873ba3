"""Compare two arrays: bit for bit, and within given tolerances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from tieops.errors import PreconditionError

__all__ = ["OutputComparison", "check_tolerances", "compare"]

_Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OutputComparison:
    """How one output of the candidate differs from the reference's.

    Attributes:
        name: The output's name.
        dtype: The reference's dtype.
        shape: The reference's shape.
        elements: How many elements were compared: 0 where dtypes or shapes differ.
        max_abs_diff: The largest absolute difference; infinite where one side alone is NaN or
            infinite; for strings 1 or 0.
        max_rel_diff: ``max_abs_diff`` over the reference's largest finite magnitude. (A
            difference over its own element's magnitude says nothing where that is near zero.)
        bitwise: Whether every byte is equal: +0.0 is not -0.0, and a NaN's payload counts.
        ok: Whether the output is within the tolerances.
        worst: Index of the element that is furthest out of its tolerance (of the one with the
            largest difference, if all are within); None if nothing differs.
        worst_candidate: The candidate's value there, as text.
        worst_reference: The reference's value there, as text.
        mismatch: Why the two could not be compared element by element; empty if they were.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    max_abs_diff: float
    max_rel_diff: float
    bitwise: bool
    ok: bool
    worst: tuple[int, ...] | None = None
    worst_candidate: str = ""
    worst_reference: str = ""
    mismatch: str = ""


def compare(
    candidate: _Array,
    reference: _Array,
    *,
    name: str = "",
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> OutputComparison:
    """Compare two arrays.

    Floats are ok if ``|candidate - reference| <= atol + rtol * |reference|`` everywhere, computed
    in float64; a NaN equals a NaN, an infinity one of the same sign. Integers, booleans and strings
    have to be equal. With ``rtol=0`` and ``atol=0`` every byte has to be.

    Args:
        candidate: Any shape; integers, floats (those of ml_dtypes too), complex, bool or strings.
        reference: What it should be.
        name: The output's name, for the result.
        rtol: Tolerance relative to each element of the reference.
        atol: Absolute tolerance.

    Returns:
        The comparison; of arrays without elements it is ok, with ``elements`` 0.

    Raises:
        PreconditionError: If a tolerance is negative, infinite or NaN.

    Example:
        >>> found = compare(np.float32([0.0, 2.0]), np.float32([-0.0, 2.5]), rtol=0.1)
        >>> found.ok, found.max_abs_diff, found.max_rel_diff, found.worst
        (False, 0.5, 0.2, (1,))
    """
    check_tolerances(rtol, atol)
    a, b = _as_text(candidate), _as_text(reference)
    dtype = "string" if b.dtype.kind == "O" else str(b.dtype)
    mismatch = ""
    if a.dtype != b.dtype:
        mismatch = f"dtype {a.dtype} instead of {dtype}"
    elif a.shape != b.shape:
        mismatch = f"shape {list(a.shape)} instead of {list(b.shape)}"
    if mismatch:
        return OutputComparison(
            name, dtype, b.shape, 0, float("inf"), float("inf"), False, False, mismatch=mismatch
        )
    bitwise = _same_bytes(a, b)
    diff, excess, peak = _differences(a, b, rtol, atol)
    largest = float(diff.max(initial=0.0))
    within = bitwise or (bool(rtol or atol) and not bool((excess > 0).any()))
    found = OutputComparison(
        name, dtype, b.shape, b.size, largest, _ratio(largest, peak), bitwise, within
    )
    if bitwise:
        return found
    flat = int((excess if (excess > 0).any() else diff).argmax())
    if not largest:  # only signs of zero or NaN payloads differ: show one of those
        flat = int(np.flatnonzero(_different_bits(a, b))[0])
    worst = tuple(int(each) for each in np.unravel_index(flat, b.shape))
    return replace(found, worst=worst, worst_candidate=str(a[worst]), worst_reference=str(b[worst]))


def check_tolerances(rtol: float, atol: float) -> None:
    """Raise unless both tolerances mean something.

    Raises:
        PreconditionError: If one is negative, infinite or NaN (within which all would be equal).

    Example:
        >>> check_tolerances(float("nan"), 0.0)
        Traceback (most recent call last):
        tieops.errors.PreconditionError: rtol must be a finite number of at least 0, got nan
          fix: pass a number such as 1e-4; 0 for both compares bit for bit
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, str) or not 0 <= value < float("inf"):
            raise PreconditionError(
                f"{name} must be a finite number of at least 0, got {value}",
                {},
                "pass a number such as 1e-4; 0 for both compares bit for bit",
            )


def _as_text(array: _Array) -> _Array:
    """Return strings of any width as objects, and everything else as it is."""
    return array.astype(object) if array.dtype.kind in "UST" else array


def _same_bytes(a: _Array, b: _Array) -> bool:
    if a.dtype.kind == "O":
        return bool((a == b).all())
    return a.tobytes() == b.tobytes()


def _different_bits(a: _Array, b: _Array) -> _Array:
    size = a.dtype.itemsize
    bits = [np.frombuffer(each.tobytes(), np.uint8).reshape(-1, size) for each in (a, b)]
    return (bits[0] != bits[1]).any(axis=1)


def _differences(a: _Array, b: _Array, rtol: float, atol: float) -> tuple[_Array, _Array, float]:
    """Return each difference, how far it is out of its tolerance, and the reference's peak."""
    if a.dtype.kind == "O":
        diff = np.asarray(a != b).astype(np.float64)
        return diff, diff, 1.0
    if _is_whole(b.dtype):
        diff = _whole_difference(a, b)
        wide = b.astype(np.float64)
        return diff, diff, float(np.abs(wide).max(initial=0.0))
    wide_dtype = np.complex128 if b.dtype.kind == "c" else np.float64
    x, y = a.astype(wide_dtype), b.astype(wide_dtype)
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(invalid="ignore", over="ignore"):
        diff = np.abs(x - y)
        magnitude = np.abs(y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    diff = np.where(finite, diff, np.where(same, 0.0, np.inf))
    excess = diff - (atol + rtol * np.where(finite, magnitude, 0.0))
    return diff, excess, float(magnitude[np.isfinite(magnitude)].max(initial=0.0))


def _is_whole(dtype: np.dtype[Any]) -> bool:
    # The small integers of ml_dtypes are of no integer kind; their names tell.
    return dtype.kind in "iub" or dtype.name.startswith(("int", "uint"))


def _whole_difference(a: _Array, b: _Array) -> _Array:
    """Return the absolute differences of integers, exact before they become floats."""
    if a.dtype.kind not in "iu":
        a, b = a.astype(np.int64), b.astype(np.int64)
    high, low = np.maximum(a, b), np.minimum(a, b)
    # Modulo 2**64 the difference of two 64-bit integers is right, whatever their signs.
    return (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)


def _ratio(diff: float, peak: float) -> float:
    if diff == 0.0:
        return 0.0
    return diff / peak if peak else float("inf")
