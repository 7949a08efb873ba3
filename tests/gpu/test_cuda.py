"""On an NVIDIA GPU: ``pytest -m gpu tests/gpu``. Without one these fail; they are not skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tieops
from fixtures.torch_models import build

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@pytest.fixture(scope="module", params=["lstm", "gpt2", "autoencoder"])
def written(request, tmp_path_factory):
    case = build(request.param, 2000, 64)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path = tmp_path_factory.mktemp(request.param) / "tied.onnx"
    return case, tieops.to_onnx(model, path, external_data=True).path


def test_cuda_means_cuda(written):
    _, path = written
    session = tieops.session(path, provider="cuda")
    assert session.provider == "cuda"
    assert session.providers[0] == "CUDAExecutionProvider"


def test_auto_takes_the_gpu(written):
    _, path = written
    assert tieops.session(path).provider == "cuda"


def test_cuda_equals_the_cpu_and_torch(written):
    case, path = written
    feeds = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    on_gpu = tieops.session(path, provider="cuda").run(feeds)
    on_cpu = tieops.session(path, provider="cpu").run(feeds)
    for name, array in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], array, rtol=1e-2, atol=2e-3)
    assert tieops.verify(
        tieops.session(path, provider="cuda"), against=case.module, rtol=1e-2, atol=2e-3
    )


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_each_dtype_runs(dtype, tmp_path):
    case = build("gpt2", 2000, 64)
    module = case.module.to(dtype)
    model = tieops.from_torch(module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path = tieops.to_onnx(model, tmp_path / "m.onnx").path
    outputs = tieops.session(path, provider="cuda").run(
        {name: tensor.numpy() for name, tensor in case.inputs.items()}
    )
    with torch.no_grad():
        wanted = module(**case.inputs)[0].float().numpy()
    found = next(iter(outputs.values())).astype(np.float32)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_a_tied_weight_is_one_copy_on_the_device(tmp_path):
    case = build("lstm", 40_000, 512)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path = tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True).path
    small = build("lstm", 100, 8)
    warm = tieops.from_torch(small.module, (), small.inputs, dynamic_shapes=small.dynamic_shapes)
    tieops.session(warm, provider="cuda").run({"x": [[1]]})
    torch.cuda.synchronize()
    before, _ = torch.cuda.mem_get_info()
    session = tieops.session(path, provider="cuda")
    after, _ = torch.cuda.mem_get_info()
    assert session.provider == "cuda"
    unique = model.ledger.stored_bytes
    assert before - after <= 1.05 * unique + 64_000_000


@pytest.mark.parametrize("name", ["lstm", "gpt2"])
@pytest.mark.filterwarnings(
    # cuDNN copies weights that nn.LSTM would have moved into one piece.
    "ignore:RNN module weights are not part of single contiguous chunk:UserWarning",
)
def test_a_converted_module_trains_on_the_gpu(name):
    case = build(name, 200, 32)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    on_cpu, on_gpu = tieops.to_torch(model), tieops.to_torch(model).cuda()
    args = tuple(case.inputs.values())
    outputs = [on_cpu(*args), on_gpu(*(each.cuda() for each in args))]
    outputs = [each[0] if isinstance(each, tuple) else each for each in outputs]
    torch.testing.assert_close(outputs[1].cpu(), outputs[0], rtol=1e-2, atol=2e-3)
    for each in outputs:
        each.square().mean().backward()
    gradients = {name: each.grad for name, each in on_cpu.named_parameters()}
    for name, each in on_gpu.named_parameters():
        assert each.is_cuda
        torch.testing.assert_close(each.grad.cpu(), gradients[name], rtol=1e-2, atol=1e-3)
