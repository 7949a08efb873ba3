"""What is a learnable: torch's word, else what reads a tensor; never its name."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import tieops
from fixtures.torch_models import Case
from tests.corpus.families import FAMILIES, build
from tieops.ir.evidence import Evidence

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's older exporter says that it is old
FAST = ("gpt2", "bert")
BOTH_LENGTHS = (*FAST, "llama", "gemma3", "mamba", "t5", "whisper")
NOT_EXPORTED = {
    "longformer": "torch.export meets a size that data decides",
    "led": "torch.export meets a size that data decides",
    "prophetnet": "onnxscript cannot clean up its export with dynamic sizes",
    "switch_transformers": "its forward fails while torch.export traces it",
}
"""Families that cannot be exported with dynamic sizes, with the reason."""
EXPORTED = tuple(name for name in FAMILIES if name not in NOT_EXPORTED)


def text_model(body: str, opset: int = 21, **tensors: np.ndarray) -> tieops.TiedModel:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {body}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return tieops.from_onnx(proto)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def trained(model: tieops.TiedModel) -> set[str]:
    return {name for name, _ in tieops.to_torch(model).named_parameters()}


@pytest.mark.parametrize(
    ("body", "tensors", "wanted"),
    [
        (
            "g (float[n,32] x) => (float[n,8] y) { w = DequantizeLinear<axis=1>(q, s)"
            " y = MatMul(x, w) }",
            {"q": np.ones((32, 8), np.int8), "s": np.ones(8, np.float32)},
            set(),
        ),
        (
            "g (float[1,8,4,4] x) => (float[1,10,8,8] y) { c = Conv(x, w, b)"
            ' y = Resize<mode="nearest">(c, , sc) }',
            {"w": noise(10, 8, 1, 1), "b": noise(10), "sc": np.array([1, 1, 2, 2], np.float32)},
            {"w", "b"},
        ),
        (  # a causal mask is added to scores; the bias of a product is one
            "g (float[2,8,4] q) => (float[2,8,8] y) { k = MatMul(q, w) kb = Add(k, b)"
            " t = Transpose<perm=[0,2,1]>(kb) s = MatMul(q, t) m = Add(s, mask) y = Softmax(m) }",
            {"w": noise(4, 4), "b": noise(4), "mask": np.triu(np.full((8, 8), -1e9, "f4"), 1)},
            {"w", "b"},
        ),
        (  # inverse frequencies multiply positions and become sines; a norm's gain is one
            "g (float[1,8,6] x, int64[8,1] at) => (float[1,8,6] y) { p = Cast<to=1>(at)"
            " f = MatMul(p, inv) a = Concat<axis=-1>(f, f) c = Cos(a) r = Mul(x, c)"
            " y = Mul(r, gain) }",
            {"inv": noise(1, 3), "gain": noise(6)},
            {"gain"},
        ),
        (  # a cache of cosines that is looked up by position rotates what it multiplies
            "g (float[1,8,4] x, int64[8] at) => (float[1,8,4] y) { h = MatMul(x, w)"
            " c = Gather(cos, at) s = Gather(sin, at) a, b = Split<axis=-1, num_outputs=2>(h)"
            " nb = Neg(b) r = Concat<axis=-1>(nb, a) hc = Mul(h, c) rs = Mul(r, s)"
            " y = Add(hc, rs) }",
            {"w": noise(4, 4), "cos": noise(16, 4), "sin": noise(15, 4)},
            {"w"},
        ),
        (  # running statistics are buffers
            "g (float[2,3,4] x) => (float[2,3,4] y) { y = BatchNormalization(x, s, b, m, v) }",
            {"s": noise(3), "b": noise(3), "m": noise(3), "v": np.ones(3, np.float32)},
            {"s", "b"},
        ),
        (  # a table of positions that nothing looks up
            "g (int64[2,8] ids) => (float[2,8,4] y) { e = Gather(emb, ids) y = Add(e, pos) }",
            {"emb": noise(9, 4), "pos": noise(1, 8, 4)},
            {"emb"},
        ),
        (  # slopes of heads multiply positions
            "g (float[2,3,8,8] s, int64[8] at) => (float[2,3,8,8] y) { p = Cast<to=1>(at)"
            " b = Mul(p, slopes) a = Add(s, b) y = Softmax(a) }",
            {"slopes": noise(3, 1, 1)},
            set(),
        ),
        (  # rows that are looked up by number, by whichever operator
            "g (int64[2,1] at) => (float[2,4] y) { y = GatherND(emb, at) }",
            {"emb": noise(9, 4)},
            {"emb"},
        ),
    ],
    ids=[
        "scale",
        "resize",
        "mask",
        "inverse",
        "rotary",
        "statistics",
        "positions",
        "slopes",
        "numbers",
    ],
)
def test_roles_decide_what_is_learnable(body, tensors, wanted):
    model = text_model(body, **tensors)
    assert trained(model) == wanted
    assert all(tie.parameter.name in wanted for tie in model.ties)


def test_the_head_is_before_a_resize():
    body = (
        "g (float[1,8,4,4] x) => (float[1,10,8,8] y) { c = Conv(x, w, b)"
        ' y = Resize<mode="nearest">(c, , sc) }'
    )
    scales = np.array([1, 1, 2, 2], np.float32)
    model = text_model(body, w=noise(10, 8, 1, 1), b=noise(10), sc=scales)
    small = tieops.replace_head(model, out_features=5)
    assert [int(size) for size in small.ir.graph.outputs[0].shape] == [1, 5, 8, 8]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(1000, 64)
        self.mid = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.fc = nn.Linear(64, 1000, bias=False)
        self.fc.weight = self.emb.weight
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, ids):
        return self.fc(self.norm(torch.relu(self.mid(self.emb(ids)))))


def export(module: nn.Module, args: tuple, path: Path, exporter: str) -> Path:
    if exporter == "dynamo":
        torch.onnx.export(module.eval(), args, dynamo=True, verbose=False).save(path)
    else:
        torch.onnx.export(module.eval(), args, path, dynamo=False)
    return path


@pytest.mark.parametrize("exporter", ["dynamo", "older"])
def test_names_do_not_decide(exporter, tmp_path):
    torch.manual_seed(0)
    path = export(Net(), (torch.zeros(2, 5, dtype=torch.long),), tmp_path / "m.onnx", exporter)
    proto = onnx.load(path)
    plain = tieops.from_onnx(proto)
    new = {each.name: f"q{place}z" for place, each in enumerate(proto.graph.initializer)}
    for each in proto.graph.initializer:
        each.name = new[each.name]
    for node in proto.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
    renamed = tieops.from_onnx(proto)

    def contents(model: tieops.TiedModel) -> list[bytes]:
        found = tieops.to_torch(model).parameters()
        return sorted(np.sort(each.detach().numpy(), axis=None).tobytes() for each in found)

    assert contents(renamed) == contents(plain)
    # The older exporter stores the tied weight once more, transposed: a duplicate, not a tie.
    twice = exporter == "older"
    assert len(contents(plain)) == len(list(Net().parameters())) + twice
    assert len(renamed.ties) == len(plain.ties) == (not twice)


def norms() -> nn.Module:
    parts = [each for _ in range(3) for each in (nn.Linear(64, 64), nn.LayerNorm(64))]
    return nn.Sequential(*parts)


def groups() -> nn.Module:
    parts = [each for _ in range(3) for each in (nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8))]
    return nn.Sequential(*parts)


def train(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    target = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        optimizer.step()
    return module(x).detach()


@pytest.mark.parametrize("made", [norms, groups])
@pytest.mark.parametrize("source", ["module", "script", "dynamo", "older"])
def test_parameters_that_begin_equal_stay_apart_and_train_alike(made, source, tmp_path):
    torch.manual_seed(0)
    net = made().eval()
    x = torch.rand(2, 64) if made is norms else torch.rand(2, 8, 4, 4)
    if source == "module":
        model = tieops.from_torch(net, (x,))
    elif source == "script":
        model = tieops.from_torch(torch.jit.script(net), (x,))
    else:
        model = tieops.from_onnx(export(net, (x,), tmp_path / "m.onnx", source))
        assert {tie.evidence for tie in model.accidental_ties} == {Evidence.ACCIDENTAL}
        assert any(each.kind == "accidental tie" for each in model.analysis.problems)
    assert len(model.ties) == 0
    back = tieops.to_torch(model)
    assert {name for name, _ in back.named_parameters()} == {n for n, _ in net.named_parameters()}
    torch.testing.assert_close(train(back, x), train(copy.deepcopy(net), x), rtol=1e-4, atol=1e-5)
    apart = tieops.untie(model, accidental=True)
    assert not apart.accidental_ties
    assert len(tieops.tie(apart).parameters) == len(apart.parameters)


class Shared(nn.Module):
    """One fresh norm that is called three times, and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        for _ in range(3):
            x = torch.relu(self.norm(x))
        return self.last(x)


@pytest.mark.parametrize("exporter", ["dynamo", "older"])
def test_the_calls_of_one_module_stay_tied(exporter, tmp_path):
    path = export(Shared(), (torch.rand(2, 8),), tmp_path / "m.onnx", exporter)
    apart = tieops.untie(tieops.from_onnx(path), accidental=True)
    assert sorted(len(tie.slots) for tie in apart.ties) == [3, 3]
    names = {name for name, _ in tieops.to_torch(apart).named_parameters()}
    assert names == {"norm.weight", "norm.bias", "last.weight", "last.bias"}


class Gaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.a.weight.requires_grad_(False)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        with torch.no_grad():
            h = self.a(x)
        return self.b(h) + self.b(x).detach()


def test_frozen_parameters_stay_frozen_and_what_a_graph_cannot_say_is_told(tmp_path):
    net = Gaps().eval()
    model = tieops.from_torch(net, (torch.rand(2, 4),))
    again = tieops.from_onnx(tieops.to_onnx(model, tmp_path / "m.onnx").path)
    wanted = {name: each.requires_grad for name, each in net.named_parameters()}
    for each in (model, again, tieops.untie(again)):
        back = tieops.to_torch(each)
        found = {name: each.requires_grad for name, each in back.named_parameters()}
        assert found.items() >= wanted.items()
    told = [each.what for each in again.analysis.problems if each.kind == "forward"]
    assert [re.findall("no_grad|detach|buffer count", each) for each in told] == [
        ["no_grad"],
        ["detach"],
        ["buffer count"],
    ]
    assert net.count.item() == 0


def reached(case: Case) -> set[str]:
    """Return the names of the parameters that an output depends on: a program has these alone."""
    module = copy.deepcopy(case.module)
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # a frozen one is read as any other
    outputs = [each for each in module(**case.inputs).values() if isinstance(each, torch.Tensor)]
    torch.stack([each.sum() for each in outputs if each.requires_grad]).sum().backward()
    found = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in found if parameter.grad is not None}


@pytest.mark.parametrize(
    ("family", "length"),
    [
        (family, length)
        for length, families in (("dynamic", EXPORTED), ("fixed", BOTH_LENGTHS))
        for family in families
    ],
)
@pytest.mark.slow
def test_a_round_trip_has_the_modules_parameters(family, length):
    case = build(family, 150)
    shapes = case.dynamic_shapes if length == "dynamic" else None
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=shapes)
    named = dict(case.module.named_parameters(remove_duplicate=False))
    back = dict(tieops.to_torch(model).named_parameters(remove_duplicate=False))
    assert back.keys() == reached(case)
    assert all(each.requires_grad == named[name].requires_grad for name, each in back.items())
    objects = len({id(named[name]) for name in back})
    assert len({id(each) for each in back.values()}) == objects
    assert all(set(tie.names) & named.keys() for tie in model.ties)
    assert not model.accidental_ties


HOME = {"ir/learnables/rules.py", "ir/metadata/torch_kinds.py", "ir/metadata/keys.py"}


# Whether an operator is a layer by itself, whatever it reads.
def test_a_mask_of_quantized_scores_is_a_constant():
    """A product of integers multiplies two computed matrices as a product of floats does."""
    model = text_model(
        "g (float[2,8] x) => (float[2,2] y) { k = MatMul(x, w) t = Transpose<perm=[1,0]>(k)"
        " aq, as, az = DynamicQuantizeLinear(k) bq, bs, bz = DynamicQuantizeLinear(t)"
        " s = MatMulInteger(aq, bq, az, bz) f = Cast<to=1>(s) ss = Mul(as, bs) d = Mul(f, ss)"
        " m = Add(d, mask) y = Softmax(m) }",
        w=noise(8, 8),
        mask=noise(2),
    )
    assert [each.name for each in model.parameters] == ["w"]


ASKS_FOR_ROLES = {"analysis/computed_weights.py", "analysis/trace.py"}


def test_nobody_else_decides_what_is_learnable():
    root = Path(tieops.__file__).parent
    words = re.compile(r"TORCH_KIND|TORCH_PERSISTENT|[\"'](PARAMETER|BUFFER|CONSTANT_TENSOR)[\"']")
    roles = re.compile(r"is_learnable_role|running_mean|MIN_TABLE")
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name in HOME or name.startswith("ir/operators/"):
            continue
        text = path.read_text("utf-8")
        assert not words.search(text), f"{name} reads torch's word itself"
        may_ask = "exporters/torch/ops" in name or name in ASKS_FOR_ROLES
        assert may_ask or not roles.search(text), f"{name} judges roles"


class _OwnTable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(9, 4))
        self.gate = torch.nn.Parameter(torch.randn(4, 4))
        self.out = torch.nn.Linear(4, 9)

    def forward(self, ids):
        return self.out(torch.nn.functional.embedding(ids, self.table) @ self.gate)


def test_a_lookup_of_a_tensor_with_a_name_makes_no_second_name(tmp_path):
    """Only a reader that owns no name of a tensor has one made for it, after its module."""
    net = torch.nn.Sequential(_OwnTable()).eval()
    path = tmp_path / "old.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the old exporter
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(net, (torch.tensor([1, 2]),), path, dynamo=False)
    again = tieops.to_torch(tieops.from_onnx(path))
    assert set(again.state_dict()) == set(net.state_dict())


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("optimize", [True, False])
def test_what_an_exporter_fills_in_for_an_embedding_bag_is_no_learnable(mode, optimize):
    """The exporter gives each sample a weight of one, and reads the table for its type."""
    bag = nn.Sequential(nn.EmbeddingBag(9, 4, mode=mode), nn.Linear(4, 9, bias=False)).eval()
    bag[1].weight = bag[0].weight
    ids = torch.tensor([[1, 2, 3], [4, 0, 8]])
    program = torch.onnx.export(bag, (ids,), dynamo=True, optimize=optimize, verbose=False)
    model = tieops.from_onnx(program.model_proto)
    assert [len({slot.reader for slot in tie.slots}) for tie in model.ties] == [2]
    assert {each.name for each in tieops.untie(model).parameters} == {"0.weight", "1.weight"}


@pytest.mark.parametrize("like", ["CastLike(n, w)", "RandomUniformLike<seed=1.0>(w)", "EyeLike(w)"])
def test_who_reads_the_type_of_a_weight_is_no_reader(like):
    model = text_model(
        "g (int64[8,8] n, float[2,8] x) => (float[2,8] y, float[8,8] z)"
        f" {{ y = MatMul(x, w) z = {like} }}",
        w=noise(8, 8),
    )
    assert [slot.name for slot in model.slots] == ["MatMul_y.weight"]
