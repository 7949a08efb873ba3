"""Export nn.LSTM, nn.GRU and nn.RNN as one ONNX node per layer, with dynamic batch and length.

``torch.export`` traces ``aten.lstm`` with a fixed number of steps. While :func:`exporting_rnns` is
active, those modules call a custom operator instead, whose shapes depend only on its
inputs; :func:`translations` defines what ``torch.onnx.export`` writes for it, and
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
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tieops.importers.torch.rnn_nodes import state_widths, translations
from tieops.importers.torch.rnn_pack import pack_rnn_weights, unpack

__all__ = ["exporting_rnns", "pack_rnn_weights", "translations", "unpack"]

_KERNELS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}

# --- the operators -----------------------------------------------------------------------------


def _zeros(
    mode: str, data: Tensor, weights: Sequence[Tensor], count: int, batch: int
) -> list[Tensor]:
    return [data.new_zeros(count, batch, width) for width in state_widths(mode, weights)]


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
        states = _zeros("LSTM", data, weights, num_layers * (1 + bidirectional), batch)
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
        states = _zeros(mode, data, weights, num_layers * (1 + bidirectional), batch)
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
    output, hidden, cell = _fake("LSTM", data, weights, num_layers, bidirectional, batch_first)
    return output, hidden, cell


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
    output, hidden = _fake(mode, data, weights, num_layers, bidirectional, batch_first)
    return output, hidden


def _fake(
    mode: str,
    data: Tensor,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    widths, directions = state_widths(mode, weights), 1 + bidirectional
    output = data.new_empty(data.shape[0], data.shape[1], directions * widths[0])
    batch = data.shape[0 if batch_first else 1]
    states = [data.new_empty(num_layers * directions, batch, width) for width in widths]
    return [output, *states]


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

    Left to torch's own forward, so that the length stays what it was traced with: a
    ``PackedSequence``, dropout between layers in training mode, and autocast.

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
    if isinstance(data, PackedSequence):
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
