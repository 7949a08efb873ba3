"""A head that is replaced takes its names from the tie, however its module reads the weight."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch

import tieops
from tests.properties.readings import COLUMNS, ROWS, pair

WAYS = [
    "PlainLinear", "functional_linear", "matmul_T", "matmul_t", "matmul_transpose", "matmul_mT",
    "addmm", "FunctionalBoth", "ScaledEmbedding", "Autocast", "CalledTwice",
]  # fmt: skip

UNSAID = ("FunctionalBoth", "Autocast")
"""Where no module of the file reads, or only a region of autocast: one name is left for two."""


def replaced(model: tieops.TiedModel) -> tieops.TiedModel:
    (tie,) = model.ties
    assert set(tie.parameter.names) == {"emb.weight", "fc.weight"}
    small = tieops.replace_head(model, out_features=7)
    names = {parameter.name: parameter for parameter in small.parameters}
    assert names["emb.weight"].shape == (ROWS, COLUMNS)
    assert names["emb.weight"].names == ("emb.weight",)
    np.testing.assert_array_equal(names["emb.weight"].numpy(), tie.parameter.numpy())
    assert names["fc.weight"].shape == (7, COLUMNS)
    assert names["fc.weight"].names == ("fc.weight",)
    assert names["fc.bias"].shape == (7,)
    assert all(tie.parameter.name == "emb.weight" for tie in small.ties)
    return small


def called_after_the_head(model: tieops.TiedModel) -> tieops.TiedModel:
    """Store the shared tensor under the head's name, as an exporter may."""
    model = tieops.TiedModel(model.clone())
    value = model.ties[0].parameter.value
    graph = value.graph
    assert graph is not None
    assert value.name is not None
    graph.initializers.pop(value.name)
    value.name = "fc.weight"
    graph.initializers["fc.weight"] = value
    value.metadata_props["tieops.names"] = '["fc.weight", "emb.weight"]'
    return tieops.from_onnx(model.ir)


@pytest.mark.parametrize("name", WAYS)
def test_the_names_of_a_head_from_torch_go_with_it(name: str) -> None:
    tied, _ = pair(name)
    model = tieops.from_torch(tied, tied.inputs)
    small = replaced(model)
    assert dict(tieops.to_torch(small).named_parameters()).keys() == {
        "emb.weight", "fc.weight", "fc.bias",
    }  # fmt: skip
    replaced(called_after_the_head(model))


@pytest.mark.parametrize("name", [way for way in WAYS if way not in UNSAID])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.slow
def test_the_names_of_a_head_in_a_file_of_dynamo_go_with_it(name: str) -> None:
    tied, _ = pair(name)
    program = torch.onnx.export(tied, tied.inputs, dynamo=True, verbose=False)
    assert program is not None
    # One of the two names is in the file, and no word of the other; the head reads a copy.
    model = tieops.tie(tieops.from_onnx(program.model_proto))
    small = tieops.replace_head(model, out_features=7)
    shapes = {parameter.name: parameter.shape for parameter in small.parameters}
    assert shapes["emb.weight"] == (ROWS, COLUMNS)
    assert shapes["fc.weight"] == (7, COLUMNS)
    assert shapes["fc.bias"] == (7,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_names_of_a_head_in_a_file_of_the_older_exporter_go_with_it() -> None:
    tied, _ = pair("PlainLinear")
    buffer = io.BytesIO()
    torch.onnx.export(tied, tied.inputs, buffer, dynamo=False)
    model = tieops.tie(tieops.from_onnx(onnx.load_from_string(buffer.getvalue())))
    small = tieops.replace_head(model, out_features=7)
    shapes = {parameter.name: parameter.shape for parameter in small.parameters}
    assert shapes["emb.weight"] == (ROWS, COLUMNS)
    assert shapes["fc.weight"] == (7, COLUMNS)


def test_the_names_of_a_projection_that_attention_reads_itself_go_with_it() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(16, 16)
            self.attn = torch.nn.MultiheadAttention(16, 4, batch_first=True)
            self.attn.out_proj.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.first(x))
            return self.attn(h, h, h, need_weights=False)[0]

    model = tieops.from_torch(Model().eval(), (torch.randn(2, 5, 16),))
    head = next(slot.layer for slot in model.slots if slot.parameter.name == "attn.out_proj.bias")
    small = tieops.replace_head(model, head, out_features=7)
    shapes = {parameter.name: (parameter.shape, parameter.names) for parameter in small.parameters}
    assert shapes["first.weight"] == ((16, 16), ("first.weight",))
    assert shapes["attn.out_proj.weight"] == ((7, 16), ("attn.out_proj.weight",))
    assert shapes["attn.out_proj.bias"] == ((7,), ("attn.out_proj.bias",))
