"""Storages: what is a view of what is found exactly, and applied to the base gives its bits."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tieops.importers.torch.storages import Alias, find_aliases
from tieops.ir.view import Join, Transpose, View


def only(**tensors: torch.Tensor) -> Alias:
    (alias,) = find_aliases(tensors)
    return alias


def check(alias: Alias, tensors: dict[str, torch.Tensor]) -> None:
    """Check that the view of the base is the tensor, shape and bits."""
    base, part = tensors[alias.base], tensors[alias.name]
    assert alias.view.source == tuple(base.shape)
    assert alias.view.shape == tuple(part.shape)
    seen = alias.view.apply(base.numpy())
    assert seen.shape == tuple(part.shape)
    assert seen.tobytes() == part.contiguous().numpy().tobytes()


def test_one_tensor_under_two_names():
    w = torch.randn(3, 4)
    alias = only(a=w, b=w)
    assert (alias.name, alias.base, alias.view) == ("b", "a", View((3, 4)))


def test_the_first_of_equal_views_keeps_the_bytes():
    w = torch.randn(3, 4)
    names = ["z", "a", "m"]
    aliases = find_aliases({name: w.view(3, 4) for name in names})
    assert [(alias.name, alias.base) for alias in aliases] == [("a", "z"), ("m", "z")]


def test_a_transposed_view():
    w = torch.randn(3, 4)
    alias = only(a=w, b=w.t())
    assert alias.view.steps == (Transpose((1, 0)),)
    assert alias.view.permutation == (1, 0)


def test_three_axes_in_another_order():
    w = torch.randn(2, 3, 4)
    assert only(a=w, b=w.permute(2, 0, 1)).view.permutation == (2, 0, 1)
    # The first one is the base, whatever its strides are.
    assert only(b=w.permute(2, 0, 1), a=w).view.permutation == (1, 2, 0)


def test_rows_columns_steps_and_one_element():
    w = torch.arange(24.0).reshape(4, 6)
    parts = [w[1:3], w[:, 2:5], w[::2, 1::3], w[2], w[:, 3], w[1:2, 2:3], w[3, 5], w.t()[1:4]]
    for part in parts:
        check(only(a=w, b=part), {"a": w, "b": part})


def test_a_reshaped_part_of_a_flat_buffer():
    flat = torch.randn(60)
    parts = {"a": flat, "b": flat[:12].view(3, 4), "c": flat[12:36].view(2, 3, 4), "d": flat[36:]}
    aliases = find_aliases(parts)
    assert [alias.name for alias in aliases] == ["b", "c", "d"]
    for alias in aliases:
        assert alias.base == "a"
        check(alias, parts)


def test_the_largest_is_the_base_wherever_it_stands():
    w = torch.randn(4, 6)
    alias = only(part=w[:2], whole=w)
    assert (alias.name, alias.base) == ("part", "whole")


def test_an_address_alone_is_no_tie():
    flat = torch.randn(24)
    disjoint = {"a": flat[:12].view(3, 4), "b": flat[12:].view(3, 4)}
    assert find_aliases(disjoint) == []
    overlapping = {"a": flat[:12].view(3, 4), "b": flat[6:18].view(3, 4)}
    assert find_aliases(overlapping) == []
    same_start = {"a": flat[:12].view(3, 4), "b": flat[:8].view(4, 2)}
    for alias in find_aliases(same_start):
        check(alias, same_start)
    # One range as two shapes that differ in more than their axes is one range nevertheless.
    reshaped = {"a": flat.view(4, 6), "b": flat.view(8, 3)}
    check(only(**reshaped), reshaped)


def test_one_range_as_two_dtypes_is_no_tie():
    w = torch.randn(8)
    assert find_aliases({"a": w, "b": w.view(torch.int32)}) == []


def test_expanded_tensors_are_left_alone_or_exact():
    w = torch.randn(1, 4)
    tensors = {"a": w, "b": w.expand(3, 4)}
    for alias in find_aliases(tensors):
        check(alias, tensors)


def test_empty_scalar_and_meta_tensors_are_no_trouble():
    empty, scalar = torch.empty(0, 3), torch.tensor(1.0)
    assert find_aliases({"a": empty, "b": empty}) == []
    assert find_aliases({"a": torch.empty(3, device="meta"), "b": torch.ones(3)}) == []
    assert only(a=scalar, b=scalar).view.is_identity
    sparse = torch.eye(3).to_sparse()
    assert find_aliases({"a": sparse, "b": sparse}) == []


def test_equal_values_in_two_storages_are_no_tie():
    w = torch.randn(3, 4)
    assert find_aliases({"a": w, "b": w.clone()}) == []
    assert find_aliases({}) == []


@st.composite
def views(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """Return a random view of a tensor: slices, orders of axes, reshapes, expansions."""
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["slice", "permute", "reshape", "expand", "index", "squeeze"]))
        if kind == "slice" and tensor.dim():
            axis = draw(st.integers(0, tensor.dim() - 1))
            size = tensor.shape[axis]
            start = draw(st.integers(0, max(size - 1, 0)))
            stop = draw(st.integers(start, size))
            step = draw(st.integers(1, 3))
            tensor = tensor[(slice(None),) * axis + (slice(start, stop, step),)]
        elif kind == "permute" and tensor.dim() > 1:
            tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
        elif kind == "reshape" and tensor.is_contiguous() and tensor.numel():
            inner = draw(st.sampled_from([n for n in range(1, 7) if tensor.numel() % n == 0]))
            tensor = tensor.view(-1, inner)
        elif kind == "expand" and tensor.dim() < 4:
            tensor = tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape)
        elif kind == "index" and tensor.dim() and tensor.shape[0]:
            tensor = tensor[draw(st.integers(0, tensor.shape[0] - 1))]
        elif kind == "squeeze":
            tensor = tensor.squeeze()
    return tensor


@st.composite
def families(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Return tensors, some of them views of common storages, under shuffled names."""
    storages = [
        torch.arange(24 * k, 24 * (k + 1), dtype=torch.float32).reshape(draw(SHAPES))
        for k in range(draw(st.integers(1, 2)))
    ]
    tensors = [draw(views(draw(st.sampled_from(storages)))) for _ in range(draw(st.integers(1, 6)))]
    names = draw(st.permutations([f"t{i}" for i in range(len(tensors))]))
    return dict(zip(names, tensors, strict=True))


SHAPES = st.sampled_from([(24,), (4, 6), (2, 3, 4), (1, 24), (24, 1), (2, 1, 12)])


@given(families())
def test_every_view_that_is_found_gives_the_bits_of_its_tensor(tensors):
    aliases = find_aliases(tensors)
    named = [alias.name for alias in aliases]
    assert len(named) == len(set(named))
    for alias in aliases:
        assert alias.base not in named  # a base is stored: no chain of aliases
        assert not any(isinstance(step, Join) for step in alias.view.steps)
        check(alias, tensors)
    assert named == [name for name in tensors if name in named]


@given(families())
def test_dense_tensors_over_one_range_are_always_tied(tensors):
    """The oracle: equal offset, equal sizes and strides up to the order of axes."""

    def place(tensor: torch.Tensor) -> object:
        strided = zip(tensor.shape, tensor.stride(), strict=True)
        axes = sorted(pair for pair in strided if pair[0] != 1)
        return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(axes)

    def dense(tensor: torch.Tensor) -> bool:
        """Tell whether the tensor reads each element of its range exactly once."""
        if not tensor.numel():
            return False
        read = torch.arange(10_000).as_strided(tensor.shape, tensor.stride()).flatten().tolist()
        return sorted(read) == list(range(tensor.numel()))

    bases = {alias.name: alias.base for alias in find_aliases(tensors)}
    for one, first in tensors.items():
        for other, second in tensors.items():
            if one != other and dense(first) and place(first) == place(second):
                assert bases.get(one, one) == bases.get(other, other)
