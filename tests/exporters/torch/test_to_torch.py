"""to_torch: what comes out has the names, ties, outputs and gradients of what went in."""

from __future__ import annotations

import copy
import io
import itertools
import sys
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import nn

import tieops
from fixtures.torch_models import TiedLanguageModel, build
from tests.support.golden_graphs import CASES as GOLDEN
from tests.support.golden_graphs import load
from tests.support.module_ties import groups_of, names_of
from tieops.errors import UnsupportedModelError
from tieops.importers.torch.lr_factors import lr_factors


def text(body: str, opset: int = 20) -> tieops.TiedModel:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> '
    return tieops.from_onnx(onnx_ir.from_onnx_text(header + body))


def imported(module: nn.Module, *args: torch.Tensor, dims: Any = None) -> tieops.TiedModel:
    return tieops.from_torch(module.eval(), args, dynamic_shapes=dims)


# --- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["before", "after"])
@pytest.mark.parametrize("case", GOLDEN)
def test_every_form_of_sharing_computes_what_the_graph_says(case, which, plain_runtime):
    model = tieops.from_onnx(load(case, which))
    net = tieops.to_torch(model)
    for seed in (0, 1):
        feeds = plain_runtime.feeds(model.ir, seed)
        wanted = plain_runtime.run(model.ir, feeds)
        found = net(*(torch.from_numpy(np.asarray(feeds[v.name])) for v in model.inputs))
        found = found if isinstance(found, tuple) else (found,)
        for each, array in zip(found, wanted, strict=True):
            rtol = 2e-3 if array.dtype == np.float16 else 1e-4
            np.testing.assert_allclose(each.detach().numpy(), array, rtol=rtol, atol=1e-5)


def test_one_parameter_a_stored_tensor_and_gradients_of_all_its_readers_meet_in_it():
    net = tieops.to_torch(
        text("""g (int64[n] x) => (float[n, 3] y) <float[3, 3] emb = {1,2,3,4,5,6,7,8,9}>
        { h = Gather(emb, x)
          t = Transpose<perm = [1, 0]>(emb)
          y = MatMul(h, t) }""")
    )
    assert list(names_of(net)) == ["emb"]
    net(torch.tensor([1])).sum().backward()
    emb = torch.arange(1.0, 10).reshape(3, 3).requires_grad_()
    (emb[[1]] @ emb.t()).sum().backward()
    torch.testing.assert_close(net.emb.grad, emb.grad)


def test_the_forward_has_the_graphs_names_and_its_code_reads_as_the_program():
    model = text("""g (float[2] input, float[2] lambda) => (float[2] a, float[2] y)
      { a = Add(input, lambda)  y = Relu(a) }""")
    net = tieops.to_torch(model)
    one, two = torch.tensor([1.0, -5.0]), torch.tensor([2.0, 3.0])
    first, second = net(input=one, lambda_=two)
    assert first.tolist() == [3.0, -2.0]
    assert second.tolist() == [3.0, 0.0]
    assert net.meta["input_names"] == ("input", "lambda")
    assert net.meta["output_names"] == ("a", "y")
    assert "torch.relu(a)" in net.code


def test_inputs_may_have_the_names_that_code_uses_itself():
    model = text("""g (float[2] self, float[2] torch, float[2] print, float[2] inf) => (float[2] y)
      { a = Add(self, torch)  b = Mul(a, print)  y = Sub(b, inf) }""")
    net = tieops.to_torch(model)
    one, two, three = (torch.full((2,), float(n)) for n in (1, 2, 3))
    assert net(one, two, three, one).tolist() == [8.0, 8.0]


HOSTILE = '"); tieops_was_here = __import__("builtins").setattr(__import__("sys"), "hacked", 1) #'


@pytest.mark.parametrize("name", [HOSTILE, HOSTILE + "\n", "w\\", "w\n", "schön²"])
def test_no_name_in_a_file_becomes_code(name):
    model = text("""g (float[2] x) => (float[2] y) <float[2] p = {1, 2}>
      { [n] s = Add(x, p)  y = Dropout(s) }""")
    for value in (model.ir.graph.inputs[0], model.ir.graph[0].outputs[0]):
        value.name = f"{name}{value.name}"
    weight = model.ir.graph.initializers.pop("p")
    weight.name = model.ir.graph[1].name = name
    model.ir.graph.initializers.add(weight)
    net = tieops.to_torch(model)
    assert net(torch.tensor([1.0, 1.0])).tolist() == [2.0, 3.0]
    assert copy.deepcopy(net)(torch.tensor([1.0, 1.0])).tolist() == [2.0, 3.0]
    assert not hasattr(sys, "hacked")


def test_a_weight_in_a_function_is_one_parameter_however_often_it_is_called():
    net = tieops.to_torch(tieops.from_onnx(load("g_function_with_constant", "before")))
    assert len([*net.parameters()]) == 1


@pytest.mark.parametrize(
    "names", [("a", "a.b"), ("a.b", "a"), ("forward", "graph"), ("x.0", "x"), ("a..b", "a/b:0")]
)
def test_names_that_are_no_attributes_get_one_beside_them(names):
    model = text("""g (float[2] x) => (float[2] y) <float[2] p = {1, 2}, float[2] q = {3, 4}>
      { s = Add(x, p)  y = Mul(s, q) }""")
    for old, new in zip("pq", names, strict=True):
        value = model.ir.graph.initializers.pop(old)
        value.name = new
        model.ir.graph.initializers.add(value)
    net = tieops.to_torch(model)
    assert net(torch.tensor([1.0, 1.0])).tolist() == [6.0, 12.0]
    assert len(names_of(net)) == 2
    assert copy.deepcopy(net)(torch.tensor([1.0, 1.0])).tolist() == [6.0, 12.0]


def test_an_if_takes_either_branch_and_trains_what_both_read():
    net = tieops.to_torch(
        text("""g (bool c, float[2] x) => (float[2] y) <float[2] w = {3, 4}>
        { y = If (c) <
            then_branch = t () => (float[2] a) { a = Mul(x, w) },
            else_branch = e () => (float[2] b) { b = Sub(x, w) } > }""")
    )
    x = torch.tensor([1.0, 2.0])
    assert net(torch.tensor(True), x).tolist() == [3.0, 8.0]
    assert net(torch.tensor(False), x).tolist() == [-2.0, -2.0]
    (net(torch.tensor(True), x) + net(torch.tensor(False), x)).sum().backward()
    assert net.w.grad.tolist() == [0.0, 1.0]


def test_training_the_module_leaves_the_model_alone():
    module = TiedLanguageModel(50, 8)
    tokens = torch.arange(6).reshape(2, 3)
    model = imported(module, tokens)
    before = [p.numpy().tobytes() for p in model.parameters]
    net = tieops.to_torch(model)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert [p.numpy().tobytes() for p in model.parameters] == before
    assert not any(
        torch.equal(names_of(net)[name], each) for name, each in names_of(module).items()
    )


def test_a_tied_weight_has_one_gradient_and_one_optimizer_state(language_model):
    module, model = language_model
    net = tieops.to_torch(model)
    optimizer = torch.optim.AdamW(net.parameters())
    net(TOKENS[0]).square().sum().backward()
    optimizer.step()
    assert net.emb.weight is net.fc.weight
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(optimizer.state) == len([*module.parameters()])
    own = [*net.parameters(), *(p.grad for p in net.parameters())]
    unique = sum(p.nbytes for p in module.parameters())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}
    assert sum(storages.values()) == 2 * unique


# --- what cannot be carried over -----------------------------------------------------------------


def test_an_unknown_operator_is_named_with_the_place_to_add_it():
    model = tieops.from_onnx(
        onnx_ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 20, "my.own" : 3]>
        g (float[2] x) => (float[2] y) { [stranger] y = my.own.Warp(x) }""")
    )
    with pytest.raises(UnsupportedModelError) as caught:
        tieops.to_torch(model)
    for part in ("my.own.Warp", "stranger", "opset: 3", "tieops/exporters/torch/ops"):
        assert part in str(caught.value)


def test_an_unknown_attribute_is_named():
    model = text('g (float[2] x) => (float[2] y) { y = Relu<tint = "blue">(x) }')
    with pytest.raises(UnsupportedModelError, match="the attribute tint of Relu"):
        tieops.to_torch(model)


def test_strings_and_other_things_are_refused():
    model = text("g (string[2] x, string[2] z) => (bool[2] y) { y = Equal(x, z) }")
    with pytest.raises(UnsupportedModelError, match="torch cannot compute Equal of str"):
        tieops.to_torch(model)
    with pytest.raises(UnsupportedModelError, match="expected a TiedModel, got an int"):
        tieops.to_torch(3)  # pyright: ignore


# --- recurrent layers, norms, dropout ------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (nn.LSTM, {"bias": False}),
        (nn.GRU, {"bidirectional": True}),
        (nn.GRU, {"bias": False}),
        (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
        (nn.RNN, {"bidirectional": True}),
    ],
)
def test_recurrent_weights_are_torchs_own_and_train_alike(kind, options):
    torch.manual_seed(0)
    module, data = Recurrent(kind, **options), torch.randn(5, 2, 3)
    net = tieops.to_torch(imported(module, data, dims={"x": {0: "a", 1: "b"}}))
    assert net.state_dict().keys() == module.state_dict().keys()
    other = torch.randn(4, 3, 3)
    torch.testing.assert_close(net(other), module(other))
    module(other).square().sum().backward()
    net(other).square().sum().backward()
    for name, parameter in names_of(module).items():
        torch.testing.assert_close(names_of(net)[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_stored_onnx_weights_of_a_recurrent_layer_are_the_parameters():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 20]>
      g (float[5, 2, 3] x) => (float[5, 1, 2, 4] y) { y = LSTM<hidden_size = 4>(x, w, r) }""")
    for name, shape in (("w", (1, 16, 3)), ("r", (1, 16, 4))):
        array = rng.standard_normal(shape, dtype=np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = tieops.from_onnx(proto)
    net = tieops.to_torch(model)
    assert {name: tuple(p.shape) for name, p in names_of(net).items()} == {
        "w": (1, 16, 3),
        "r": (1, 16, 4),
    }
    assert tieops.verify(net, against=model)
    net(torch.randn(5, 2, 3)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_batch_norm_trains_as_torchs_does():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    data = torch.randn(4, 2, 5, 5)
    net = tieops.to_torch(imported(module, data))
    torch.testing.assert_close(net(data), module(data))
    module.train()
    net.train()
    torch.testing.assert_close(net(data), module(data), rtol=1e-4, atol=1e-5)
    state = module.state_dict()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)
    assert {"1.running_mean", "1.running_var"} <= dict(net.named_buffers()).keys()
    torch.testing.assert_close(net.eval()(data), module.eval()(data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.GroupNorm(2, 8)), torch.ones(2, 4, 9, 9)),
        (nn.EmbeddingBag(10, 3, mode="sum"), torch.tensor([[1, 2], [3, 4]])),
        (nn.Sequential(nn.ConvTranspose1d(2, 3, 4, stride=2), nn.PReLU(3)), torch.ones(1, 2, 5)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.ones(2, 3, 8)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_the_exporter_makes_up_is_no_parameter(module, data):
    net = tieops.to_torch(imported(module, data))
    assert net.state_dict().keys() == module.state_dict().keys()
    assert names_of(net).keys() == names_of(module).keys()
    torch.testing.assert_close(net(data), module(data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("opset", "node"),
    [(9, "Dropout<ratio = 0.25>(x)"), (13, "Dropout(x, ratio)")],
)
def test_dropout_drops_in_training_alone(opset, node):
    stored = "<float ratio = {0.25}>" if opset > 9 else ""
    net = tieops.to_torch(
        text(f"g (float[1000] x) => (float[1000] y) {stored} {{ y = {node} }}", opset)
    )
    ones = torch.ones(1000)
    assert net(ones).equal(ones)
    torch.manual_seed(0)
    dropped = net.train()(ones)
    assert 200 < int((dropped == 0).sum()) < 300
    torch.testing.assert_close(dropped.max(), torch.tensor(1 / 0.75))
    assert net.eval()(ones).equal(ones)


def test_the_padding_row_of_an_embedding_is_known_through_a_file(tmp_path):
    module = nn.Sequential(nn.Embedding(5, 3, padding_idx=2), nn.Linear(3, 5, bias=False))
    module[1].weight = module[0].weight
    tokens = torch.tensor([[0, 2, 4]])
    written = tieops.to_onnx(imported(module, tokens), tmp_path / "m.onnx")
    net = tieops.to_torch(tieops.from_onnx(written))
    module(tokens).square().sum().backward()
    net(tokens).square().sum().backward()
    (parameter,) = net.parameters()
    torch.testing.assert_close(parameter.grad, module[0].weight.grad)


# --- opsets --------------------------------------------------------------------------------------

OLD_FORMS = {
    "Unsqueeze<axes = [0]>(Squeeze<axes = [0]>(x))": (9, 12),
    "ReduceSum<axes = [1], keepdims = 0>(x)": (9, 12),
    "ReduceMean<axes = [1]>(x)": (9, 17),
    "Softmax<axis = 1>(x)": (9, 12),
    "Softmax(x)": (13, 23),
    "Slice<axes = [2], starts = [1], ends = [3]>(x)": (9, 9),
    "Pad<pads = [0, 0, 1, 0, 0, 1], value = 2.0>(x)": (9, 10),
    "Clip<min = -0.5, max = 0.5>(x)": (9, 10),
    'Upsample<mode = "nearest">(x, scales)': (9, 9),
    'Resize<mode = "nearest">(x, scales)': (10, 10),
    "Concat<axis = 0>(Split<axis = 1, split = [1, 2]>(x))": (9, 12),
    "Cast<to = 7>(x)": (9, 23),
    "Flatten<axis = 2>(x)": (9, 23),
    "LeakyRelu<alpha = 0.2>(x)": (9, 23),
    "LayerNormalization<axis = -1>(x, four)": (17, 23),
}


@pytest.mark.parametrize(
    ("node", "opset"), [(n, o) for n, both in OLD_FORMS.items() for o in set(both)]
)
def test_operators_mean_what_they_did_at_their_opset(node, opset, plain_runtime):
    if "Split" in node:
        body = "{ a, b = Split<axis = 1, split = [1, 2]>(x)  y = Concat<axis = 1>(b, a) }"
    elif "Squeeze" in node:
        body = "{ s = Squeeze<axes = [0]>(x)  y = Unsqueeze<axes = [1]>(s) }"
    else:
        body = f"{{ y = {node} }}"
    kind = "int64" if "Cast" in node else "float"
    model = text(
        f"g (float[1, 3, 4] x) => ({kind} y) "
        f"<float[3] scales = {{1.0, 2.0, 2.0}}, float[4] four = {{1, 2, 3, 4}}> {body}",
        opset,
    )
    model.ir.graph.outputs[0].shape = None
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32) * 3}
    (wanted,) = plain_runtime.run(model.ir, feeds)
    found = tieops.to_torch(model)(torch.from_numpy(feeds["x"])).detach().numpy()
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


# --- copies, pickles, compilers ------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model() -> tuple[nn.Module, tieops.TiedModel]:
    case = build("lstm", 60, 8)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    return case.module, model


TOKENS = [torch.arange(12).reshape(3, 4), torch.arange(10).reshape(2, 5)]


def test_copies_and_pickles_keep_names_ties_and_buffers(language_model):
    net = tieops.to_torch(language_model[1])
    saved = io.BytesIO()
    torch.save(net, saved)
    saved.seek(0)
    for other in (copy.deepcopy(net), torch.load(saved, weights_only=False)):
        assert groups_of(other) == groups_of(net)
        assert other.state_dict().keys() == net.state_dict().keys()
        assert other.meta == net.meta
        assert other.code == net.code
        assert other(TOKENS[0]).equal(net(TOKENS[0]))
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not other(TOKENS[0]).equal(net(TOKENS[0]))


@pytest.mark.slow
def test_a_converted_module_compiles_with_any_size(language_model):
    net = tieops.to_torch(language_model[1])
    torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in TOKENS:
        torch.testing.assert_close(compiled(tokens), net(tokens))


@pytest.mark.parametrize("name", ["gpt2", pytest.param("bart", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_converted_module_exports_with_dynamic_sizes(name):
    case = build(name, 150, 32)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    net = tieops.to_torch(model)
    args = tuple(case.inputs.values())
    dims = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in args)
    program = torch.export.export(net, args, dynamic_shapes=dims).module()
    others = tuple(torch.arange(12).reshape(3, 4) + i for i in range(len(args)))
    for found, wanted in zip(flat(program(*others)), flat(net(*others)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def flat(found: Any) -> list[torch.Tensor]:
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["lstm", "gpt2"])
@pytest.mark.slow
def test_other_dtypes_are_kept(name, dtype):
    case = build(name, 60, 16)
    module = case.module.to(dtype)
    model = tieops.from_torch(module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    net = tieops.to_torch(model)
    assert {p.dtype for p in net.parameters()} == {dtype}
    args = tuple(case.inputs.values())
    found = flat(net(*args))[0]
    wanted = module(*args)
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted[0]
    rtol = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol)
    found.float().sum().backward()


# --- after surgery -------------------------------------------------------------------------------


def test_an_untied_head_has_the_shape_that_it_had_in_the_module(language_model):
    module, model = language_model
    net = tieops.to_torch(tieops.untie(model, "fc"))
    assert frozenset({"emb.weight"}) in groups_of(net)
    assert frozenset({"fc.weight"}) in groups_of(net)
    net.load_state_dict(module.state_dict())
    for tokens in TOKENS:
        torch.testing.assert_close(net(tokens), module(tokens))


def test_a_new_head_comes_with_its_learn_rate_factor(language_model):
    small = tieops.replace_head(language_model[1], "fc", out_features=7, lr_factor=10, name="new")
    net = tieops.to_torch(small)
    assert lr_factors(copy.deepcopy(net)) == {"new.weight": 10.0, "new.bias": 10.0}
    assert net(TOKENS[0]).shape == (3, 4, 7)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(language_model[0].state_dict())


class Packed(nn.Module):
    """One storage, and two parameters that are halves of it."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.randn(6, 3))
        self.first = nn.Parameter(self.whole.detach()[:3])
        self.second = nn.Parameter(self.whole.detach()[3:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.first + x @ self.second


def test_what_storages_share_is_one_parameter_that_both_readers_train():
    torch.manual_seed(0)
    module, x = Packed(), torch.randn(2, 3)
    net = tieops.to_torch(imported(module, x))
    (parameter,) = net.parameters()
    assert parameter.shape == (6, 3)
    torch.testing.assert_close(net(x), module(x))
    net(x).sum().backward()
    halves = torch.cat([x.sum(0, keepdim=True).t().expand(3, 3)] * 2)
    torch.testing.assert_close(parameter.grad, halves)


def test_a_round_trip_has_the_ties_and_the_bytes(language_model):
    module, model = language_model
    net = tieops.to_torch(model)
    again = tieops.from_torch(net, (TOKENS[0],), dynamic_shapes=({0: "batch", 1: "sequence"},))
    assert [tie.names for tie in again.ties] == [tie.names for tie in model.ties]
    stored = {name: each for each in model.parameters for name in each.names}
    found = {name: each for each in again.parameters for name in each.names}
    for name in itertools.chain.from_iterable(groups_of(module)):
        assert found[name].numpy().tobytes() == stored[name].numpy().tobytes()
    assert tieops.verify(again, against=module, rtol=1e-4)
