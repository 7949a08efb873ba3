"""Copies and pickles of a model: equal, tied, and in no need of what it was made from."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import nn

import tieops

TOKENS = torch.arange(10).reshape(2, 5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(200, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.fc = nn.Linear(16, 200)
        self.fc.weight = self.emb.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(self.emb(x))[0])


NET = Net().eval()
SOURCES = ["module", "program", ".pt2", "TorchScript", "path", "proto", "graph", "embedded"]


# torch's own export of an LSTM puts its flattened weights back afterwards, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute.*_flat_weights:UserWarning")


def imported(source: str, folder: Path) -> tieops.TiedModel:
    if source == "module":
        return tieops.from_torch(NET, TOKENS)
    if source in ("program", ".pt2"):
        program = torch.export.export(NET, (TOKENS,))
        if source == "program":
            return tieops.from_torch(program)
        torch.export.save(program, folder / "m.pt2")
        return tieops.from_torch(folder / "m.pt2")
    if source == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            torch.jit.save(torch.jit.trace(NET, TOKENS), folder / "m.pt")
        return tieops.from_torch(folder / "m.pt", TOKENS, trust=True)
    written = tieops.to_onnx(tieops.from_torch(NET, TOKENS), folder / "m.onnx").path
    if source == "path":
        return tieops.from_onnx(written)
    proto = onnx.load(written)
    if source == "embedded":
        onnx.save(proto, folder / "one.onnx")
        return tieops.from_onnx(folder / "one.onnx")
    return tieops.from_onnx(proto if source == "proto" else onnx_ir.from_proto(proto))


def described(model: tieops.TiedModel) -> list[Any]:
    tensors = {
        name: value.const_value.tobytes() for name, value in model.ir.graph.initializers.items()
    }
    props = {name: dict(v.metadata_props) for name, v in model.ir.graph.initializers.items()}
    return [str(model), [str(each) for each in model.ties], tensors, props, model.ledger]


@pytest.mark.parametrize("source", SOURCES)
def test_copies_and_pickles_are_equal_and_tied(source, tmp_path):
    model = imported(source, tmp_path)
    wanted = described(model)
    data = pickle.dumps(model)
    copies = [copy.copy(model), copy.deepcopy(model)]
    graphs = [copy.deepcopy(model.ir), pickle.loads(pickle.dumps(model.ir))]
    for each in [*copies, *map(tieops.TiedModel, graphs)]:
        assert described(each) == wanted
    for path in tmp_path.iterdir():
        path.unlink()
    again = pickle.loads(data)
    assert described(again) == wanted
    assert described(pickle.loads(pickle.dumps(again))) == wanted
    assert tieops.verify(again, against=NET, rtol=1e-4)
    for module in (copy.deepcopy(back := tieops.to_torch(again)), pickle.loads(pickle.dumps(back))):
        assert list(module.state_dict()) == list(back.state_dict())
        assert module.fc.weight is module.emb.weight
        torch.testing.assert_close(module(TOKENS), NET(TOKENS), rtol=1e-4, atol=1e-5)


def test_verbs_work_on_copies():
    model = tieops.from_torch(NET, TOKENS)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not tieops.untie(each).ties
        assert each.ties


def test_a_deep_copy_does_not_follow_the_module():
    net = Net().eval()
    model = tieops.from_torch(net, TOKENS)
    twin = copy.deepcopy(model)
    before = described(twin)
    with torch.no_grad():
        net.emb.weight.add_(1)
    assert described(twin) == before


def test_a_tensor_of_several_values_is_pickled_once():
    data = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32)
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[100] x) => (float[100] y)
        <float[1] a = {0}, float[1] b = {0}> { h = MatMul(x, a) y = MatMul(h, b) }"""
    graph = onnx_ir.from_onnx_text(text)
    tensor = onnx_ir.tensor(data)
    for value in graph.graph.initializers.values():
        value.const_value, value.shape = tensor, onnx_ir.Shape([100, 100])
    model = tieops.TiedModel(graph)
    pickled = pickle.dumps(model)
    assert len(pickled) < 1.5 * data.nbytes
    a, b = (each.const_value for each in pickle.loads(pickled).ir.graph.initializers.values())
    assert a is b


@pytest.mark.parametrize("dtype", ["INT4", "UINT4", "BFLOAT16", "FLOAT8E4M3FN", "BOOL", "FLOAT16"])
def test_every_dtype_is_pickled_bit_for_bit(dtype):
    kind = onnx_ir.DataType[dtype]
    values = np.arange(15).reshape(3, 5) % 2
    tensor = onnx_ir.tensor(values.astype(kind.numpy()), kind, name="w")
    value = onnx_ir.Value(
        name="w", type=onnx_ir.TensorType(kind), shape=onnx_ir.Shape([3, 5]), const_value=tensor
    )
    node = onnx_ir.node("Identity", [value])
    node.outputs[0].name = "y"
    graph = onnx_ir.Graph([], node.outputs, nodes=[node], initializers=[value], name="g",
                          opset_imports={"": 21})  # fmt: skip
    again = pickle.loads(pickle.dumps(tieops.TiedModel(onnx_ir.Model(graph, ir_version=10))))
    found = again.ir.graph.initializers["w"].const_value
    assert (found.dtype, found.shape.numpy()) == (kind, (3, 5))
    assert found.tobytes() == tensor.tobytes()
    assert np.array_equal(found.numpy(), tensor.numpy())


def test_a_long_graph_is_pickled_without_pythons_stack():
    steps = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(3000))
    model = tieops.from_onnx(
        onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 20]>
            g (float[2] v0) => (float[2] v3000) {{ {steps} }}"""
        )
    )
    assert len(pickle.loads(pickle.dumps(model)).ir.graph) == 3000


def names_of_ties(model: tieops.TiedModel) -> list[tuple[str, ...]]:
    return [each.names for each in model.ties]


@pytest.mark.slow
def test_a_model_goes_to_another_process_and_back():
    model = tieops.from_torch(NET, TOKENS)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(names_of_ties, model).result() == names_of_ties(model)
        assert described(pool.submit(copy.deepcopy, model).result()) == described(model)
