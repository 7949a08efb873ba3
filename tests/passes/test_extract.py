"""Extracting: a model cut at any of its values is two models that compute what it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import nn

import tieops
from tests.support.golden_graphs import CASES, load
from tests.support.graphs import made, rows
from tests.support.model_facts import dead, outputs, serialized, unread
from tests.support.tied_head import TOKENS, TiedHead
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.walk import nodes_within
from tieops.model import TiedModel


def parted(model: TiedModel, **where: Any) -> TiedModel:
    """Extract a part, and check all that always holds."""
    before = serialized(model.ir)
    part = tieops.extract(model, **where)
    assert serialized(model.ir) == before, "the argument was changed"
    onnx.checker.check_model(onnx_ir.to_proto(part.ir), full_check=True)
    assert not unread(part)
    assert not dead(part)
    return part


def behind(model: TiedModel, name: str) -> TiedModel:
    """Return what comes behind a value, fed with what else that needs, as the error lists it."""
    try:
        return parted(model, inputs=[name])
    except PreconditionError as error:
        if "needed too" not in error.facts:
            raise
        more = str(error.facts["needed too"]).split(", ")
    return parted(model, inputs=[name, *more])


def depends_on(model: TiedModel, name: str) -> bool:
    """Return whether an output comes behind a value of the main graph."""
    reached = {v for node in model.ir.graph for v in node.outputs if v.name == name}
    first = set(reached)
    for node in model.ir.graph:
        if any(value in reached for inner in nodes_within([node]) for value in inner.inputs):
            reached.update(node.outputs)
    return any(output in reached - first for output in model.ir.graph.outputs)


def inner_values(model: TiedModel) -> Iterator[str]:
    for node in model.ir.graph:
        for value in node.outputs:
            fed = value.name and value.const_value is None and node.op_type != "Constant"
            if fed and (value.uses() or value.is_graph_output()):
                yield str(value.name)


@pytest.mark.parametrize("case", CASES)
def test_the_parts_before_and_behind_any_value_compute_what_the_whole_does(case, plain_runtime):
    model = TiedModel(load(case, "before"))
    feeds = plain_runtime.feeds(model.ir, 0)
    want = outputs(model, feeds)
    cuts = 0
    for name in inner_values(model):
        front = parted(model, outputs=[name])
        value = outputs(front, {v.name: feeds[v.name] for v in front.inputs})[name]
        if not depends_on(model, name):
            with pytest.raises(PreconditionError, match="depends on the inputs"):
                tieops.extract(model, inputs=[name])
            continue
        back = behind(model, name)
        fed = {**feeds, name: value}
        got = outputs(back, {v.name: fed[v.name] for v in back.inputs})
        assert got
        for output, array in got.items():
            if array.dtype == np.float16:
                # The CPU has no kernels of it: between two nodes it keeps float32, at a cut not.
                np.testing.assert_allclose(array, want[output], rtol=2e-3)
            else:
                assert array.tobytes() == want[output].tobytes(), (name, output)
        cuts += 1
    assert cuts or len(list(model.ir.graph)) < 4


class Autoencoder(nn.Module):
    """The seed's: the decoder reads the encoder's weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(96, 40)
        self.decoder = nn.Linear(40, 96)
        del self.decoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = torch.sigmoid(self.encoder(x))
        return torch.sigmoid(nn.functional.linear(code, self.encoder.weight.T, self.decoder.bias))


def test_encoder_and_decoder_of_a_tied_autoencoder_share_one_data_file(tmp_path: Path):
    net = Autoencoder().eval()
    x = torch.randn(3, 96)
    whole = tieops.from_torch(net, (x,))
    encoder, decoder = parted(whole, outputs=["sigmoid"]), parted(whole, inputs=["sigmoid"])
    alone = tieops.to_onnx(whole, tmp_path / "whole.onnx", external_data=True)
    one, other = tieops.to_onnx([encoder, decoder], [tmp_path / "e.onnx", tmp_path / "d.onnx"])
    assert one.data_paths == other.data_paths
    sizes = [path.stat().st_size for path in (*alone.data_paths, *one.data_paths)]
    assert sizes[0] == sizes[1]
    code = outputs(encoder, {"x": x.numpy()})
    assert outputs(decoder, code)["sigmoid_1"].tobytes() == (
        outputs(whole, {"x": x.numpy()})["sigmoid_1"].tobytes()
    )


@pytest.fixture(scope="module")
def head() -> TiedModel:
    torch.manual_seed(0)
    return tieops.from_torch(TiedHead().eval(), (torch.from_numpy(TOKENS),))


def test_a_part_between_layers_begins_and_ends_with_them(head):
    part = parted(head, inputs=["mid"], outputs=["mid"])
    assert [layer.name for layer in part.layers] == ["mid"]
    assert [value.name for value in part.inputs] == ["embedding"]


def test_names_go_with_their_readers(head):
    assert head.parameters[0].names == ("emb.weight", "fc.weight")
    backbone, rest = parted(head, outputs=["mid"]), parted(head, inputs=["fc"])
    assert [p.name for p in backbone.parameters] == ["emb.weight", "mid.weight", "mid.bias"]
    assert backbone.parameters[0].names == ("emb.weight",)
    assert [p.names for p in rest.parameters] == [("fc.weight",)]
    assert not backbone.ties
    assert not rest.ties
    assert [output.name for output in rest.ir.graph.outputs] == ["linear_1"]


def test_a_removed_head_takes_its_name_along(head):
    output = str(head.ir.graph.outputs[0].name)
    small = tieops.remove_disconnected_outputs(head, outputs=[output])
    assert small.parameters[0].names == ("emb.weight",)
    assert not small.ties


def test_a_tie_stays_a_tie_within_a_part(head):
    part = parted(head, outputs=["fc"])
    assert [tie.names for tie in part.ties] == [("emb.weight", "fc.weight")]


def test_control_flow_is_cut_as_a_whole():
    model = made(
        """g (float[2,4] x, bool c) => (float[2,4] y) {
          h = MatMul(x, w)
          k = If(c) <then_branch = a () => (float[2,4] p) { p = MatMul(h, w) },
                     else_branch = b () => (float[2,4] q) { q = Neg(x) }>
          y = Relu(k) }""",
        w=(4, 4),
    )
    feeds = {"x": rows(2, 4), "c": np.array(True)}
    with pytest.raises(PreconditionError, match="need more than its inputs") as failure:
        tieops.extract(model, inputs=["h"])
    assert failure.value.facts == {"inputs": "h", "needed too": "x, c"}
    back = parted(model, inputs=["h", "x", "c"], outputs=["k"])
    front = parted(model, outputs=["h"])
    h = outputs(front, {"x": feeds["x"]})["h"]
    assert outputs(back, {**feeds, "h": h})["k"].tobytes() == (
        outputs(parted(model, outputs=["k"]), feeds)["k"].tobytes()
    )


def test_a_layer_in_a_function_is_cut_at_by_inlining_its_call():
    model = made(
        "g (float[2,4] x) => (float[2,4] y) { h = f.twice(x)  y = f.twice(h) }",
        ["twice (x) => (y) { w = Constant<value = float[4,4] {" + ",".join("1" * 16) + "}>()"
         "  m = MatMul(x, w)  y = Relu(m) }"],
    )  # fmt: skip
    feeds = {"x": rows(2, 4)}
    second = [layer.name for layer in model.layers if layer.kind == "Linear"][1]
    front = parted(model, outputs=[second])
    (value,) = [str(output.name) for output in front.ir.graph.outputs]
    got = outputs(front, feeds)[value]
    assert np.maximum(got, 0).tobytes() == outputs(model, feeds)["y"].tobytes()


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ({}, PreconditionError, "begins or ends, got neither"),
        ({"inputs": ["emd"]}, SelectionError, "no value or layer called emd"),
        ({"inputs": ["emb.weight"]}, SelectionError, "got the stored tensor emb.weight"),
        ({"inputs": ["fc"], "outputs": ["emb"]}, PreconditionError, "need more than its inputs"),
        ({"inputs": ["linear_1"]}, PreconditionError, "no output of the model depends"),
        ({"inputs": ["ids", "fc"], "outputs": ["emb"]}, PreconditionError, "no output of the part"),
    ],
)
def test_what_cannot_be_cut_is_refused(head, where, error, message):
    before = serialized(head.ir)
    with pytest.raises(error, match=message):
        tieops.extract(head, **where)
    assert serialized(head.ir) == before
