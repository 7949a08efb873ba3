"""``untie`` keeps the bits of recurrent weights; what the runtime makes of them is its own.

ONNX Runtime packs recurrent weights that are stored, and not those that arrive through an Identity,
which the older exporter puts where tensors are shared. On several threads it multiplies the two in
another order (4 of 120 outputs differ by 4e-9); on one thread the outputs are equal to the bit.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import tieops

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's older exporter says that it is old
X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase], shared: tuple[str, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(12, 12, num_layers=2, batch_first=True)
        for name in shared:
            setattr(self.rnn, f"{name}_l1", getattr(self.rnn, f"{name}_l0"))

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def outputs(proto: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])


def weights(proto: onnx.ModelProto) -> list[bytes]:
    """Return the bytes that each recurrent node reads as its weights, through an Identity too."""
    stored = {each.name: numpy_helper.to_array(each).tobytes() for each in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Identity":
            stored[node.output[0]] = stored[node.input[0]]
    nodes = [each for each in proto.graph.node if each.op_type in ("LSTM", "GRU", "RNN")]
    return [stored[name] for node in nodes for name in node.input[1:4]]


@pytest.mark.parametrize("shared", [("weight_hh",), ("weight_ih", "weight_hh"), ("weight_ih",)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_untie_keeps_bits(kind: type[nn.RNNBase], shared: tuple[str, ...]) -> None:
    buffer = io.BytesIO()
    torch.onnx.export(Net(kind, shared).eval(), (X,), buffer, dynamo=False)  # pyright: ignore[reportArgumentType]
    exported = onnx.load_from_string(buffer.getvalue())
    model = tieops.from_onnx(exported)
    assert len(model.ties) == len(shared)
    apart = tieops.untie(model)
    assert not apart.ties
    untied = onnx_ir.to_proto(apart.ir)
    assert weights(untied) == weights(exported)
    np.testing.assert_array_equal(outputs(untied), outputs(exported))
