"""nn.LSTM, nn.GRU and nn.RNN leave torch as one node a layer, with ready weights."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import tieops
from tieops.errors import PreconditionError
from tieops.importers.torch.rnn import exporting_rnns, translations
from tieops.importers.torch.rnn_weights import pack_rnn_weights, unpack
from tieops.ir.metadata import keys as names

# Said by torch's own forward, once a process.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not:UserWarning")

RNNS = ("LSTM", "GRU", "RNN")
MOVES = {"Slice", "Concat", "Split", "Unsqueeze"}


class Net(nn.Module):
    """An RNN called ``rnn`` whose outputs all come out flat."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = getattr(nn, kind)(3, 4, **options)

    def forward(self, x: torch.Tensor, h: Any = None, c: Any = None) -> tuple[torch.Tensor, ...]:
        output, last = self.rnn(x, h if c is None else (h, c))
        return output, *(last if isinstance(last, tuple) else (last,))


def to_onnx(net: nn.Module, args: tuple[Any, ...], dims: Any = None) -> onnx_ir.Model:
    with exporting_rnns(net), warnings.catch_warnings():
        # Torch 2.13 copies its own pytree specs in a way that it deprecates itself.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)
        # Its renaming of axes says so where two of them have one name, as x and the states do.
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        program = torch.onnx.export(
            net.eval(),
            args,
            dynamic_shapes=dims,
            dynamo=True,
            optimize=False,
            verbose=False,
            custom_translation_table=translations(),
        )
    assert program is not None
    return program.model


def run(model: onnx_ir.Model, *args: torch.Tensor) -> list[np.ndarray]:
    data = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, (a.numpy() for a in args), strict=True)))


def assert_same(model: onnx_ir.Model, net: nn.Module, *args: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = net(*args)
    found = run(model, *args)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == tuple(other.shape)
        assert np.abs(one - other.numpy()).max() < 1e-5


def rnn_nodes(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [node for node in model.graph if node.op_type in RNNS]


def stored_names(model: onnx_ir.Model) -> set[str]:
    return set(model.graph.initializers)


def stored_shapes(model: onnx_ir.Model) -> list[tuple[int | str | None, ...]]:
    return [v.shape.numpy() for v in model.graph.initializers.values() if v.shape is not None]


def packed(value: onnx_ir.Value | None) -> dict[str, Any]:
    assert value is not None
    assert value.is_initializer()
    return json.loads(value.metadata_props[names.PACKED])


CASES = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"bias": False, "bidirectional": True}),
    ("LSTM", {"num_layers": 2, "bias": False, "batch_first": True}),
    ("GRU", {"batch_first": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"bias": False}),
    ("RNN", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("RNN", {"bias": False}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2, "batch_first": True}),
]
IDS = ["-".join([kind, *(f"{k}={v}" for k, v in options.items())]) for kind, options in CASES]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=IDS)
@pytest.mark.slow
def test_any_batch_and_length(kind: str, options: dict[str, Any]) -> None:
    net = Net(kind, **options)
    model = to_onnx(net, (torch.randn(5, 2, 3),), ({0: "a", 1: "b"},))
    assert pack_rnn_weights(model) == []
    for sizes in ((5, 2), (1, 1), (1, 6), (7, 1), (3, 9)):
        assert_same(model, net, torch.randn(*sizes, 3))

    nodes = rnn_nodes(model)
    assert len(nodes) == options.get("num_layers", 1)
    bidirectional = options.get("bidirectional", False)
    for node in nodes:
        assert node.op_type == kind
        direction = node.attributes["direction"].as_string()
        assert direction == ("bidirectional" if bidirectional else "forward")
        assert "'rnn'" in node.metadata_props["pkg.torch.onnx.name_scopes"]
        assert len(node.inputs) == (4 if options.get("bias", True) else 3)
        for value in node.inputs[1:]:
            assert packed(value)["op"] == kind
    # What is left of those ops joins the last states, and moves no weight.
    for node in model.graph:
        if node.op_type in MOVES:
            assert not any(value and value.is_initializer() for value in node.inputs)
            assert node.op_type == "Concat"
    # Every initializer is a packed one, and holds the parameters exactly.
    back: dict[str, np.ndarray] = {}
    for value in model.graph.initializers.values():
        about = packed(value)
        assert value.name == about["parts"][0]
        assert value.const_value is not None
        back |= unpack(value.const_value.numpy(), about["op"], about["slot"], about["parts"])
    assert set(back) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor.numpy())


@pytest.mark.parametrize("kind", RNNS)
@pytest.mark.slow
def test_initial_states(kind: str) -> None:
    net = Net(kind, num_layers=2, bidirectional=True)
    count = 2 if kind == "LSTM" else 1

    def args(length: int, batch: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(length, batch, 3), *(torch.randn(4, batch, 4) for _ in range(count))

    dims = ({0: "length", 1: "batch"}, *({1: "batch"},) * count)
    model = to_onnx(net, args(5, 2), dims)
    assert pack_rnn_weights(model) == []
    assert len(rnn_nodes(model)) == 2
    for sizes in ((5, 2), (1, 1), (4, 3)):
        assert_same(model, net, *args(*sizes))


@pytest.mark.parametrize(("kind", "batch_first"), [("LSTM", True), ("GRU", False)])
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.slow
def test_unbatched(kind: str, batch_first: bool, with_states: bool) -> None:
    net = Net(kind, bidirectional=True, batch_first=batch_first)
    count = (2 if kind == "LSTM" else 1) * with_states
    states = tuple(torch.randn(2, 4) for _ in range(count))
    dims = ({0: "length"}, *(None,) * count)
    model = to_onnx(net, (torch.randn(5, 3), *states), dims)
    assert pack_rnn_weights(model) == []
    for length in (5, 1, 8):
        assert_same(model, net, torch.randn(length, 3), *states)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_packed_bit_for_bit(dtype: torch.dtype) -> None:
    net = Net("LSTM").to(dtype)
    model = to_onnx(net, (torch.randn(5, 2, 3, dtype=dtype), *torch.zeros(2, 1, 2, 4, dtype=dtype)))
    assert pack_rnn_weights(model) == []
    for value in model.graph.initializers.values():
        about = packed(value)
        assert value.const_value is not None
        parts = unpack(value.const_value.numpy(), about["op"], about["slot"], about["parts"])
        for name, part in parts.items():
            wanted = net.state_dict()[name].view(torch.uint8).numpy()
            np.testing.assert_array_equal(np.ascontiguousarray(part).view(np.uint8), wanted)


# --- projections -------------------------------------------------------------------------------

PROJECTED = [
    ({}, True),
    ({"bidirectional": True, "batch_first": True}, False),
    ({"num_layers": 2}, False),
    ({"num_layers": 2, "bidirectional": True, "bias": False}, True),
]


@pytest.mark.parametrize(("options", "with_states"), PROJECTED, ids=str)
@pytest.mark.slow
def test_a_projection_is_kept_with_any_batch_and_length(options, with_states, tmp_path) -> None:
    """ONNX's LSTM has none, and torch's exporter drops it."""
    net = Net("LSTM", proj_size=2, **options).eval()
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))

    def args(first: int, second: int) -> tuple[torch.Tensor, ...]:
        batch = first if options.get("batch_first") else second
        states = (torch.randn(count, batch, 2), torch.randn(count, batch, 4)) * with_states
        return torch.randn(first, second, 3), *states

    dims = ({0: "a", 1: "b"}, *({1: "batch"}, {1: "batch"}) * with_states)
    model = tieops.from_torch(net, args(5, 3), dynamic_shapes=dims if with_states else dims[:1])
    parameters = dict(net.named_parameters())
    stored = {name: v.const_value for name, v in model.ir.graph.initializers.items()}
    for name, parameter in parameters.items():
        assert stored[name].tobytes() == parameter.detach().numpy().tobytes()
    session = tieops.session(tieops.to_onnx(model, tmp_path / "m.onnx"), "cpu")
    inputs = [value.name for value in model.inputs]
    back = tieops.to_torch(model)
    assert set(back.state_dict()) == set(parameters)
    for sizes in ((5, 3), (1, 1), (2, 7)):
        given = args(*sizes)
        wanted = net(*given)
        found = session.run_tensors(dict(zip(inputs, given, strict=True)))
        torch.testing.assert_close(tuple(found.values()), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(back(*given), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_projections_that_two_modules_share_are_one_tensor() -> None:
    net = nn.Sequential(Taken(nn.LSTM(2, 4, proj_size=2)), Taken(nn.LSTM(2, 4, proj_size=2)))
    net[1].rnn.weight_hr_l0 = net[0].rnn.weight_hr_l0
    model = tieops.from_torch(net.eval(), torch.randn(5, 3, 2))
    assert {"0.rnn.weight_hr_l0", "1.rnn.weight_hr_l0"} in [{*tie.names} for tie in model.ties]
    assert tieops.verify(model, against=net, rtol=1e-4)
    twice = Two(rnn := nn.LSTM(4, 6, proj_size=4), rnn)
    assert tieops.verify(tieops.from_torch(twice.eval(), torch.randn(5, 2, 4)), against=twice)


class Taken(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


class Called(nn.Module):
    """torch's own functions, called as a forward of one's own would."""

    def __init__(self, kind: str, width: int = 4, **options: Any) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        module = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
        self.rnn = module(3, width, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rnn = self.rnn
        weights = [getattr(rnn, name) for name in rnn._flat_weights_names]
        states = [x.new_zeros(1, x.shape[1], n) for n in (rnn.proj_size or self.width, self.width)]
        given = states if self.kind == "lstm" else states[1]
        function = getattr(torch._VF, self.kind)
        return function(x, given, weights, rnn.bias, 1, 0.0, False, False, False)[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lstm", {"proj_size": 2}),
        ("lstm", {"proj_size": 2, "bias": False}),
        ("lstm", {}),
        ("gru", {"bias": False}),
        ("rnn_tanh", {}),
        ("rnn_relu", {}),
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_function_of_torch_and_a_program_keep_all_weights(kind, options) -> None:
    net = Called(kind, **options).eval()
    x = torch.randn(5, 2, 3)
    for source, args in ((net, (x,)), (torch.export.export(net, (x,)), ())):
        model = tieops.from_torch(source, args)
        named = set()
        for value in model.ir.graph.initializers.values():
            named |= set(names.packed_parts(value)) or {value.name}
        assert set(net.state_dict()) <= named
        assert tieops.verify(model, against=net, rtol=1e-4)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.slow
def test_cells_keep_all_weights(cell, bias) -> None:
    net = cell(3, 4, bias=bias).eval()
    model = tieops.from_torch(net, torch.randn(2, 3), dynamic_shapes=({0: "batch"},))
    assert set(net.state_dict()) <= set(model.ir.graph.initializers)
    assert tieops.verify(model, against=net, rtol=1e-4)


# --- the context -------------------------------------------------------------------------------


def test_restores_after_an_error_and_when_nested() -> None:
    net = Net("LSTM")
    before = nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward
    keys = list(net.state_dict())

    def fail() -> None:
        with exporting_rnns(net):
            with exporting_rnns(net.rnn):
                assert nn.LSTM.forward is not before[0]
            assert nn.LSTM.forward is not before[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward) == before
    assert list(net.state_dict()) == keys
    assert "forward" not in vars(net.rnn)


def test_overlapping_contexts() -> None:
    # As two threads would leave them: not in the order they were entered.
    before = nn.LSTM.forward
    one, two = exporting_rnns(Net("LSTM")), exporting_rnns(Net("GRU"))
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert nn.LSTM.forward is not before
    two.__exit__(None, None, None)
    assert nn.LSTM.forward is before


def test_nothing_happens_without_an_rnn() -> None:
    before = nn.LSTM.forward
    with exporting_rnns(nn.Linear(2, 2)):
        assert nn.LSTM.forward is before


@pytest.mark.parametrize("kind", RNNS)
def test_runs_eagerly_inside(kind: str) -> None:
    net = Net(kind, num_layers=2, bidirectional=True, batch_first=True).eval()
    x = torch.randn(2, 5, 3)
    wanted = net(x)
    with exporting_rnns(net):
        for one, other in zip(net(x), wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("batch_first", [False, True])
def test_operators_keep_the_rules_of_torch_library(batch_first: bool) -> None:
    for kind, operator in (("LSTM", torch.ops.tieops.lstm), ("GRU", torch.ops.tieops.rnn)):
        rnn = Net(kind, bidirectional=True, batch_first=batch_first).rnn
        weights = [weight.detach() for weight in rnn.parameters()]
        mode = () if kind == "LSTM" else (rnn.mode,)
        args = (torch.randn(5, 2, 3), [], weights, True, 1, True, batch_first, *mode)
        torch.library.opcheck(operator.default, args, test_utils=("test_schema", "test_faketensor"))


def operators(net: nn.Module, *args: Any) -> set[str]:
    with exporting_rnns(net), warnings.catch_warnings():
        # Torch's own forward, which assigns _flat_weights, is warned about by torch's own export.
        warnings.filterwarnings("ignore", ".*_flat_weights.* were assigned", UserWarning)
        program = torch.export.export(net, args)
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_what_stays_with_torch() -> None:
    x = torch.randn(5, 2, 3)
    assert "tieops.lstm.default" in operators(Net("LSTM").eval(), x)
    dropout = Net("LSTM", num_layers=2, dropout=0.5)
    assert not any("tieops" in each for each in operators(dropout, x))
    assert "tieops.lstm.default" in operators(dropout.eval(), x)
    assert "tieops.lstm.default" in operators(Net("LSTM", proj_size=2).eval(), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not any("tieops" in each for each in operators(Net("LSTM").eval(), x))


def test_packed_sequences_and_refusals_stay_torchs_own() -> None:
    rnn = nn.LSTM(3, 4).eval()
    x = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 3]))
    wanted = rnn(x)[0].data
    with exporting_rnns(rnn):
        torch.testing.assert_close(rnn(x)[0].data, wanted, rtol=0, atol=0)
        with pytest.raises(ValueError, match="Expected input to be 2D or 3D"):
            rnn(torch.randn(3))
        with pytest.raises(RuntimeError, match="should also be 3-D"):
            rnn(torch.randn(5, 2, 3), (torch.zeros(1, 4), torch.zeros(1, 4)))
        with pytest.raises(RuntimeError, match=r"input\.size"):
            rnn(torch.randn(5, 2, 9))
        with pytest.raises(RuntimeError, match="Expected hidden"):
            rnn(torch.randn(5, 2, 3), (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)))


def test_a_subclass_that_calls_super_is_reached() -> None:
    class First(nn.GRU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    assert "tieops.rnn.default" in operators(First(3, 4).eval(), torch.randn(5, 2, 3))


# --- ties --------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two square RNNs after each other, and a Linear at the end."""

    def __init__(self, first: nn.Module, second: nn.Module, rows: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.fc = first, second, nn.Linear(4, rows)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.fc(self.second(self.first(x)[0])[0]),)


def export_two(net: nn.Module) -> tuple[onnx_ir.Model, list[str]]:
    model = to_onnx(net, (torch.randn(5, 2, 4),), {"x": {0: "length", 1: "batch"}})
    left = pack_rnn_weights(model)
    assert_same(model, net, torch.randn(3, 1, 4))
    return model, left


@pytest.mark.slow
def test_a_module_called_twice_has_one_of_each() -> None:
    rnn = nn.LSTM(4, 4)
    model, left = export_two(Two(rnn, rnn))
    one, other = rnn_nodes(model)
    assert left == []
    assert one.inputs[1:] == other.inputs[1:]
    assert len(model.graph.initializers) == 5


def test_tied_weights_of_two_modules_are_stored_once() -> None:
    net = Two(nn.GRU(4, 4), nn.GRU(4, 4))
    net.second.weight_ih_l0 = net.first.weight_ih_l0
    net.second.bias_ih_l0, net.second.bias_hh_l0 = net.first.bias_ih_l0, net.first.bias_hh_l0
    model, left = export_two(net)
    one, other = rnn_nodes(model)
    assert left == []
    assert one.inputs[1] is other.inputs[1]
    assert one.inputs[2] is not other.inputs[2]
    assert one.inputs[3] is other.inputs[3]


def test_one_square_weight_as_w_and_r() -> None:
    net = Two(nn.LSTM(4, 4), nn.LSTM(4, 4))
    net.first.weight_hh_l0 = net.first.weight_ih_l0
    model, left = export_two(net)
    node = rnn_nodes(model)[0]
    assert left == []
    assert node.inputs[1] is node.inputs[2]


def test_half_a_tied_bias_keeps_both_chains() -> None:
    net = Two(nn.LSTM(4, 4), nn.LSTM(4, 4))
    net.second.bias_ih_l0 = net.first.bias_ih_l0
    model, left = export_two(net)
    assert len(left) == 2
    for line in left:
        assert " B: " in line
        assert "bias_ih_l0 is arranged in another way for LSTM" in line
    biases = {name for name in stored_names(model) if ".bias_" in name}
    assert len(biases) == 3


def test_a_weight_tied_to_a_linear_stays_one_tensor() -> None:
    net = Two(nn.LSTM(4, 4), nn.LSTM(4, 4))
    net.fc.weight = net.first.weight_ih_l0
    model, left = export_two(net)
    assert len(left) == 1
    assert " W: " in left[0]
    assert "is also read by MatMul" in left[0]
    shapes = stored_shapes(model)
    assert shapes.count((16, 4)) == 1
    assert shapes.count((1, 16, 4)) == 3


class Three(Two):
    """A third RNN, and a product with one half of the first one's weights in place of fc."""

    def __init__(self) -> None:
        super().__init__(nn.RNN(4, 4, bidirectional=True), nn.RNN(8, 4))
        self.third = nn.RNN(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        y = self.second(self.first(x)[0])[0]
        return (self.third(y)[0] @ self.first.weight_ih_l0,)


def test_a_slot_that_stays_keeps_what_shares_with_it() -> None:
    # The product keeps the forward half, so the slot stays, so its reverse half stays a tensor of
    # its own, so the third RNN, which reads only that half in an arrangement of its own, stays.
    net = Three()
    net.third.weight_ih_l0 = net.first.weight_ih_l0_reverse
    model, left = export_two(net)
    assert len(left) == 2
    assert {line.split()[2] for line in left} == {"W:"}
    assert stored_shapes(model).count((4, 4)) == 2


def test_half_a_pair_of_directions_keeps_both_chains() -> None:
    net = Three()
    net.third.weight_hh_l0 = net.first.weight_hh_l0
    model, left = export_two(net)
    # And the W of the first, which the product reads.
    assert sorted(line.split()[2] for line in left) == ["R:", "R:", "W:"]
    assert sum("arranged in another way" in line for line in left) == 2
    # Both halves of R and of W of the first; the second's R and the third's W are (1, 4, 4).
    assert stored_shapes(model).count((4, 4)) == 4


def test_another_gate_order_keeps_both_chains() -> None:
    net = Two(nn.LSTM(4, 3), nn.GRU(3, 4))
    shared = nn.Parameter(torch.randn(12, 3))
    net.first.weight_hh_l0 = shared
    net.second.weight_ih_l0 = shared
    model, left = export_two(net)
    assert len(left) == 2
    assert all("arranged in another way" in line for line in left)
    assert stored_shapes(model).count((12, 3)) == 1


def test_both_directions_tied_keep_their_chain() -> None:
    rnn = nn.LSTM(3, 4, bidirectional=True)
    rnn.weight_ih_l0_reverse = rnn.weight_ih_l0
    net = Net("LSTM")
    net.rnn = rnn
    model = to_onnx(net, (torch.randn(5, 2, 3),), ({0: "a", 1: "b"},))
    (line,) = pack_rnn_weights(model)
    assert line.endswith("more than once")
    assert_same(model, net, torch.randn(3, 1, 3))


@pytest.mark.slow
def test_aliases_and_factors_of_the_parts_are_kept() -> None:
    model = to_onnx(Net("LSTM"), (torch.randn(5, 2, 3),))
    stored = model.graph.initializers
    names.set_names(stored["rnn.bias_hh_l0"], ["other.bias"])
    names.set_lr_factor(stored["rnn.weight_ih_l0"], 10)
    names.set_lr_factor(stored["rnn.bias_ih_l0"], 10)
    (line,) = pack_rnn_weights(model)
    assert line.endswith("B: its parts have different learning-rate factors")
    assert names.lr_factor_of(stored["rnn.weight_ih_l0"]) == 10
    names.set_lr_factor(stored["rnn.bias_hh_l0"], 10)
    assert pack_rnn_weights(model) == []
    value = stored["rnn.bias_ih_l0"]
    assert packed(value)["names"] == {"rnn.bias_hh_l0": ["other.bias"]}
    assert names.names_of(value) == ("rnn.bias_ih_l0", "other.bias", "rnn.bias_hh_l0")
    assert pack_rnn_weights(model) == []


# --- chains from elsewhere ---------------------------------------------------------------------

HEAD = """
    <ir_version: 10, opset_import: ["" : 20]>
    net (float[length, batch, 2] x{inputs}) => (float[length, dirs, batch, 2] y{outputs})
"""
CONSTANTS = """
    c0 = Constant <value_ints = [0]> ()
    c1 = Constant <value_ints = [1]> ()
    c2 = Constant <value_ints = [2]> ()
    c3 = Constant <value_ints = [3]> ()
    c4 = Constant <value_ints = [4]> ()
"""


def read(stored: str, body: str, inputs: str = "", outputs: str = "") -> onnx_ir.Model:
    head = HEAD.format(inputs=inputs, outputs=outputs)
    return onnx_ir.from_onnx_text(f"{head} <{stored}> {{ {CONSTANTS} {body} }}")


def floats(count: int) -> str:
    return "{" + ",".join(str(each + 0.25) for each in range(count)) + "}"


# An RNN of 2 whose weights are cut out of one buffer, as cuDNN wants them: W, R, then the biases.
FLAT = f"float[12] flat = {floats(12)}, int64[3] cuts = {{4, 4, 4}}, int64[2] square = {{2, -1}}"
CUT = """
    pw, pr, pb = Split (flat, cuts)
    w0 = Reshape (pw, square)
    w = Unsqueeze (w0, c0)
    r0 = Reshape (pr, square)
    r1 = Identity (r0)
    r = Unsqueeze (r1, c0)
    bi = Slice (pb, c0, c2)
    bh = Slice (pb, c2, c4)
    b1 = Concat <axis = 0> (bi, bh)
    b = Unsqueeze (b1, c0)
    y, h = RNN <hidden_size = 2> (x, w, r, b)
"""


def test_views_of_one_buffer_are_parts_if_they_are_whole() -> None:
    square = f"float[2,2] m = {floats(4)}, float[1,4] b0 = {floats(4)}"
    body = """
        t = Transpose (m)
        w = Unsqueeze (t, c0)
        b1 = Squeeze (b0, c0)
        b2, b3 = Split <num_outputs = 2> (b1)
        b4 = Concat <axis = 0> (b2, b3)
        b = Unsqueeze (b4, c0)
        y, h = RNN <hidden_size = 2> (x, w, w, b)
    """
    model = read(square, body)
    x = torch.ones(3, 1, 2)
    wanted = run(model, x)
    assert pack_rnn_weights(model) == []
    np.testing.assert_array_equal(run(model, x)[0], wanted[0])
    (node,) = rnn_nodes(model)
    assert {each.op_type for each in model.graph} == {"Constant", "RNN"}
    assert node.inputs[1] is node.inputs[2]
    # The part that torch would know is what the transpose makes, under that value's name.
    assert packed(node.inputs[1])["parts"] == ["t"]
    assert packed(node.inputs[3])["parts"] == ["b2", "b3"]


def test_one_buffer_for_all_weights() -> None:
    model = read(FLAT, CUT)
    x = torch.ones(3, 1, 2)
    wanted = run(model, x)
    assert pack_rnn_weights(model) == []
    np.testing.assert_array_equal(run(model, x)[0], wanted[0])
    assert stored_names(model) == {"w0", "r0", "bi"}


@pytest.mark.parametrize(
    ("stored", "body", "inputs", "outputs", "reason"),
    [
        (FLAT, CUT.replace("(b1, c0)", "(pb, c0)"), "", "", "not assembled the way torch's"),
        (
            f"float[2,2] m = {floats(4)}",
            "n = Neg (m)\n w = Unsqueeze (n, c0)\n y, h = RNN <hidden_size = 2> (x, w, w)",
            "",
            "",
            "it is computed by Neg",
        ),
        (
            "float[1] unused = {0}",
            "w = Unsqueeze (m, c0)\n y, h = RNN <hidden_size = 2> (x, w, w)",
            ", float[2,2] m",
            "",
            "m is fed at run time",
        ),
        (
            "float[1] unused = {0}",
            "y, h = RNN <hidden_size = 2> (x, w, w)",
            ", float[1,2,2] w",
            "",
            "w is fed at run time",
        ),
        (
            f"float[2,2] m = {floats(4)}",
            "w = Unsqueeze (m, axis)\n y, h = RNN <hidden_size = 2> (x, w, w)",
            ", int64[1] axis",
            "",
            "Unsqueeze  is not static",
        ),
        (
            f"float[2,2] m = {floats(4)}",
            "w = Unsqueeze (m, c0)\n y, h = RNN <hidden_size = 2> (x, w, w)",
            "",
            ", float[1,2,2] w",
            "w is also an output of the graph",
        ),
        (
            f"float[3,2] m = {floats(6)}",
            "n = Slice (m, c1, c3) w = Unsqueeze (n, c0) y, h = RNN <hidden_size = 2> (x, w, w)",
            "",
            "",
            "nothing reads a part of m",
        ),
    ],
    ids=["uncut", "computed", "fed", "no chain", "axes", "output", "partly"],
)
def test_what_keeps_its_chain(
    stored: str, body: str, inputs: str, outputs: str, reason: str
) -> None:
    model = read(stored, body, inputs, outputs)
    before = onnx_ir.to_proto(model)
    left = pack_rnn_weights(model)
    assert any(reason in line for line in left), left
    assert onnx_ir.to_proto(model) == before


def test_a_ready_weight_is_left_alone() -> None:
    body = "y, h = RNN <hidden_size = 2> (x, w, w)"
    model = read(f"float[1,2,2] w = {floats(4)}", body)
    before = onnx_ir.to_proto(model)
    assert pack_rnn_weights(model) == []
    assert onnx_ir.to_proto(model) == before


# --- unpack ------------------------------------------------------------------------------------


def test_unpack_refuses_what_does_not_divide() -> None:
    with pytest.raises(PreconditionError, match="cannot split LSTM W into its parts"):
        unpack(np.zeros((1, 6, 2)), "LSTM", "W", ["a"])
    with pytest.raises(PreconditionError, match="cannot split GRU B into its parts"):
        unpack(np.zeros((1, 6)), "GRU", "B", ["a"])
    with pytest.raises(PreconditionError, match="each once"):
        unpack(np.zeros((1, 6)), "GRU", "B", ["a", "a"])
    with pytest.raises(PreconditionError, match=r"stored: f64\[1,6\]    parts: a"):
        unpack(np.zeros((1, 6)), "Conv", "B", ["a"])
    with pytest.raises(PreconditionError, match="cannot split RNN R into its parts"):
        unpack(np.zeros((1, 6)), "RNN", "R", ["a"])
