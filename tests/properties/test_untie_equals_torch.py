"""What untie makes of a tied module is the module that was built apart, however it reads."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import tieops
from tests.properties.readings import CASES, losses, pair

CALLED_AGAIN = ("CalledTwice", "NoGradRegion")
"""A module of one name that is called twice reads its own weight twice, tied or apart."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_from_torch_untied_is_the_module_that_was_built_apart(name: str) -> None:
    tied, apart = pair(name)
    model = tieops.from_torch(tied, tied.inputs)
    assert model.ties
    free = tieops.untie(model)
    assert name in CALLED_AGAIN or not free.ties
    module = tieops.to_torch(free).eval()
    apart.load_state_dict(module.state_dict())
    assert dict(module.named_parameters()).keys() == dict(apart.named_parameters()).keys()
    expected = losses(apart, tied.inputs)
    np.testing.assert_allclose(losses(module, tied.inputs), expected, rtol=1e-4)
    again = tieops.tie(free)
    assert [set(tie.names) for tie in again.ties] == [set(tie.names) for tie in model.ties]


FROM_DYNAMO = [
    "functional_linear", "matmul_T", "matmul_transpose", "einsum", "addmm", "PlainLinear",
    "ScaledEmbedding", "Convolutions", "Deconvolution", "FunctionalAutoencoder", "Gains",
    "GainReadTwice", "TiedBias", "Checkpointed", "CustomForward", "TwoLanguages",
]  # fmt: skip
"""Where the file still has the weights: the exporter folds what is computed from them."""
FROM_TORCHSCRIPT = [
    "PlainLinear", "CosineHead", "TwoCosines", "Deconvolution", "StandardisedConvolutions",
    "GainReadTwice", "TiedBias", "TwoLanguages", "ScaledEmbedding",
]  # fmt: skip


def named_apart(proto: onnx.ModelProto, name: str) -> None:
    _, apart = pair(name)
    free = tieops.untie(tieops.tie(tieops.from_onnx(proto)))
    assert not free.ties
    module = tieops.to_torch(free)
    assert dict(module.named_parameters()).keys() == dict(apart.named_parameters()).keys()


@pytest.mark.parametrize("name", FROM_DYNAMO)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_file_of_the_dynamo_exporter_untied_has_the_names_of_the_module(name: str) -> None:
    tied, _ = pair(name)
    program = torch.onnx.export(tied, tied.inputs, dynamo=True, verbose=False)
    assert program is not None
    named_apart(program.model_proto, name)


@pytest.mark.parametrize("name", FROM_TORCHSCRIPT)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_file_of_the_older_exporter_untied_has_the_names_of_the_module(name: str) -> None:
    tied, _ = pair(name)
    buffer = io.BytesIO()
    torch.onnx.export(tied, tied.inputs, buffer, dynamo=False)
    named_apart(onnx.load_from_string(buffer.getvalue()), name)


class _Mixing(nn.Module):
    """Mixes two inputs by a vector of its own, as RWKV does: one layer that reads it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(8))
        self.key = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = x
        for _ in range(3):
            found = found * self.mix + x.roll(1, -1) * (1 - self.mix)
        return self.key(found)


def test_a_module_that_computes_with_its_own_vector_again_and_again_is_one_reader() -> None:
    net = nn.Sequential(_Mixing(), _Mixing())
    model = tieops.from_torch(net, (torch.randn(2, 8),))
    assert not model.ties
    untied = tieops.untie(model)
    assert {each.name for each in untied.parameters} == {name for name, _ in net.named_parameters()}
