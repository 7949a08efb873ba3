"""Translate torch's recurrent operators to ONNX, one node per layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

from tieops.importers.torch.rnn_scan import projected_layer
from tieops.ir.operators.roles import GATE_ORDERS

__all__ = ["state_widths", "translations"]

# Traced, its methods take Python lists and whatever the exporter's values are.
op: Any = opset18

_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "LSTM": {},
    # Torch applies the reset gate to the product with the hidden state, ONNX by default before it.
    "GRU": {"linear_before_reset": 1},
    "RNN_TANH": {"activations": ["Tanh"]},
    "RNN_RELU": {"activations": ["Relu"]},
}


def state_widths(mode: str, weights: Sequence[Any]) -> tuple[int, ...]:
    """Return the last size of each state: h has the projection's, where there is one, c not."""
    recurrent = weights[1].shape
    if mode != "LSTM":
        return (int(recurrent[1]),)
    return int(recurrent[1]), int(recurrent[0]) // len(GATE_ORDERS["LSTM"])


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` that turns recurrent operators into ONNX nodes.

    Ours, and torch's own, which a forward calls by itself (``torch.lstm``) and a program that was
    exported elsewhere has: left to torch's exporter, an LSTM loses its projection.

    Example:
        >>> [str(operator) for operator in translations() if operator.namespace == "tieops"]
        ['tieops.lstm.default', 'tieops.rnn.default']
    """
    aten = torch.ops.aten
    return {
        torch.ops.tieops.lstm.default: functools.partial(_translate, "LSTM"),
        torch.ops.tieops.rnn.default: _translate_rnn,
        aten.lstm.input: functools.partial(_translate_aten, "LSTM"),
        aten.gru.input: functools.partial(_translate_aten, "GRU"),
        aten.rnn_tanh.input: functools.partial(_translate_aten, "RNN_TANH"),
        aten.rnn_relu.input: functools.partial(_translate_aten, "RNN_RELU"),
    }


def _translate_rnn(*args: Any) -> tuple[Any, ...]:
    *rest, mode = args
    return _translate(mode, *rest)


def _translate_aten(
    mode: str,
    data: Any,
    states: Any,
    weights: Sequence[Any],
    bias: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, ...]:
    states = list(states) if mode == "LSTM" else [states]
    return _translate(mode, data, states, weights, bias, num_layers, bidirectional, batch_first)


def _translate(
    mode: str,
    data: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, ...]:
    """Write one node a layer, time first; Y is (sequence, directions, batch, hidden)."""
    directions, each = 1 + bidirectional, len(weights) // num_layers
    is_projected = each // directions > (4 if bias else 2)
    if batch_first:
        data = op.Transpose(data, perm=[1, 0, 2])
    last: list[Sequence[Any]] = []
    for layer in range(num_layers):
        begin, end = [layer * directions], [(layer + 1) * directions]
        one = num_layers == 1
        first = list(states) if one else [op.Slice(s, begin, end, [0]) for s in states]
        parts = weights[layer * each : (layer + 1) * each]
        rest = (bias, directions, batch_first and layer + 1 == num_layers)
        if is_projected:
            widths = state_widths(mode, parts)
            data, *ends = projected_layer(data, first, widths, parts, *rest)
        else:
            data, *ends = _layer(mode, data, first, parts, *rest)
        last.append(ends)
    joined = [s[0] if num_layers == 1 else op.Concat(*s, axis=0) for s in zip(*last, strict=True)]
    return data, *joined


def _layer(
    mode: str,
    data: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    bias: bool,
    directions: int,
    batch_first: bool,
) -> tuple[Any, ...]:
    """Write one layer as one node; its output as torch has it."""
    (hidden, *_) = state_widths(mode, weights)
    slots = _slots(mode, weights, bias, directions, hidden)
    y, *ends = _node(mode, data, states, slots, directions == 2, hidden)
    y = op.Transpose(y, perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3])
    return op.Reshape(y, [0, 0, directions * hidden]), *ends


def _node(
    mode: str,
    data: Any,
    states: Sequence[Any],
    slots: Sequence[Any],
    bidirectional: bool,
    hidden: int,
) -> Sequence[Any]:
    attributes = dict(_ATTRIBUTES[mode])
    if bidirectional and "activations" in attributes:
        attributes["activations"] = attributes["activations"] * 2
    # Between B and the states stands sequence_lens, always left out. Nor is layout=1 used, which
    # ONNX Runtime's CPU provider does not know.
    return getattr(op, mode.partition("_")[0])(
        data,
        *slots,
        None,
        *states,
        hidden_size=hidden,
        direction="bidirectional" if bidirectional else "forward",
        **attributes,
    )


def _slots(
    mode: str, weights: Sequence[Any], bias: bool, directions: int, hidden: int
) -> tuple[Any, Any, Any]:
    """Return W, R and B (or None) of one layer, as chains over torch's own weights."""
    order = GATE_ORDERS[mode.partition("_")[0]]
    each = len(weights) // directions
    stacks: list[list[Any]] = [[], [], []]
    for start in range(0, len(weights), each):
        w, r, *biases = (_gates(part, order, hidden) for part in weights[start : start + each])
        parts = [w, r, op.Concat(*biases, axis=0)] if bias else [w, r]
        for stack, part in zip(stacks, parts, strict=False):
            stack.append(op.Unsqueeze(part, [0]))
    w, r, b = (
        op.Concat(*stack, axis=0) if len(stack) > 1 else (stack or [None])[0] for stack in stacks
    )
    return w, r, b


def _gates(weight: Any, order: Sequence[int], hidden: int) -> Any:
    if len(order) == 1:
        return weight
    gates = [op.Slice(weight, [g * hidden], [(g + 1) * hidden], [0]) for g in order]
    return op.Concat(*gates, axis=0)
