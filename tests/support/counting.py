"""How much work something is, counted and not timed: the same on every machine.

Only what Python calls is counted. What is quadratic within one call of C (a tuple that grows by
being copied, a search in a list) shows in ``python -m tests.benchmarks.growth``, which times it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["assert_linear", "calls"]


def calls(work: Callable[[], object]) -> int:
    """Return how many Python functions are called by some work."""
    count = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def assert_linear(work_of: Callable[[int], Callable[[], object]], size: int) -> None:
    """Assert that twice the size is about twice the work, and not four times.

    Args:
        work_of: Returns the work for a size; what it does before is not counted.
        size: The smaller of the two sizes.
    """
    work_of(size)()  # what is imported or cached at first use
    once, twice = calls(work_of(size)), calls(work_of(2 * size))
    assert once > size
    assert twice < 2.2 * once, f"{size}: {once} calls, {2 * size}: {twice}"
