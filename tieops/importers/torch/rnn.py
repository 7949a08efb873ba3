"""Export nn.LSTM, nn.GRU and nn.RNN as one ONNX node per layer, with dynamic batch and length.

``torch.export`` traces ``aten.lstm`` with a fixed number of steps. While :func:`exporting_rnns` is
active, those modules call a custom operator instead, whose shapes depend only on its inputs;
:func:`translations` defines what ``torch.onnx.export`` writes for it. An LSTM with a projection
becomes a Scan, because ONNX's LSTM has no projection. ``rnn_weights`` turns the weights of
the result into ready initializers.

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

import onnx_ir
import onnxscript.evaluator
import torch
from onnxscript import opset18
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tieops.ir.operators.roles import GATE_ORDERS

__all__ = ["exporting_rnns", "translations"]

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
def _fake_lstm(
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
def _fake_rnn(
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


# Traced, its methods take Python lists and whatever the exporter's values are.


def projected_layer(
    data: Any,
    states: Sequence[Any],
    widths: Sequence[int],
    weights: Sequence[Any],
    bias: bool,
    directions: int,
    batch_first: bool,
) -> tuple[Any, ...]:
    """Write one layer of an LSTM with a projection as a Scan for each direction.

    What does not depend on the step before is computed outside of the Scan, for all steps at once.

    Args:
        data: (sequence, batch, input).
        states: h (directions, batch, projection) and c (directions, batch, hidden); none for
            zeros.
        widths: The last sizes of h and c.
        weights: torch's own, one direction after the other.
        bias: Whether there are two biases a direction.
        directions: 1 or 2.
        batch_first: Whether the output begins with the batch.

    Returns:
        The output, (sequence, batch, directions * projection) or batch first, and the last h and c.
    """
    each = len(weights) // directions
    outputs: list[Any] = []
    last: list[tuple[Any, Any]] = []
    for direction in range(directions):
        parts = weights[direction * each : (direction + 1) * each]
        start = [op.Squeeze(_direction(s, direction, directions), [0]) for s in states]
        start = start or [_zero_state(data, width) for width in widths]
        *ends, output = _scan(data, start, parts, bias, is_reverse=direction == 1)
        outputs.append(output)
        last.append((ends[0], ends[1]))
    joined = op.Concat(*outputs, axis=-1) if directions > 1 else outputs[0]
    if batch_first:
        joined = op.Transpose(joined, perm=[1, 0, 2])
    hidden, cell = zip(*last, strict=True)
    return joined, _stacked(hidden), _stacked(cell)


def _zero_state(data: Any, width: int) -> Any:
    sizes = op.Concat(op.Shape(data, start=1, end=2), op.Constant(value_ints=[width]), axis=0)
    return op.Expand(op.CastLike(op.Constant(value_floats=[0.0]), data), sizes)


def _direction(state: Any, direction: int, directions: int) -> Any:
    return state if directions == 1 else op.Slice(state, [direction], [direction + 1], [0])


def _stacked(states: Sequence[Any]) -> Any:
    parts = [op.Unsqueeze(state, [0]) for state in states]
    return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]


def _scan(
    data: Any, start: Sequence[Any], weights: Sequence[Any], bias: bool, *, is_reverse: bool
) -> Sequence[Any]:
    """Return the last h and c, and h of every step."""
    w, r, *biases, projection = weights
    gates = op.MatMul(data, op.Transpose(w, perm=[1, 0]))
    for each in biases if bias else ():
        gates = op.Add(gates, each)
    body = _body(
        op.Transpose(r, perm=[1, 0]), op.Transpose(projection, perm=[1, 0]), projection.dtype
    )
    node = onnx_ir.node(
        "Scan",
        [*start, gates],
        {
            "body": body,
            "num_scan_inputs": 1,
            "scan_input_directions": [int(is_reverse)],
            "scan_output_directions": [int(is_reverse)],
        },
        num_outputs=3,
        version=op.version,
    )
    # An operator with any number of outputs cannot be called through the opset: onnxscript takes
    # the number from the schema.  While a translation runs, its evaluator is torch's recorder.
    recorder: Any = onnxscript.evaluator.default()
    recorder.nodes.append(node)
    return node.outputs


def _body(recurrent: Any, projection: Any, dtype: Any) -> onnx_ir.Graph:
    """Return one step: h and c and the gates' share of the input to h and c, and h again."""
    hidden, cell, gates = (
        onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype)) for name in ("h", "c", "gates")
    )
    nodes: list[onnx_ir.Node] = []

    def call(op_type: str, *inputs: onnx_ir.Value, outputs: int = 1, **attributes: Any) -> Any:
        node = onnx_ir.node(op_type, inputs, attributes, num_outputs=outputs, version=op.version)
        nodes.append(node)
        return node.outputs if outputs > 1 else node.outputs[0]

    summed = call("Add", gates, call("MatMul", hidden, recurrent))
    i, f, g, o = call("Split", summed, outputs=4, axis=-1, num_outputs=4)
    kept = call("Mul", call("Sigmoid", f), cell)
    new_cell = call("Add", kept, call("Mul", call("Sigmoid", i), call("Tanh", g)))
    exposed = call("Mul", call("Sigmoid", o), call("Tanh", new_cell))
    new_hidden = call("MatMul", exposed, projection)
    step = call("Identity", new_hidden)
    return onnx_ir.Graph(
        [hidden, cell, gates], [new_hidden, new_cell, step], nodes=nodes, name="lstm_step"
    )
