"""Nodes that were taken out of a model are seen by nobody, however they were taken out."""

from __future__ import annotations

import itertools
import random

import onnx_ir
import onnx_ir.passes.common as common_passes
import onnxscript.optimizer
import pytest
import torch
from torch import nn

import tieops
from tieops.ir.walk import all_graphs


def assert_uses_are_of_the_model(model: onnx_ir.Model) -> None:
    graphs = list(all_graphs(model))
    nodes = {node for graph in graphs for node in graph}
    for graph in graphs:
        outputs = (output for node in graph for output in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *outputs):
            assert all(node in nodes for node, _ in value.uses()), value.name


def assert_reads_as_its_file(model: tieops.TiedModel) -> None:
    assert_uses_are_of_the_model(model.ir)
    again = tieops.from_onnx(onnx_ir.to_proto(model.ir))
    assert str(model) == str(again)
    assert [str(each) for each in model.slots] == [str(each) for each in again.slots]


def random_graph(seed: int) -> onnx_ir.Model:
    """Return a model with Ifs in each other, most of constant condition, that read outer values."""
    rng, counter = random.Random(seed), itertools.count()

    def block(depth: int) -> tuple[str, str]:
        lines: list[str] = []
        last = rng.choice(["x", "w"])
        for _ in range(rng.randint(1, 3)):
            name = f"v{next(counter)}"
            kind = rng.choice(["Add", "MatMul", "If", "If"] if depth < 3 else ["Add", "MatMul"])
            if kind == "If":
                then, other = branch(depth + 1), branch(depth + 1)
                condition = rng.choice(["yes", "no", "c"])
                lines.append(
                    f"{name} = If({condition}) <then_branch = {then}, else_branch = {other}>"
                )
            else:
                lines.append(f"{name} = {kind}({last}, {rng.choice(['x', 'w', 'u'])})")
            last = name
        return "\n".join(lines), last

    def branch(depth: int) -> str:
        lines, last = block(depth)
        out = f"v{next(counter)}"
        return f"b{next(counter)} () => (float[4, 4] {out}) {{ {lines} {out} = Relu({last}) }}"

    lines, last = block(0)
    w, u = (", ".join(f"{rng.uniform(-1, 1):.3f}" for _ in range(16)) for _ in range(2))
    return onnx_ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[4, 4] x, bool c) => (float[4, 4] y)
        <bool yes = {{1}}, bool no = {{0}}, float[4, 4] w = {{{w}}}, float[4, 4] u = {{{u}}}>
        {{ {lines}
           y = Relu({last}) }}"""
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_graph_that_an_optimizer_folded_reads_as_its_file(seed):
    model = random_graph(seed)
    before = tieops.from_onnx(onnx_ir.to_proto(model))
    onnxscript.optimizer.optimize_ir(model)
    common_passes.RemoveUnusedNodesPass()(model)
    folded = tieops.TiedModel(model)
    assert_reads_as_its_file(folded)
    assert tieops.verify(folded, against=before, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_so_does_one_whose_nodes_were_taken_out_one_by_one(seed):
    model = random_graph(seed)
    while unread := [
        node
        for node in model.graph
        if node.op_type == "If" or not any(v.uses() or v.is_graph_output() for v in node.outputs)
    ]:
        for node in unread:
            node.outputs[0].replace_all_uses_with(model.graph.inputs[0])
            model.graph.remove(node, safe=True)
    assert_reads_as_its_file(tieops.TiedModel(model))


def test_what_is_computed_and_stored_stays():
    model = random_graph(0)
    before = onnx_ir.to_proto(model).SerializeToString()
    tieops.TiedModel(model)
    assert onnx_ir.to_proto(model).SerializeToString() == before


class Bag(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 4, **options)  # type: ignore[arg-type]

    def forward(self, ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return self.bag(ids, *rest)


IDS = torch.randint(0, 20, (12,))


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({"mode": "mean"}, (IDS.reshape(3, 4),)),
        ({"mode": "max", "padding_idx": 3}, (IDS, torch.tensor([0, 4, 7]))),
        (
            {"mode": "sum", "include_last_offset": True},
            (IDS, torch.tensor([0, 4, 12]), torch.randn(12)),
        ),
        ({"mode": "sum", "padding_idx": 0}, (IDS.reshape(3, 4), None, torch.randn(3, 4))),
    ],
    ids=["mean", "max", "weighted", "2-D weighted"],
)
def test_an_embedding_bag_whose_export_leaves_dead_branches(options, inputs):
    net = Bag(**options).eval()
    model = tieops.from_torch(net, inputs)
    assert_uses_are_of_the_model(model.ir)
    assert "bag.weight" in [parameter.name for parameter in model.parameters]
    session = tieops.session(model, "cpu")
    given = [each for each in inputs if each is not None]
    names = [str(value.name) for value in model.inputs]
    (found,) = session.run_tensors(dict(zip(names, given, strict=True))).values()
    torch.testing.assert_close(found, net(*inputs), rtol=1e-4, atol=1e-5)
