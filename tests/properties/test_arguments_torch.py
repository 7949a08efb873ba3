"""No verb changes a module, an exported program or an array that it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import tieops
from tieops.torch import find_ties

IDS = torch.arange(12).reshape(3, 4)


class Net(nn.Module):
    """A tied head, running statistics, a buffer, a packed LSTM, and a parameter that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 50)
        self.fc.weight = self.emb.weight
        self.fc.bias.requires_grad = False
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.emb(x) + self.offset)
        return self.fc(self.norm(hidden.transpose(1, 2)).transpose(1, 2))


def state(module: nn.Module) -> object:
    """Return all that a module is, apart from its code."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return (
        [(name, id(each), each.requires_grad, each.grad is None) for name, each in tensors],
        [each.detach().numpy().tobytes() for _, each in tensors],
        [(name, each.training, sorted(vars(each))) for name, each in module.named_modules()],
        [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules()],
    )


VERBS: dict[str, Callable[[nn.Module], object]] = {
    "find_ties": find_ties,
    "find_ties_of_a_call": lambda net: find_ties(net, (IDS,)),
    "verify": lambda net: tieops.verify(net, against=net, inputs={"x": IDS.numpy()}),
    "untie": lambda net: tieops.untie(tieops.from_torch(net, (IDS,))),
    "tie": lambda net: tieops.tie(tieops.from_torch(net, (IDS,)), include_small=True),
    "replace_head": lambda net: tieops.replace_head(tieops.from_torch(net, (IDS,)), out_features=3),
    "to_torch": lambda net: tieops.to_torch(tieops.from_torch(net, (IDS,))),
    "param_groups": lambda net: tieops.param_groups(net, lr=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_changes_a_module_or_its_example_inputs(verb: str) -> None:
    net, given = Net(), IDS.clone()
    net.lstm.eval()
    before = state(net)
    VERBS[verb](net)
    assert state(net) == before
    assert torch.equal(IDS, given)


def sources() -> dict[str, Callable[[nn.Module], Any]]:
    return {
        "module": lambda net: net,
        "program": lambda net: torch.export.export(net, (IDS,)),
        "script": lambda net: torch.jit.trace(net, (IDS,), check_trace=False),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("form", "copied"),
    # Torch's older exporter makes copies of its own.
    [(form, True) for form in sources()] + [("module", False), ("program", False)],
)
def test_a_model_follows_a_module_only_where_it_shares_its_memory(form: str, copied: bool) -> None:
    net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 5), nn.Linear(5, 50)).eval()
    source = sources()[form](net)
    args = () if form == "program" else (IDS,)
    model = tieops.from_torch(source, args, copy=copied)
    before = {each.name: each.numpy().copy() for each in model.parameters}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.data.mul_(3)
            parameter.add_(1)
    for name, values in before.items():
        now = model.parameters[name].numpy()
        same = np.array_equal(now, values) or np.array_equal(now.T, values)
        assert same is copied, name


@pytest.mark.slow
def test_what_to_torch_makes_shares_no_memory_with_the_model() -> None:
    model = tieops.from_torch(Net().eval(), (IDS,))
    before = [each.numpy().copy() for each in model.parameters]
    for parameter in tieops.to_torch(model).parameters():
        parameter.data.fill_(7)
    assert all(map(np.array_equal, before, [each.numpy() for each in model.parameters]))


@pytest.mark.slow
def test_no_verb_changes_an_exported_program() -> None:
    program = torch.export.export(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 5)), (IDS,))

    def facts() -> tuple[Any, ...]:
        values = {
            name: each.detach().numpy().tobytes() for name, each in program.state_dict.items()
        }
        notes = [{key: str(each) for key, each in n.meta.items()} for n in program.graph.nodes]
        return str(program.graph), str(program.graph_signature), values, notes

    before = facts()
    model = tieops.from_torch(program)
    tieops.to_torch(tieops.replace_head(model, out_features=3))
    tieops.verify(tieops.untie(model), against=program)
    assert facts() == before


def test_arrays_stay_as_they_are_and_models_do_not_follow_them() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
    g (float[n, 2] x) => (float[n, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }
    """)
    model = tieops.from_onnx(proto)
    weight, bias = np.ones((5, 2), np.float32), np.arange(5, dtype=np.float32)
    small = tieops.replace_head(model, out_features=5, init=weight, bias=bias)
    stored = [each.numpy().copy() for each in small.parameters]
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(6, 2)}
    options = {"session.disable_prepacking": "1"}
    with tieops.session(model, "cpu", options=options) as session:
        session.run(feeds)
    tieops.verify(model, against=model, inputs=[feeds])
    assert (weight.tolist(), bias.tolist()) == ([[1.0] * 2] * 5, [0, 1, 2, 3, 4])
    assert (list(feeds), feeds["x"].ravel().tolist()) == (["x"], list(range(12)))
    assert options == {"session.disable_prepacking": "1"}
    weight[:], bias[:] = 7, 7
    assert all(map(np.array_equal, stored, [each.numpy() for each in small.parameters]))
