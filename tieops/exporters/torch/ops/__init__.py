"""ONNX operators in torch: one table, filled by the modules of this package.

To add an operator, write a function with ``@op("Name")`` in the module of its kind; the arguments
of :func:`~tieops.exporters.torch.ops.registry.op` define how it takes its inputs.
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
