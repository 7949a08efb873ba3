"""What several models have in common: equal as stored, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from hypothesis import given
from hypothesis import strategies as st

from tieops.analysis.duplicates.across_models import find_equal

RNG = np.random.default_rng(0)


def stored(array: np.ndarray[Any, Any], name: str = "w") -> onnx_ir.Value:
    return onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))


def found(*models: list[onnx_ir.Value]) -> list[list[tuple[int, str]]]:
    sets = find_equal(models)
    return [[(each.model, each.parameter.name) for each in members] for members in sets]


def test_names_do_not_matter_and_the_largest_comes_first() -> None:
    small, large = RNG.standard_normal((8, 9)), RNG.standard_normal((90, 80))
    one = [stored(small, "a"), stored(large, "b")]
    other = [stored(large, "a"), stored(small, "c")]
    assert found(one, other) == [[(0, "b"), (1, "a")], [(0, "a"), (1, "c")]]


def test_a_transposed_copy_is_another_tensor_here() -> None:
    square = RNG.standard_normal((16, 16))
    turned = np.ascontiguousarray(square.T)
    assert found([stored(square)], [stored(turned)]) == []
    assert found([stored(square)], [stored(turned), stored(turned, "v")]) == [[(1, "w"), (1, "v")]]
    wide = RNG.standard_normal((4, 9))
    assert found([stored(wide)], [stored(np.ascontiguousarray(wide.T))]) == []
    assert found([stored(wide)], [stored(wide.reshape(9, 4))]) == []


def test_bits_decide() -> None:
    zeros = np.zeros((8, 8), np.float32)
    assert found([stored(zeros)], [stored(-zeros)]) == []
    assert found([stored(zeros)], [stored(zeros.view(np.int32))]) == []
    nan = np.full((8, 8), np.nan)
    assert found([stored(nan)], [stored(nan.copy())]) == [[(0, "w"), (1, "w")]]


def test_nothing_in_nothing() -> None:
    assert find_equal([]) == []
    assert find_equal([[], []]) == []
    assert find_equal([[onnx_ir.Value(name="x")]]) == []


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=4), st.booleans())
def test_the_sets_are_those_of_comparing_each_with_each(kinds: list[list[int]], turn: bool) -> None:
    base = np.arange(9.0).reshape(3, 3)
    # The third is the first one turned: equal under another order of axes, and not as stored.
    arrays = [base, base + 1, base.T.copy() if turn else base + 2, np.zeros((3, 3))]
    models = [[stored(arrays[k].copy(), f"{i}") for i, k in enumerate(each)] for each in kinds]
    wanted: dict[int, list[tuple[int, str]]] = {}
    for model, each in enumerate(kinds):
        for i, kind in enumerate(each):
            wanted.setdefault(kind, []).append((model, f"{i}"))
    sets = sorted(members for members in wanted.values() if len(members) > 1)
    assert sorted(sorted(each) for each in found(*models)) == sets
