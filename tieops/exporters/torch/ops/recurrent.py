"""LSTM, GRU and RNN: torch's kernels where they compute the same, otherwise step by step.

Weights arrive as torch stores them, a tuple of parts, or as ONNX packs them, one tensor whose gates
are reordered by views. Either way, gradients flow to the one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.registry import op
from tieops.ir.operators.roles import GATE_ORDERS

Weights = Tensor | tuple[Tensor, ...]

_KERNELS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "Tanh": torch.rnn_tanh,
    "Relu": torch.rnn_relu,
}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ACTIVATIONS: dict[str, Callable[[Tensor, float | None, float | None], Tensor]] = {
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "relu": lambda x, a, b: torch.relu(x),
    "affine": lambda x, a, b: (a or 0) * x + (b or 0),
    "leakyrelu": lambda x, a, b: functional.leaky_relu(x, 0.01 if a is None else a),
    "thresholdedrelu": lambda x, a, b: torch.where(x > (1.0 if a is None else a), x, 0),
    "scaledtanh": lambda x, a, b: (a or 0) * torch.tanh((b or 0) * x),
    "hardsigmoid": lambda x, a, b: torch.clamp(
        (0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1
    ),
    "elu": lambda x, a, b: functional.elu(x, 1.0 if a is None else a),
    "softsign": lambda x, a, b: functional.softsign(x),
    "softplus": lambda x, a, b: functional.softplus(x),
}


def torch_parts(weight: Tensor, op_type: str) -> tuple[Tensor, ...]:
    """Take W, R or B of ONNX apart into torch's parts, by views and one reordering of gates.

    Args:
        weight: W or R, (directions, gates * hidden, columns), or B, (directions, 2 * gates *
            hidden).
        op_type: ``LSTM``, ``GRU`` or ``RNN``.

    Returns:
        One part a direction, two for B: (gates * hidden, columns) or (gates * hidden,).
    """
    order = GATE_ORDERS[op_type]
    halves = weight.reshape(-1, weight.shape[-1] // 2) if weight.dim() == 2 else weight
    parts: list[Tensor] = []
    for half in halves:
        gates = half.chunk(len(order), 0)
        # order[i] says which of torch's gates is the i-th of ONNX's: the inverse is wanted here.
        back = sorted(range(len(order)), key=order.__getitem__)
        parts.append(torch.cat([gates[i] for i in back], 0) if len(order) > 1 else half)
    return tuple(parts)


def onnx_packed(parts: Sequence[Tensor], op_type: str, slot: str) -> Tensor:
    """Put torch's parts together as ONNX packs them: the inverse of :func:`torch_parts`."""
    order = GATE_ORDERS[op_type]
    stacked = [torch.cat([part.chunk(len(order), 0)[i] for i in order], 0) for part in parts]
    if slot != "B":
        return torch.stack(stacked)
    return torch.stack(stacked).reshape(len(parts) // 2, -1)


def _as_parts(weight: Weights | None, op_type: str) -> tuple[Tensor, ...]:
    if weight is None:
        return ()
    return weight if isinstance(weight, tuple) else torch_parts(weight, op_type)


@op("LSTM", many=True)
def lstm(
    x: Tensor,
    w: Weights,
    r: Weights,
    b: Weights | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Y, Y_h and Y_c."""
    cell = _Cell("LSTM", activations, activation_alpha, activation_beta, clip)
    cell.peepholes, cell.coupled = peepholes, bool(input_forget)
    states = [initial_h, initial_c]
    y, ends = _layer(cell, x, (w, r, b), sequence_lens, states, direction, layout)
    return y, ends[0], ends[1]


@op("GRU", many=True)
def gru(
    x: Tensor,
    w: Weights,
    r: Weights,
    b: Weights | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return Y and Y_h."""
    cell = _Cell("GRU", activations, activation_alpha, activation_beta, clip)
    cell.resets_product = bool(linear_before_reset)
    y, ends = _layer(cell, x, (w, r, b), sequence_lens, [initial_h], direction, layout)
    return y, ends[0]


@op("RNN", many=True)
def rnn(
    x: Tensor,
    w: Weights,
    r: Weights,
    b: Weights | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return Y and Y_h."""
    cell = _Cell("RNN", activations, activation_alpha, activation_beta, clip)
    y, ends = _layer(cell, x, (w, r, b), sequence_lens, [initial_h], direction, layout)
    return y, ends[0]


class _Cell:
    """What one step of a layer computes, in torch's order of gates."""

    def __init__(
        self,
        op_type: str,
        activations: Sequence[str],
        alpha: Sequence[float],
        beta: Sequence[float],
        clip: float | None,
    ) -> None:
        self.op_type = op_type
        self.names = tuple(activations) or _DEFAULTS[op_type]
        self.alpha, self.beta, self.clip = alpha, beta, clip
        self.peepholes: Tensor | None = None
        self.coupled = False
        self.resets_product = op_type != "GRU"

    def kernel(self) -> Callable[..., Any] | None:
        """Return torch's kernel if it computes just this."""
        plain = _DEFAULTS[self.op_type]
        if self.clip is not None or self.peepholes is not None or self.coupled:
            return None
        if not self.resets_product:
            return None
        if self.op_type == "RNN":
            name = self.names[0]
            return _KERNELS.get(name) if len(set(self.names)) == 1 else None
        return _KERNELS[self.op_type] if self.names in (plain, plain * 2) else None

    def activate(self, which: int, direction: int, x: Tensor) -> Tensor:
        """Apply the activation of one gate in one direction."""
        place = which + direction * len(_DEFAULTS[self.op_type])
        place = place if place < len(self.names) else which
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        numbers = [each[place] if place < len(each) else None for each in (self.alpha, self.beta)]
        return _ACTIVATIONS[self.names[place].lower()](x, *numbers)

    def step(
        self, x: Tensor, states: list[Tensor], weights: tuple[Tensor, Tensor | None], direction: int
    ) -> list[Tensor]:
        """Return the next states: from x, (batch, gates * hidden), which is multiplied already."""
        recurrent, bias = weights
        if self.op_type == "LSTM":
            return self._lstm(x + functional.linear(states[0], recurrent, bias), states, direction)
        if self.op_type == "RNN":
            product = functional.linear(states[0], recurrent, bias)
            return [self.activate(0, direction, x + product)]
        return self._gru(x, states[0], recurrent, bias, direction)

    def _lstm(self, gates: Tensor, states: list[Tensor], direction: int) -> list[Tensor]:
        enter, forget, change, leave = gates.chunk(4, -1)
        old = states[1]
        if self.peepholes is not None:
            to_enter, to_leave, to_forget = self.peepholes[direction].chunk(3)
            enter, forget = enter + to_enter * old, forget + to_forget * old
        else:
            to_leave = None
        enter = self.activate(0, direction, enter)
        forget = 1 - enter if self.coupled else self.activate(0, direction, forget)
        new = forget * old + enter * self.activate(1, direction, change)
        if to_leave is not None:
            leave = leave + to_leave * new
        out = self.activate(0, direction, leave)
        place = 2 + direction * 3 if len(self.names) > 3 else 2
        numbers = [each[place] if place < len(each) else None for each in (self.alpha, self.beta)]
        return [out * _ACTIVATIONS[self.names[place].lower()](new, *numbers), new]

    def _gru(
        self, x: Tensor, state: Tensor, recurrent: Tensor, bias: Tensor | None, direction: int
    ) -> list[Tensor]:
        x_reset, x_update, x_new = x.chunk(3, -1)
        r_reset, r_update, r_new = recurrent.chunk(3, 0)
        biases = bias.chunk(3) if bias is not None else (None, None, None)
        reset = x_reset + functional.linear(state, r_reset, biases[0])
        update = x_update + functional.linear(state, r_update, biases[1])
        reset, update = self.activate(0, direction, reset), self.activate(0, direction, update)
        if self.resets_product:
            product = reset * functional.linear(state, r_new, biases[2])
        else:
            product = functional.linear(reset * state, r_new, biases[2])
        new = self.activate(1, direction, x_new + product)
        return [(1 - update) * new + update * state]


def _layer(
    cell: _Cell,
    x: Tensor,
    packed: tuple[Weights, Weights, Weights | None],
    lengths: Tensor | None,
    initial: list[Tensor | None],
    direction: str,
    layout: int,
) -> tuple[Tensor, list[Tensor]]:
    """Run a layer: x is (sequence, batch, input), Y (sequence, directions, batch, hidden)."""
    if layout:
        x, initial = x.transpose(0, 1), [s if s is None else s.transpose(0, 1) for s in initial]
    w, r, b = (_as_parts(each, cell.op_type) for each in packed)
    directions, hidden = len(w), r[0].shape[-1]
    zeros = x.new_zeros(directions, x.shape[1], hidden)
    states = [zeros if s is None else s for s in initial]
    kernel = cell.kernel() if lengths is None else None
    if kernel is None:
        y, ends = _by_steps(cell, x, (w, r, b), lengths, states, direction)
    else:
        parts = [p for i in range(directions) for p in (w[i], r[i], *b[2 * i : 2 * i + 2])]
        back = direction == "reverse"
        y, *ends = _by_kernel(cell, kernel, x.flip(0) if back else x, states, parts, bool(b))
        y = (y.flip(0) if back else y).unflatten(-1, (directions, hidden)).transpose(1, 2)
    if layout:
        return y.permute(2, 0, 1, 3), [end.transpose(0, 1) for end in ends]
    return y, ends


def _by_kernel(
    cell: _Cell,
    kernel: Callable[..., Any],
    x: Tensor,
    states: list[Tensor],
    parts: list[Tensor],
    bias: bool,
) -> tuple[Tensor, ...]:
    both = states[0].shape[0] == 2
    if torch.compiler.is_exporting():
        # Torch's kernel would fix the number of steps; the operator that from_torch exports by
        # leaves it open.
        if cell.op_type == "LSTM":
            return torch.ops.tieops.lstm(x, states, parts, bias, 1, both, False)
        mode = {"GRU": "GRU", "RNN": f"RNN_{cell.names[0].upper()}"}[cell.op_type]
        return torch.ops.tieops.rnn(x, states, parts, bias, 1, both, False, mode)
    given = states if cell.op_type == "LSTM" else states[0]
    return kernel(x, given, parts, bias, 1, 0.0, False, both, False)


def _by_steps(
    cell: _Cell,
    x: Tensor,
    weights: tuple[tuple[Tensor, ...], ...],
    lengths: Tensor | None,
    initial: list[Tensor],
    direction: str,
) -> tuple[Tensor, list[Tensor]]:
    w, r, b = weights
    outputs: list[Tensor] = []
    ends: list[list[Tensor]] = []
    for i in range(len(w)):
        back = direction == "reverse" or i == 1
        data = functional.linear(x, w[i], b[2 * i] if b else None)
        states = [state[i] for state in initial]
        found: list[Tensor] = []
        for t in reversed(range(x.shape[0])) if back else range(x.shape[0]):
            new = cell.step(data[t], states, (r[i], b[2 * i + 1] if b else None), i)
            out = new[0]
            if lengths is not None:
                runs = (lengths > t).unsqueeze(-1)
                new = [torch.where(runs, a, old) for a, old in zip(new, states, strict=True)]
                out = torch.where(runs, out, 0)
            states = new
            found.append(out)
        outputs.append(torch.stack(found[::-1] if back else found))
        ends.append(states)
    return torch.stack(outputs, 1), [torch.stack(each) for each in zip(*ends, strict=True)]
