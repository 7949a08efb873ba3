"""Statistics that an exporter merged with what is trained stay statistics."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import tieops
from tests.properties.readings import losses

INPUT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def fresh(count: int) -> nn.Sequential:
    """Norms as torch makes them: gains and variances of one, biases and means of zero."""
    torch.manual_seed(0)
    layers = [each for _ in range(count) for each in (nn.Linear(6, 6), nn.BatchNorm1d(6))]
    return nn.Sequential(*layers, nn.Linear(6, 2)).eval()


@pytest.mark.parametrize("opset", [11, 14, 17])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fresh_batch_norm_has_its_parameters_and_its_statistics(count: int, opset: int) -> None:
    net = fresh(count)
    written = io.BytesIO()
    torch.onnx.export(
        net,
        (INPUT,),
        written,  # pyright: ignore[reportArgumentType] - its stub forgets buffers
        dynamo=False,
        opset_version=opset,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        export_params=True,
    )
    model = tieops.from_onnx(onnx.load_from_string(written.getvalue()))
    back = tieops.to_torch(model)
    assert {n for n, _ in back.named_parameters()} == {n for n, _ in net.named_parameters()}
    buffers = {n for n, _ in net.named_buffers() if not n.endswith("num_batches_tracked")}
    assert {n for n, _ in back.named_buffers()} >= buffers
    np.testing.assert_allclose(losses(back, (INPUT,)), losses(net, (INPUT,)), rtol=1e-4)


def test_statistics_merged_in_a_file_without_scopes_are_not_trained() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[n, 6] x) => (float[n, 6] y)
    <float[6] ones = {1, 1, 1, 1, 1, 1}, float[6] zeros = {0, 0, 0, 0, 0, 0}>
    { y = BatchNormalization(x, ones, zeros, zeros, ones) }"""
    model = tieops.from_onnx(onnx.parser.parse_model(text))
    assert not model.ties
    assert len(model.accidental_ties) == 2
    back = tieops.to_torch(model)
    assert len(list(back.parameters())) == 2
    back(INPUT).sum().backward()
    assert len(tieops.untie(model, accidental=True).accidental_ties) == 0
