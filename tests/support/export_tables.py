"""torch's table of the operators that it exports, made once for a process.

Each export makes it anew: it reads and parses the source of 500 functions, which takes two thirds
of the time of exporting a small network. It is the same every time; what one export adds goes into
a copy of its own.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.onnx._internal.exporter import _constants, _registration

__all__ = ["keep_tables", "new_table"]

Registry = _registration.ONNXRegistry
new_table: Any = Registry.from_torchlib


@functools.cache
def _kept(opset_version: int) -> _registration.ONNXRegistry:
    return new_table(opset_version=opset_version)


def _from_torchlib(opset_version: int = _constants.TORCHLIB_OPSET) -> _registration.ONNXRegistry:
    kept, own = _kept(opset_version), Registry()
    own._opset_version = kept._opset_version
    own.functions = {target: [*metas] for target, metas in kept.functions.items()}
    return own


def keep_tables() -> None:
    """Let all exports of this process share one table for each opset."""
    Registry.from_torchlib = staticmethod(_from_torchlib)
