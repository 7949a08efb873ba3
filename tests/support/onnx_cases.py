"""The onnx package's own cases for operators, collected once for a process."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from onnx.backend.test.case import node as node_cases

__all__ = ["onnx_cases"]


@functools.cache
def onnx_cases() -> tuple[Any, ...]:
    """Return all cases; nobody changes them."""
    with warnings.catch_warnings():
        # numpy's, where cases compute infinities and overflow on purpose
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return tuple(node_cases.collect_testcases(None))
