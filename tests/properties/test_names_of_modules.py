"""Whatever a module calls its layers, parameters and buffers: the names come and go unchanged."""

from __future__ import annotations

import copy
import io
import keyword
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import tieops

SIZE = 3
X = torch.linspace(-1, 1, 2 * SIZE).reshape(2, SIZE)


def _of_graph_modules() -> list[str]:
    """Return the attributes that torch's own GraphModules have for themselves."""
    plain = nn.Module()
    program = torch.export.export(nn.ReLU(), (torch.zeros(1),)).module()
    made = [fx.GraphModule(plain, fx.Graph()), program]
    names = {name for each in made for name in dir(each) if not hasattr(plain, name)}
    return sorted(name for name in names if not name.endswith("__"))  # copy() would take those


# Two of a kind that end alike, what exporters call their own, and what means something in source.
ODD = [
    "a b", "a-b", "a:b", "a/b", "a'b", 'a"b', "a\\b", "a\nb", "{x}", "%s", "#", "@", "@1",
    "1", "01", "1a", "-1", "é", "ﬁ", "fi", "K", "\N{KELVIN SIGN}", "重み", "_", "__",
    "__x", "__x__",
    "self", "torch", "device", "inf", "nan", "None_", "x", "p_x", "p_p_x", "b_x", "c_x", "x_1",
    "p_1", "constant", "lifted_tensor_0", "val_0", "onnx::MatMul_1", "mul", "add", "linear",
    "tieops", "tieops_0", "weight", "bias", "output", "input", "true_graph_0", "submod_1",
    "original0", "parametrization", "print", "type_", "object", "match", "case",
]  # fmt: skip
NAMES = [*_of_graph_modules(), *keyword.kwlist[::3], *ODD]


class Named(nn.Module):
    """One tensor a name, each of another value, all of them read."""

    def __init__(self, kind: str, names: list[str]) -> None:
        super().__init__()
        self._kind, self._called = kind, names
        if kind == "tied":
            self.first = nn.Embedding(SIZE, SIZE)
        for place, name in enumerate(names):
            generator = torch.Generator().manual_seed(place)
            values = torch.randn(SIZE, SIZE, generator=generator)
            if kind in ("layer", "tied"):
                layer = nn.Linear(SIZE, SIZE, bias=False)
                layer.weight = self.first.weight if kind == "tied" else nn.Parameter(values)
                self.add_module(name, layer)
            elif kind == "parameter":
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for name in self._called:
            if self._kind in ("layer", "tied"):
                h = h + self._modules[name](h) / 4  # pyright: ignore[reportOptionalCall]
            else:
                tables = self._parameters | self._buffers
                h = h + h @ tables[name] / 4  # pyright: ignore[reportOperatorIssue]
        return h


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def made(kind: str, depth: str, names: list[str]) -> nn.Module:
    net = Named(kind, names).eval()
    return net if depth == "root" else Outer(Outer(net)).eval()


def hold(model: tieops.TiedModel, net: nn.Module) -> nn.Module:
    """Hold a model to the module that it came from; return what to_torch makes of it."""
    wanted = net.state_dict()
    assert {name for each in model.parameters for name in each.names} == wanted.keys()
    for parameter in model.parameters:
        for name in parameter.names:
            np.testing.assert_array_equal(parameter.numpy(), wanted[name].numpy())
    shared = [set(tie.names) for tie in model.ties]
    is_tied = len({id(each) for each in net.parameters()}) < len(wanted) - len([*net.buffers()])
    assert shared == ([set(wanted)] if is_tied else [])
    back = tieops.to_torch(model)
    hold_module(back, net)
    return back


def hold_module(back: nn.Module, net: nn.Module) -> None:
    assert back.state_dict().keys() == net.state_dict().keys()
    kinds = [{n for n, _ in each.named_parameters(remove_duplicate=False)} for each in (back, net)]
    assert kinds[0] == kinds[1]
    assert len([*back.parameters()]) == len([*net.parameters()])
    torch.testing.assert_close(back(X), net(X))
    back.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(back(X), net(X))


SOME = ["code", "graph", "meta", "_graph", "recompile", "class", "lambda", "1", "a b", "p_x", "x"]


@pytest.mark.parametrize("names", [SOME, pytest.param(NAMES, marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("depth", ["root", "inner"])
@pytest.mark.parametrize("kind", ["layer", "parameter", "buffer", "tied"])
def test_names_come_and_go(kind: str, depth: str, names: list[str], tmp_path: Path) -> None:
    net = made(kind, depth, names)
    model = tieops.from_torch(net, (X,))
    back = hold(model, net)
    written = tieops.to_onnx(model, tmp_path / "m.onnx").path
    hold(tieops.from_onnx(written), net)
    (found,) = tieops.session(written, provider="cpu").run({"x": X.numpy()}).values()
    np.testing.assert_allclose(found, net(X).detach().numpy(), rtol=1e-4, atol=1e-5)
    hold_module(copy.deepcopy(back), net)
    hold_module(copy.copy(back), net)
    hold_module(pickle.loads(pickle.dumps(back)), net)
    back.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    torch.testing.assert_close(back(X), net(X))


@pytest.mark.parametrize("kind", ["layer", "parameter"])
@pytest.mark.slow
def test_torch_takes_what_to_torch_made(kind: str) -> None:
    net = made(kind, "root", SOME)
    back = tieops.to_torch(tieops.from_torch(net, (X,)))
    buffer = io.BytesIO()
    torch.save(back, buffer)
    buffer.seek(0)
    hold_module(torch.load(buffer, weights_only=False), net)
    torch.testing.assert_close(torch.compile(back, backend="eager", fullgraph=True)(X), net(X))
    program = torch.export.export(back, (X,))
    assert program.state_dict.keys() == net.state_dict().keys()
    hold(tieops.from_torch(back, (X,)), net)
    torch.testing.assert_close(back.double()(X.double()), net.double()(X.double()))
    back.train()
    assert all(each.training for each in back.modules())


@pytest.mark.parametrize("kind", ["layer", "parameter"])
@pytest.mark.slow
def test_programs_and_their_files(kind: str, tmp_path: Path) -> None:
    net = made(kind, "root", SOME)
    program = torch.export.export(net, (X,))
    before = str(program.graph_signature), [*program.state_dict]
    model = tieops.from_torch(program)
    hold(model, net)
    assert (str(program.graph_signature), [*program.state_dict]) == before
    torch.export.save(program, tmp_path / "m.pt2")
    hold(tieops.from_torch(tmp_path / "m.pt2"), net)
    written = tieops.to_onnx(model, tmp_path / "m.onnx").path
    tieops.verify(written, against=program, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch's older exporter says that it is old
def test_torchscript_files_with_the_names_that_they_can_have(tmp_path: Path) -> None:
    net = made("layer", "root", [name for name in SOME if not keyword.iskeyword(name)])
    torch.jit.save(torch.jit.trace(net, (X,)), tmp_path / "m.pt")
    hold(tieops.from_torch(tmp_path / "m.pt", (X,), trust=True), net)


@pytest.mark.slow
def test_sizes_by_an_inputs_name_and_errors_by_the_modules() -> None:
    class Both(nn.Module):
        """An input and two parameters that one name would clash with."""

        code: Tensor
        graph: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.p_code = nn.Parameter(torch.ones(SIZE))
            self.code = nn.Parameter(torch.full((SIZE,), 2.0))
            self.register_buffer("graph", torch.zeros(SIZE))

        def forward(self, code: Tensor, *rest: Tensor, graph: Tensor) -> Tensor:
            self.graph.add_(1)
            return code * self.code + rest[0] * self.p_code + graph + self.graph

    net = Both().eval()
    shapes = {"code": {0: "n"}, "rest": ({0: "n"},), "graph": {0: "n"}}
    model = tieops.from_torch(net, (X, X), {"graph": X}, dynamic_shapes=shapes)
    assert [value.name for value in model.inputs] == ["code", "rest_0", "graph"]
    assert all(str(value.shape) == "[n,3]" for value in model.inputs)
    assert any("buffer graph" in each.what for each in model.analysis.problems)
    back = tieops.to_torch(model)
    assert back.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(back(X, X, X), copy.deepcopy(net)(X, X, graph=X))


@pytest.mark.filterwarnings("ignore")  # torch says of itself that it is old
def test_threads_that_export_beside_keep_their_names() -> None:
    import threading

    from tieops.importers.torch.program_names import exporting_names

    program = torch.export.export(made("layer", "inner", ["fc"]), (X,))
    found: list[str] = []

    def work() -> None:
        found.extend(program.run_decompositions().state_dict)

    with exporting_names() as names:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        ours = program.run_decompositions()
    assert found == [*program.state_dict]
    assert not program.state_dict.keys() & ours.state_dict.keys()
    assert names.original(ours).state_dict.keys() == program.state_dict.keys()
