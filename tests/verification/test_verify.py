"""Verification: what must be seen is seen, and nothing that was not compared counts as equal."""

import json

import numpy as np
import onnx_ir
import pytest
import torch

import tieops
from tieops.errors import PreconditionError, UnsupportedModelError, VerificationError
from tieops.model import TiedModel
from tieops.runtime import session
from tieops.verification import verify
from tieops.verification.randomness import random_nodes

HEAD = '<ir_version: 10, opset_import: ["": 20, "local": 1]> '


def graph(text: str) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(HEAD + text)


def unary(operator: str, signature: str = "f (float[n] x) => (float[n] y)") -> onnx_ir.Model:
    return graph(f"{signature} {{ y = {operator}(x) }}")


def embedding(rows: np.ndarray) -> onnx_ir.Model:
    model = graph("f (int64[batch, seq] x) => (float[batch, seq, d] y) { y = Gather(w, x) }")
    table = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(rows))
    model.graph.register_initializer(table)
    model.graph.node(0).replace_input_with(0, table)
    return model


# verify: ONNX and ONNX


def test_equal_models_are_equal_bitwise():
    report = verify(unary("Neg"), against=unary("Neg"), rtol=0, atol=0)
    assert report
    assert report.verdict == "equal bitwise"
    assert [run.sizes for run in report.runs] == [{"n": 1}, {"n": 2}, {"n": 5}]
    assert (report.candidate_provider, report.reference_provider, report.seed) == ("cpu", "cpu", 0)


def test_a_small_difference_is_within_tolerance_or_not():
    signature = "f (float[n] x) => (float[n] y)"
    near = graph(signature + " <float[1] e = {0.000001}> { y = Add(x, e) }")
    assert verify(near, against=unary("Identity")).verdict == "equal within tolerance"
    for tolerances in ({"rtol": 0, "atol": 0}, {"rtol": 0, "atol": 1e-8}):
        with pytest.raises(VerificationError, match="y differs"):
            verify(near, against=unary("Identity"), **tolerances)


@pytest.mark.parametrize("row", [0, 500, 999])
def test_one_wrong_row_of_a_thousand_is_seen(row):
    rows = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    wrong = rows.copy()
    wrong[row, 2] += 1
    report = verify(embedding(rows), against=embedding(rows))
    assert report.coverage == {"x": (1000, 1000)}
    with pytest.raises(VerificationError) as caught:
        verify(embedding(wrong), against=embedding(rows))
    text = str(caught.value)
    assert "Model is not equal to Model: y differs" in text
    assert "max_abs_diff: 1" in text
    assert "fix: " in text


def test_a_wrong_row_in_a_branch_of_a_tied_head_is_seen():
    body = """f (int64[b, s] x, bool c) => (float[?, ?, ?] y)
        <float[4, 2] w = {0, 1, 2, 3, 4, 5, 6, 7}, float[4, 2] v = {0, 1, 2, 3, 4, 5, 6, 8}>
        { y = If(c) <then_branch = t () => (float[?, ?, ?] a) { a = Gather(w, x) },
          else_branch = e () => (float[?, ?, ?] b) { b = Gather(%s, x) }> }"""
    assert verify(graph(body % "w"), against=graph(body % "w"))
    report = verify(graph(body % "v"), against=graph(body % "w"), raises=False)
    assert report.verdict == "different"
    with pytest.raises(VerificationError):
        verify(graph(body % "v"), against=graph(body % "w"))


def test_removed_outputs_are_listed_not_counted():
    two = graph("f (float[n] x) => (float[n] y, float[n] z) { y = Neg(x) z = Exp(x) }")
    report = verify(unary("Neg"), against=two)
    assert report
    assert report.missing_outputs == ("z",)
    assert "missing    z" in str(report)
    report = verify(two, against=unary("Neg"))
    assert report.extra_outputs == ("z",)


def test_outputs_are_matched_by_name_not_by_order():
    one = graph("f (float[n] x) => (float[n] y, float[n] z) { y = Neg(x) z = Exp(x) }")
    other = graph("f (float[n] x) => (float[n] z, float[n] y) { y = Neg(x) z = Exp(x) }")
    assert verify(one, against=other)


def test_no_output_in_common_is_an_error():
    other = graph("f (float[n] x) => (float[n] other) { other = Neg(x) }")
    for raises in (True, False):
        with pytest.raises(VerificationError, match="no output in common") as caught:
            verify(other, against=unary("Neg"), raises=raises)
    assert "candidate: other    reference: y" in str(caught.value)


def test_comparing_nothing_is_an_error():
    neg = unary("Neg")
    for options in ({"sizes": {"n": 0}}, {"inputs": []}, {"inputs": {"x": np.float32([])}}):
        with pytest.raises(VerificationError, match="nothing was compared"):
            verify(neg, against=neg, raises=False, **options)


def test_other_shapes_and_dtypes_differ():
    longer = graph("f (float[n] x) => (float[?] y) { y = Concat<axis = 0>(x, x) }")
    report = verify(longer, against=unary("Identity"), raises=False)
    assert not report
    assert report.runs[0].outputs[0].mismatch == "shape [2] instead of [1]"
    with pytest.raises(VerificationError, match=r"shape \[\d+\] instead of"):
        verify(longer, against=unary("Identity"))
    wider = graph("f (float[n] x) => (double[n] y) { y = Cast<to = 11>(x) }")
    with pytest.raises(VerificationError, match="dtype float64 instead of float32"):
        verify(wider, against=unary("Identity"))


def test_inputs_that_do_not_fit_are_refused():
    neg = unary("Neg")
    with pytest.raises(PreconditionError, match="no input is named z"):
        verify(neg, against=neg, inputs={"z": [1.0]})
    with pytest.raises(PreconditionError, match="x is int64, not float32"):
        verify(neg, against=neg, inputs={"x": np.int64([1])})
    with pytest.raises(PreconditionError, match="sizes= has no effect"):
        verify(neg, against=neg, inputs={"x": [1.0]}, sizes={"n": 2})
    other = graph("f (float[n] x, float[n] z) => (float[n] y) { y = Add(x, z) }")
    with pytest.raises(PreconditionError, match="z is missing"):
        verify(other, against=neg)
    with pytest.raises(
        PreconditionError, match="atol must be a finite number of at least 0, got nan"
    ):
        verify(neg, against=neg, atol=float("nan"))
    with pytest.raises(PreconditionError, match="cannot compare a dict"):
        verify({}, against=neg)


def test_given_inputs_are_used():
    step = graph("f (float[n] x) => (float[n] y) <float t = {3}, float z = {0}> "
                 "{ c = Greater(x, t) y = Where(c, z, x) }")  # fmt: skip
    same = unary("Identity")
    assert verify(step, against=same, inputs={"x": [1.0, 2.0]}).seed is None
    runs = [{"x": [1.0]}, {"x": torch.tensor([4.0], requires_grad=True)}]
    report = verify(step, against=same, inputs=runs, raises=False)
    assert [run.outputs[0].ok for run in report.runs] == [True, False]


def test_a_session_is_read_within_its_own_limits(tmp_path):
    model = unary("Neg")
    next(iter(model.graph)).name = "n" * 70_000
    path = tmp_path / "m.onnx"
    onnx_ir.save(model, path)
    with pytest.raises(UnsupportedModelError, match="more than the limit"):
        verify(session(path, "cpu"), against=model)
    raised = tieops.Limits(name_bytes=100_000)
    assert verify(session(path, "cpu"), against=model, limits=raised)
    assert verify(session(path, "cpu", limits=raised), against=model)


def test_paths_protos_bytes_sessions_and_tied_models(tmp_path):
    neg = unary("Neg")
    path = tmp_path / "m.onnx"
    onnx_ir.save(neg, path)
    proto = onnx_ir.to_proto(neg)
    sess = session(neg, "cpu")
    for each in (path, str(path), proto, proto.SerializeToString(), sess, TiedModel(neg)):
        assert verify(each, against=neg, rtol=0, atol=0)
        assert not verify(unary("Exp"), against=each, raises=False)
    assert sess.run({"x": [1.0]})["y"].tolist() == [-1.0]  # the caller's session stays open
    assert verify(path, against=neg).candidate == "m.onnx"


# verify: random operators


@pytest.mark.parametrize(
    "body",
    [
        "y = RandomNormalLike(x)",
        "r = RandomUniform<shape = [1]>() y = Add(x, r)",
        "r = RandomNormal<shape = [1], seed = 1.0>() y = Add(x, r)",
        "r = Bernoulli(x) y = Add(x, r)",
        "h = Constant<value_float = 0.5>() t = Constant<value = bool {1}>() y = Dropout(x, h, t)",
        "c = Constant<value = bool {1}>() y = If(c) <then_branch = t () => (float[n] a) "
        "{ a = RandomNormalLike(x) }, else_branch = e () => (float[n] b) { b = Neg(x) }>",
        "y = local.noise(x)",
    ],
)
def test_random_operators_are_a_verdict_of_their_own(body):
    noise = '<domain: "local", opset_import: ["": 20]> noise (a) => (b) { b = RandomNormalLike(a) }'
    more = noise if "local" in body else ""
    model = graph(f"f (float[n] x) => (float[n] y) {{ {body} }} {more}")
    for pair in ((model, unary("Neg")), (unary("Neg"), model)):
        report = verify(pair[0], against=pair[1], raises=False)
        assert not report
        assert report.verdict == "not comparable"
        assert report.runs == ()
        assert len(report.random_nodes) == 1
        with pytest.raises(VerificationError, match="outputs are random"):
            verify(pair[0], against=pair[1])


@pytest.mark.parametrize(
    "body",
    [
        "unused = RandomNormalLike(x) y = Neg(x)",
        "y = Dropout(x)",
        "h = Constant<value_float = 0.5>() t = Constant<value = bool {0}>() y = Dropout(x, h, t)",
    ],
)
def test_what_draws_nothing_for_an_output_is_comparable(body):
    model = graph(f"f (float[n] x) => (float[n] y) {{ {body} }}")
    assert random_nodes(model) == ()
    assert verify(model, against=model)


# verify: torch


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Embedding(40, 8)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 40, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids, scale=None):
        hidden = self.drop(self.emb(ids))
        return self.head(hidden if scale is None else hidden * scale), None, {"hidden": hidden}


def tied_pair() -> tuple[Tied, onnx_ir.Model]:
    torch.manual_seed(0)
    net = Tied()
    model = graph("f (int64[b, s] ids) => (float[b, s, v] logits, float[b, s, d] hidden) "
                  "{ hidden = Gather(w, ids) t = Transpose<perm = [1, 0]>(w) "
                  "logits = MatMul(hidden, t) }")  # fmt: skip
    rows = net.emb.weight.detach().numpy().copy()
    table = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(rows))
    model.graph.register_initializer(table)
    model.graph.node(0).replace_input_with(0, table)
    model.graph.node(1).replace_input_with(0, table)
    return net, model


def test_a_module_is_a_reference_and_a_candidate():
    net, model = tied_pair()
    net.emb.training = False
    flags = [each.training for each in net.modules()]
    report = verify(model, against=net)
    assert report.verdict in ("equal bitwise", "equal within tolerance")
    assert (report.reference, report.reference_provider) == ("Tied", "torch")
    assert [output.name for output in report.runs[0].outputs] == ["logits", "hidden"]
    assert report.coverage == {"ids": (40, 40)}
    assert verify(net, against=model)
    assert [each.training for each in net.modules()] == flags
    with torch.no_grad():
        net.emb.weight[39] += 1
    with pytest.raises(VerificationError):
        verify(model, against=net)


def test_names_that_a_module_does_not_have_go_by_position():
    net, model = tied_pair()
    model.graph.inputs[0].name = "x"
    assert verify(model, against=net)
    swapped = graph("f (float[n] scale, float[n] z) => (float[n] y) { y = Sub(scale, z) }")
    with pytest.raises(PreconditionError, match="scale is at another place") as caught:
        verify(swapped, against=net)
    assert "inputs: scale, z    parameters: ids, scale" in str(caught.value)
    many = graph("f (float[n] a, float[n] b, float[n] c) => (float[n] y) { y = Sum(a, b, c) }")
    with pytest.raises(PreconditionError, match="too many positional arguments"):
        verify(many, against=net)


def test_an_input_that_the_export_dropped_still_reaches_the_module():
    net, model = tied_pair()
    feeds = {"ids": np.int64([[1, 2]]), "scale": np.float32(1)}
    assert verify(model, against=net, inputs=feeds)
    feeds["scale"] = np.float32(2)
    assert not verify(model, against=net, inputs=feeds, raises=False)


def test_another_number_of_outputs_shows_both():
    net, _ = tied_pair()
    one = graph("f (int64[n] ids) => (int64[n] y) { y = Neg(ids) }")
    with pytest.raises(VerificationError, match="Model has 1 outputs, Tied has 2") as caught:
        verify(one, against=net, inputs={"ids": [1]}, raises=False)
    assert "Model: y int64[1]" in str(caught.value)
    assert "Tied (reference): output 0 float32[1, 40], output 1 float32[1, 8]" in str(caught.value)


def test_modules_against_modules_and_programs(tmp_path):
    net, model = tied_pair()
    ids = torch.tensor([[3, 4]])
    with pytest.raises(PreconditionError, match="cannot make inputs"):
        verify(net, against=net)
    assert verify(net, against=net, inputs={"ids": ids}).verdict == "equal bitwise"
    program = torch.export.export(net.eval(), (ids,))
    assert verify(program, against=net, inputs={"ids": ids})
    assert verify(model, against=program, sizes={"b": 1, "s": 2})
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    report = verify(path, against=model, inputs={"ids": ids})
    assert (report.candidate, report.candidate_provider) == ("net.pt2", "torch")
    with pytest.raises(PreconditionError, match="do not fit ExportedProgram"):
        verify(program, against=net, inputs={"ids": ids, "scale": 1.0})


def test_a_module_that_answers_otherwise_each_time_is_not_comparable():
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, 0.5, training=True) + torch.rand(1)

    report = verify(unary("Identity"), against=Noisy(), raises=False)
    assert report.verdict == "not comparable"
    assert "Noisy (other outputs for the same inputs)" in str(report)
    assert not report.runs


def test_a_module_that_writes_into_its_inputs_harms_nothing():
    class Writes(torch.nn.Module):
        def forward(self, x):
            return x.mul_(2)

    twice = graph("f (float[n] x) => (float[n] y) { y = Add(x, x) }")
    assert verify(Writes(), against=twice).verdict == "equal bitwise"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8e4m3fn", "double", "bool"])
def test_torch_dtypes(dtype):
    model = unary("Identity", f"f ({dtype}[n] x) => ({dtype}[n] y)")
    assert verify(model, against=torch.nn.Identity(), rtol=0, atol=0)


def test_what_torch_cannot_take_or_return():
    class Text(torch.nn.Module):
        def forward(self, x):
            return "text"

    with pytest.raises(UnsupportedModelError, match="returns a str"):
        verify(unary("Neg"), against=Text())
    words = unary("Identity", "f (string[n] x) => (string[n] y)")
    assert verify(words, against=words)
    with pytest.raises(PreconditionError, match="torch cannot take the input x"):
        verify(words, against=torch.nn.Identity())


# the report


def test_the_report_is_a_table_that_fits():
    signature = f"f (float[n] x) => (float[n] y, float[n] {'long_' * 12}z)"
    right = graph(f"{signature} {{ y = Neg(x) {'long_' * 12}z = Exp(x) }}")
    wrong = graph(f"{signature} {{ y = Neg(x) {'long_' * 12}z = Sin(x) }}")
    report = verify(wrong, against=right, raises=False)
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("different (rtol 0.0001, atol 1e-05; integers and strings exactly)")
    assert "bitwise" in text
    assert "DIFFERENT" in text
    assert " instead of " in text
    found = report.worst()
    assert found is not None
    assert found[1].name.startswith("long_")
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["equal"] is False
    assert data["verdict"] == "different"
    assert data["runs"][0]["sizes"] == {"n": 1}
    assert data["runs"][0]["outputs"][0]["bitwise"] is True


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"inputs": np.zeros(3, np.float32)}, "expected a dict of inputs by name, got a ndarray"),
        ({"inputs": torch.zeros(3)}, "expected a dict of inputs by name, got a Tensor"),
        ({"inputs": [torch.zeros(3)]}, "expected a dict of inputs by name, got a Tensor"),
        ({"inputs": 5}, "expected a dict of inputs by name, got an int"),
        ({"sizes": 5}, "expected sizes to map names to integers"),
        ({"sizes": {"n": "a"}}, "expected sizes to map names to integers"),
        ({"seed": "a"}, "seed must be a non-negative integer, got 'a'"),
        ({"rtol": "a"}, "rtol must be a finite number of at least 0, got a"),
    ],
)
def test_wrong_types_are_refused_in_three_parts(given, words):
    text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y) { y = Neg(x) }'
    model = onnx_ir.from_onnx_text(text)
    with pytest.raises(PreconditionError, match=words) as caught:
        verify(model, against=model, **given)
    assert caught.value.fix


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_module_takes_its_inputs_by_name_or_in_order():
    module = torch.nn.Linear(3, 2).eval()
    model = tieops.from_torch(module, (torch.zeros(2, 3),), dynamic_shapes=[{0: "n"}])
    assert verify(model, against=torch.jit.trace(module, torch.zeros(2, 3)))
    assert verify(model, against=torch.jit.script(module))
