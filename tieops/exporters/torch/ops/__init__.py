"""ONNX operators in torch: one table, filled by the files of this folder.

A new operator is a function with ``@op("Name")`` in the file of its kind; the arguments of
:func:`~tieops.exporters.torch.ops.registry.op` say how it takes its inputs.
"""

from __future__ import annotations

from tieops.exporters.torch.ops import (
    activation,
    attention,
    cast,
    control,
    conv,
    elementwise,
    index,
    linear,
    loss,
    norm,
    pool,
    quantize,
    random,
    recurrent,
    reduce,
    resize,
    sequence,
    shape,
    signal,
)
from tieops.exporters.torch.ops.registry import Operator, find, operators, snake

__all__ = ["Operator", "find", "operators", "snake"]

_FILES = (
    activation, attention, cast, control, conv, elementwise, index, linear, loss, norm,
    pool, quantize, random, recurrent, reduce, resize, sequence, shape, signal,
)  # fmt: skip
