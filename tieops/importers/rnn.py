"""How nn.LSTM, nn.GRU and nn.RNN leave torch: one ONNX node a layer, batch and length dynamic.

``torch.export`` traces ``aten.lstm`` with a fixed number of steps. While :func:`exporting_rnns` is
active, those modules call an operator of ours instead, whose shapes depend on nothing but its
inputs; :func:`translations` tells ``torch.onnx.export`` what to write for it, and
:func:`pack_rnn_weights` turns the weights of the result into ready initializers.

Example:
    >>> import torch
    >>> net = torch.nn.LSTM(3, 4).eval()
    >>> with exporting_rnns(net):
    ...     program = torch.export.export(net, (torch.zeros(5, 2, 3),))
    >>> [str(node.target) for node in program.graph.nodes if "tieops" in str(node.target)]
    ['tieops.lstm.default']
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from onnxscript import opset18
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tieops.importers._rnn_pack import pack_rnn_weights, unpack
from tieops.ir.operators.roles import GATE_ORDERS

__all__ = ["exporting_rnns", "pack_rnn_weights", "translations", "unpack"]

# Traced, its methods take Python lists and whatever the exporter's values are.
op: Any = opset18

_KERNELS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "LSTM": {},
    # Torch applies the reset gate to the product with the hidden state, ONNX by default before it.
    "GRU": {"linear_before_reset": 1},
    "RNN_TANH": {"activations": ["Tanh"]},
    "RNN_RELU": {"activations": ["Relu"]},
}


# --- the operators -----------------------------------------------------------------------------


def _zeros(data: Tensor, weights: Sequence[Tensor], layers: int, directions: int, batch: int):
    return data.new_zeros(layers * directions, batch, weights[1].shape[-1])


@torch.library.custom_op("tieops::lstm", mutates_args=())
def _lstm(
    data: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = data.shape[0 if batch_first else 1]
    if not states:
        states = [_zeros(data, weights, num_layers, 1 + bidirectional, batch)] * 2
    found = _KERNELS["LSTM"](
        data, states, weights, bias, num_layers, 0.0, False, bidirectional, batch_first
    )
    # The fake promises dense outputs; with batch_first torch returns a transposed one.
    return found[0].contiguous(), found[1].contiguous(), found[2].contiguous()


@torch.library.custom_op("tieops::rnn", mutates_args=())
def _rnn(
    data: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    mode: str,
) -> tuple[Tensor, Tensor]:
    batch = data.shape[0 if batch_first else 1]
    if not states:
        states = [_zeros(data, weights, num_layers, 1 + bidirectional, batch)]
    found = _KERNELS[mode](
        data, states[0], weights, bias, num_layers, 0.0, False, bidirectional, batch_first
    )
    return found[0].contiguous(), found[1].contiguous()


@_lstm.register_fake
def _(
    data: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    output, hidden = _fake(data, weights, num_layers, bidirectional, batch_first)
    return output, hidden, torch.empty_like(hidden)


@_rnn.register_fake
def _(
    data: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    mode: str,
) -> tuple[Tensor, Tensor]:
    return _fake(data, weights, num_layers, bidirectional, batch_first)


def _fake(
    data: Tensor, weights: Sequence[Tensor], num_layers: int, bidirectional: bool, batch_first: bool
) -> tuple[Tensor, Tensor]:
    directions, hidden = 1 + bidirectional, weights[1].shape[-1]
    output = data.new_empty(data.shape[0], data.shape[1], directions * hidden)
    batch = data.shape[0 if batch_first else 1]
    return output, data.new_empty(num_layers * directions, batch, hidden)


# --- the modules, while they are exported ------------------------------------------------------

_lock = threading.Lock()
_active: dict[int, int] = {}  # id of a module -> how many contexts hold it
_originals: dict[type[nn.RNNBase], Callable[..., Any]] = {}


@contextmanager
def exporting_rnns(module: nn.Module) -> Generator[None]:
    """Make the nn.LSTM, nn.GRU and nn.RNN inside of a module exportable with any length.

    Their forward calls ``tieops::lstm`` or ``tieops::rnn`` for as long as the context is active;
    the modules themselves are not touched, and others of the same class run as ever. Contexts may
    nest. Without such a module inside, nothing happens at all.

    Left to torch's own forward, so that the length stays what it was traced with: ``proj_size``,
    a ``PackedSequence``, dropout between layers in training mode, and autocast.

    Args:
        module: The module about to be exported, or anything around it.
    """
    rnns = [m for m in module.modules() if isinstance(m, (nn.LSTM, nn.GRU, nn.RNN))]
    if not rnns:
        yield
        return
    _enter(rnns)
    try:
        yield
    finally:
        _leave(rnns)


def _enter(rnns: Sequence[nn.RNNBase]) -> None:
    with _lock:
        for rnn in rnns:
            _active[id(rnn)] = _active.get(id(rnn), 0) + 1
        if _originals:
            return
        # The class is patched, not the instance: a subclass that calls super().forward() is
        # reached, one that does not keeps its own, and no state_dict or pickle sees a trace of it.
        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            _originals[kind] = kind.forward
            kind.forward = _patched(kind.forward)


def _leave(rnns: Sequence[nn.RNNBase]) -> None:
    with _lock:
        for rnn in rnns:
            _active[id(rnn)] -= 1
            if not _active[id(rnn)]:
                del _active[id(rnn)]
        if not _active:
            for kind, original in _originals.items():
                kind.forward = original
            _originals.clear()


def _patched(original: Callable[..., Any]) -> Callable[..., Any]:
    # Torch binds dynamic_shapes to the names in forward's signature: keep torch's.
    @functools.wraps(original)
    def forward(self: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        if id(self) in _active and _is_ours(self, input, hx):
            return _forward(self, input, hx)
        return original(self, input, hx)

    return forward


def _states(module: nn.RNNBase, hx: Any) -> tuple[Tensor, ...]:
    if hx is None:
        return ()
    return tuple(hx) if isinstance(module, nn.LSTM) else (hx,)


def _is_ours(module: nn.RNNBase, data: Any, hx: Any) -> bool:
    if isinstance(data, PackedSequence) or module.proj_size:
        return False
    if module.training and module.dropout and module.num_layers > 1:
        return False
    # What torch refuses goes to torch, for its own message.
    if data.dim() not in (2, 3) or any(s.dim() != data.dim() for s in _states(module, hx)):
        return False
    # Under autocast aten.lstm casts the weights; an operator of ours would mix two dtypes.
    return not torch.is_autocast_enabled(data.device.type)


def _forward(module: nn.RNNBase, data: Tensor, hx: Any) -> tuple[Tensor, Any]:
    """Do what torch's forward does, with our operator in the place of its kernel."""
    batch_dim = 0 if module.batch_first else 1
    states, is_batched = _states(module, hx), data.dim() == 3
    if not is_batched:
        data, states = data.unsqueeze(batch_dim), tuple(s.unsqueeze(1) for s in states)
    if states:
        given = states if isinstance(module, nn.LSTM) else states[0]
        module.check_forward_args(data, given, None)  # pyright: ignore[reportArgumentType]
    else:
        module.check_input(data, None)
    # By name, not from _flat_weights: those would be lifted as constants without a name.
    names = module._flat_weights_names  # pyright: ignore[reportPrivateUsage]
    weights = [getattr(module, name) for name in names]
    options = (module.bias, module.num_layers, module.bidirectional, module.batch_first)
    if isinstance(module, nn.LSTM):
        found = torch.ops.tieops.lstm(data, states, weights, *options)
    else:
        found = torch.ops.tieops.rnn(data, states, weights, *options, module.mode)
    output, *last = found
    if not is_batched:
        output, last = output.squeeze(batch_dim), [state.squeeze(1) for state in last]
    return output, tuple(last) if isinstance(module, nn.LSTM) else last[0]


# --- the ONNX nodes ----------------------------------------------------------------------------


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` that turns our operators into ONNX nodes.

    Example:
        >>> sorted(str(operator) for operator in translations())
        ['tieops.lstm.default', 'tieops.rnn.default']
    """
    return {
        torch.ops.tieops.lstm.default: _translate_lstm,
        torch.ops.tieops.rnn.default: _translate,
    }


def _translate_lstm(*args: Any) -> tuple[Any, ...]:
    return _translate(*args, mode="LSTM")


def _translate(
    data: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    mode: str,
) -> tuple[Any, ...]:
    """Write one node a layer, time first; Y is (sequence, directions, batch, hidden)."""
    directions, hidden = 1 + bidirectional, int(weights[1].shape[-1])
    each = len(weights) // num_layers
    if batch_first:
        data = op.Transpose(data, perm=[1, 0, 2])
    last: list[Sequence[Any]] = []
    for layer in range(num_layers):
        begin = [layer * directions]
        first = [op.Slice(s, begin, [begin[0] + directions], [0]) for s in states]
        y, *ends = _node(
            mode,
            data,
            first if num_layers > 1 else states,
            _slots(mode, weights[layer * each : (layer + 1) * each], bias, directions, hidden),
            bidirectional,
            hidden,
        )
        last.append(ends)
        time_first = not batch_first or layer + 1 < num_layers
        y = op.Transpose(y, perm=[0, 2, 1, 3] if time_first else [2, 0, 1, 3])
        data = op.Reshape(y, [0, 0, directions * hidden])
    joined = [s[0] if num_layers == 1 else op.Concat(*s, axis=0) for s in zip(*last, strict=True)]
    return data, *joined


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
