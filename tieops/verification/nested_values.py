"""Compare outputs that are sequences, maps and optionals, element by element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeGuard, Union

import numpy as np

from tieops.verification.array_comparison import OutputComparison, compare

__all__ = ["Value", "compare_values", "flatten", "leaves_of", "unflatten"]

_Array: TypeAlias = np.ndarray[Any, Any]
Value: TypeAlias = Union["_Array", "Sequence[Value]", "Mapping[str | int, Value]", None]
"""What an output holds: a tensor, a list, a map, or None for an optional without a value."""
_MOST_LEVELS = 8
"""How deep lists and maps may nest; ONNX's types have two levels."""


def compare_values(
    candidate: Value, reference: Value, *, name: str, rtol: float, atol: float
) -> OutputComparison:
    """Compare two outputs; sequences and maps element by element.

    Args:
        candidate: What a model gave.
        reference: What it should be.
        name: The output's name.
        rtol: As for ``compare``.
        atol: As for ``compare``.

    Returns:
        The comparison of all elements together: ``worst`` begins with the place in the sequence,
        or in the reference's map.

    Example:
        >>> ones, twos = np.ones(2, np.float32), np.full(2, 2, np.float32)
        >>> found = compare_values([ones, twos], [ones, ones], name="y", rtol=0.1, atol=0)
        >>> found.dtype, found.shape, found.ok, found.worst, found.max_abs_diff
        ('seq(float32)', (2,), False, (1, 0), 1.0)
        >>> compare_values([ones], [ones, ones], name="y", rtol=0.1, atol=0).mismatch
        '1 element instead of 2'
    """
    if reference is None or candidate is None:
        kind, size = _kind(reference), _size(reference)
        if reference is None and candidate is None:
            return OutputComparison(name, kind, size, 0, 0.0, 0.0, True, True)
        return _other(name, kind, size, f"{_kind(candidate)} instead of {kind}")
    if isinstance(reference, Mapping) and isinstance(candidate, Mapping):
        if candidate.keys() != reference.keys():
            return _other(name, _kind(reference), _size(reference), _keys(candidate, reference))
        pairs = [(candidate[key], each) for key, each in reference.items()]
    elif _is_list(reference) and _is_list(candidate):
        if len(candidate) != len(reference):
            count = f"{len(candidate)} element{'s' * (len(candidate) != 1)}"
            return _other(
                name, _kind(reference), _size(reference), f"{count} instead of {len(reference)}"
            )
        pairs = list(zip(candidate, reference, strict=True))
    elif (
        _is_list(reference)
        or _is_list(candidate)
        or isinstance(reference, Mapping)
        or isinstance(candidate, Mapping)
    ):
        return _other(
            name,
            _kind(reference),
            _size(reference),
            f"{_kind(candidate)} instead of {_kind(reference)}",
        )
    else:
        return compare(
            np.asarray(candidate), np.asarray(reference), name=name, rtol=rtol, atol=atol
        )
    found = [compare_values(a, b, name=name, rtol=rtol, atol=atol) for a, b in pairs]
    return _together(found, name, _kind(reference), _size(reference))


def leaves_of(name: str, value: Value) -> Iterator[tuple[str, _Array]]:
    """Yield the tensors of an output, each with a name; nothing for None.

    Example:
        >>> [leaf for leaf, _ in leaves_of("y", [np.ones(1), {"a": np.ones(2)}])]
        ['y[0]', "y[1]['a']"]
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves_of(f"{name}[{key!r}]", each)
    elif _is_list(value):
        for position, each in enumerate(value):
            yield from leaves_of(f"{name}[{position}]", each)
    elif value is not None:
        yield name, np.asarray(value)


def flatten(value: Value, arrays: list[_Array]) -> Any:
    """Return how a value nests as what JSON can hold, and append its tensors to a list."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {"map": [[key, flatten(each, arrays)] for key, each in value.items()]}
    if _is_list(value):
        return {"list": [flatten(each, arrays) for each in value]}
    arrays.append(np.asarray(value))
    return "tensor"


def unflatten(form: Any, arrays: Iterator[_Array], levels: int = _MOST_LEVELS) -> Value:
    """Return the value that ``flatten`` took apart.

    Raises:
        ValueError: If the form is none of its, or there are fewer tensors.
    """
    if form is None:
        return None
    if form == "tensor":
        found = next(arrays, None)
        if found is not None:
            return found
    elif levels and isinstance(form, dict) and isinstance(form.get("list"), list):
        return [unflatten(each, arrays, levels - 1) for each in form["list"]]
    elif levels and isinstance(form, dict) and isinstance(form.get("map"), list):
        pairs = [(key, unflatten(each, arrays, levels - 1)) for key, each in form["map"]]
        if all(isinstance(key, str | int) for key, _ in pairs):
            return dict(pairs)
    raise ValueError("an output that is neither a tensor, a list nor a map")


def _is_list(value: object) -> TypeGuard[Sequence[Value]]:
    return isinstance(value, list | tuple)


def _kind(value: Value) -> str:
    if value is None:
        return "no value"
    if isinstance(value, Mapping):
        keys = "string" if any(isinstance(key, str) for key in value) else "int64"
        return f"map({keys},{_kind(next(iter(value.values()))) if value else '?'})"
    if _is_list(value):
        return f"seq({_kind(value[0]) if len(value) else '?'})"
    return str(np.asarray(value).dtype)


def _size(value: Value) -> tuple[int, ...]:
    if value is None:
        return ()
    if _is_list(value) or isinstance(value, Mapping):
        return (len(value),)
    return np.asarray(value).shape


def _keys(candidate: Mapping[Any, Any], reference: Mapping[Any, Any]) -> str:
    only = [str(key) for key in candidate if key not in reference]
    missing = [str(key) for key in reference if key not in candidate]
    return (
        f"other keys: {', '.join(only[:4]) or 'none'} instead of {', '.join(missing[:4]) or 'none'}"
    )


def _other(name: str, kind: str, size: tuple[int, ...], mismatch: str) -> OutputComparison:
    inf = float("inf")
    return OutputComparison(name, kind, size, 0, inf, inf, False, False, mismatch=mismatch)


def _together(
    found: Sequence[OutputComparison], name: str, kind: str, size: tuple[int, ...]
) -> OutputComparison:
    whole = OutputComparison(
        name,
        kind,
        size,
        sum(each.elements for each in found),
        max((each.max_abs_diff for each in found), default=0.0),
        max((each.max_rel_diff for each in found), default=0.0),
        all(each.bitwise for each in found),
        all(each.ok for each in found),
    )
    if whole.bitwise:
        return whole
    badness = [(bool(e.mismatch), not e.ok, e.max_abs_diff, not e.bitwise) for e in found]
    at = badness.index(max(badness))
    worst = found[at]
    if worst.mismatch:
        return replace(whole, mismatch=f"at [{at}]: {worst.mismatch}")
    return replace(
        whole,
        worst=(at, *(worst.worst or ())),
        worst_candidate=worst.worst_candidate,
        worst_reference=worst.worst_reference,
    )
