"""Names in graphs within graphs: read as ONNX Runtime reads them, or refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch

import tieops
from tests.support.graphs import made
from tieops.errors import UnsupportedModelError

OUTER = "<float[1] w = {10}>"
IF = (
    "g (float[1] x, bool c) => (float[1] y) {outer} {{ {before} y = If(c) <"
    "then_branch = t () => (float[1] p) {stored} {{ {then} }},"
    "else_branch = e () => (float[1] q) {{ {other} }}> }}"
)
LOOP = (
    "g (float[1] x, bool c) => (float[1] y) {outer} {{ n = Constant<value = int64 {{2}}>()"
    " z = Loop(n, c, x) <body = b (int64 i, bool k, float[1] s) => (bool k2, float[1] s2)"
    " {stored} {{ k2 = Identity(k)  {body} }}>  {after} }}"
)


def branches(
    then: str = "p = Add(x, w)",
    other: str = "q = Add(x, w)",
    outer: str = OUTER,
    stored: str = "<float[1] w = {100}>",
    before: str = "",
) -> str:
    return IF.format(then=then, other=other, outer=outer, stored=stored, before=before)


def loop(body: str, after: str = "y = Add(z, w)", stored: str = "<float[1] w = {100}>") -> str:
    return LOOP.format(body=body, after=after, stored=stored, outer=OUTER)


def within(stored: str, other: str) -> str:
    text = "p = If(c) <then_branch = t2 () => (float[1] p2) %s { p2 = Add(x, w) },"
    text += " else_branch = e2 () => (float[1] q2) { %s }>"
    return text % (stored, other)


def answers(proto: onnx.ModelProto, *, optimized: bool = False) -> list[list[float]]:
    """Run a model with both conditions."""
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x = np.ones(1, np.float32)
    found = [session.run(None, {"x": x, "c": np.array(c)}) for c in (True, False)]
    return [[float(np.asarray(each)[0]) for each in outputs] for outputs in found]


READ = {
    "nobody else reads it": branches(other="q = Neg(x)"),
    "no outer value": branches(outer="", other="q = Neg(x)"),
    "a middle branch stores it": branches(within("", "q2 = Neg(x)"), "q = Neg(x)"),
    "the inner one stores it": branches(
        within("<float[1] w = {200}>", "q2 = Neg(x)"), "q = Neg(x)", stored=""
    ),
    "the body of a loop stores it": loop("s2 = Add(s, w)"),
    "and a branch in it reads it": loop(
        "s2 = If(c) <then_branch = t () => (float[1] p) { p = Add(s, w) },"
        " else_branch = e () => (float[1] q) { q = Sub(s, w) }>"
    ),
}
REFUSED = {
    "the other reads an outer tensor": branches(),
    "the other reads what a node gives": branches(outer="", before="w = Neg(x)"),
    "the other reads an input": branches("p = Neg(x)", "q = Neg(x)", stored="<float[1] x = {100}>"),
    "a branch in the other reads it": branches(
        other=within("", "q2 = Neg(x)").replace("p =", "q =")
    ),
    "branches within a branch": branches(
        within("<float[1] w = {200}>", "q2 = Add(x, w)"), "q = Neg(x)", stored=""
    ),
    "branches in the body of a loop": loop(
        "s2 = If(c) <then_branch = t () => (float[1] p) <float[1] w = {200}> { p = Add(s, w) },"
        " else_branch = e () => (float[1] q) { q = Sub(s, w) }>"
    ),
}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_a_name_of_an_outer_value_is_read_as_the_runtime_does(text: str) -> None:
    model = made(text)
    want = answers(onnx_ir.to_proto(model.ir))
    assert answers(onnx_ir.to_proto(model.ir), optimized=True) == want
    assert answers(onnx_ir.to_proto(tieops.untie(model).ir)) == want
    trained = tieops.to_torch(model)
    found = [trained(torch.ones(1), torch.tensor(c)) for c in (True, False)]
    assert [[float(each)] for each in found] == want


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_the_runtime_reads_as_the_outer_value_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedModelError, match="has the name of an outer value"):
        made(text)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    with pytest.raises(UnsupportedModelError, match="has the name of an outer value"):
        tieops.from_onnx(onnx_ir.from_proto(proto))
    stored = [(t, a.g) for n in walk(proto.graph) for a in n.attribute for t in a.g.initializer]
    renamed = onnx.ModelProto.FromString(proto.SerializeToString())
    assert stored
    for node in walk(renamed.graph):
        for graph in (a.g for a in node.attribute if a.g.initializer):
            for inner in graph.node:
                inner.input[:] = [
                    f"own_{n}" if n in {t.name for t in graph.initializer} else n
                    for n in inner.input
                ]
            for tensor in graph.initializer:
                tensor.name = f"own_{tensor.name}"
    if not any(node.op_type == "Loop" for node in walk(renamed.graph)):
        tieops.from_onnx(renamed)
        assert answers(renamed) != answers(proto)  # the branch reads what it stores then


def walk(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph and of those within it."""
    nested = [walk(a.g) for node in graph.node for a in node.attribute]
    return [*graph.node, *(node for nodes in nested for node in nodes)]
