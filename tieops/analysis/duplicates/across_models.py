"""Find stored tensors that several models have in common, equal bit for bit as stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.analysis.duplicates.by_content import find_duplicates
from tieops.ir.parameter import Parameter
from tieops.ir.view import Shape

__all__ = ["Member", "find_equal"]


@dataclass(frozen=True, eq=False)
class Member:
    """A stored tensor of one of several models.

    Args:
        model: Which model, counted from 0.
        parameter: The tensor there.
    """

    model: int
    parameter: Parameter


def find_equal(
    models: Sequence[Iterable[onnx_ir.Value]],
    wanted: Callable[[Parameter], bool] = lambda parameter: True,
) -> list[list[Member]]:
    """Find stored tensors of several models that hold the same dtype, shape and bits.

    Their names do not matter. One range of bytes is equal without being read; what else agrees in
    a few elements is compared whole. Equal under another order of axes is not equal here.

    Args:
        models: The initializers of each model; none of them on two lists.
        wanted: Which of them to look at.

    Returns:
        Sets of two or more, the largest tensors first. A set may have several of one model.

    Example:
        >>> import numpy as np
        >>> def stored(name, array):
        ...     return onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        >>> table = np.arange(6.0).reshape(2, 3)
        >>> sets = find_equal([[stored("a", table)], [stored("b", table), stored("c", table.T)]])
        >>> [[(each.model, each.parameter.name) for each in found] for found in sets]
        [[(0, 'a'), (1, 'b')]]
    """
    members: dict[Parameter, Member] = {}
    for index, values in enumerate(models):
        for value in values:
            parameter = Parameter(value)
            if value.const_value is not None and wanted(parameter):
                members[parameter] = Member(index, parameter)
    sets: list[list[Member]] = []
    for duplicate in find_duplicates(members):
        # The first one's axes in the same order, and to the same shape: the same bytes.
        stored: defaultdict[tuple[Shape, Shape], list[Parameter]] = defaultdict(list)
        for parameter, perm in zip(duplicate.parameters, duplicate.perms, strict=True):
            stored[parameter.shape, perm].append(parameter)
        sets += [[members[p] for p in group] for group in stored.values() if len(group) > 1]
    for each in sets:
        each.sort(key=lambda member: member.model)
    return sorted(sets, key=lambda each: -each[0].parameter.nbytes)
