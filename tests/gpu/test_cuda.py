"""On an NVIDIA GPU: ``pytest -m gpu tests/gpu``. Without one these fail; they are not skipped."""

from __future__ import annotations

import numpy as np
import onnx_ir
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


def test_two_sessions_hold_one_copy_on_the_device(tmp_path):
    case = build("lstm", 40_000, 512)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    written = tieops.to_onnx([model, model], [tmp_path / "a.onnx", tmp_path / "b.onnx"])
    small = build("lstm", 100, 8)
    warm = tieops.from_torch(small.module, (), small.inputs, dynamic_shapes=small.dynamic_shapes)
    warm_sessions = tieops.sessions({"a": warm, "b": warm}, provider="cuda")
    for session in warm_sessions.values():
        session.run({"x": [[1]]})
    torch.cuda.synchronize()
    before, _ = torch.cuda.mem_get_info()
    sessions = tieops.sessions({"a": written[0], "b": written[1]}, provider="cuda")
    after, _ = torch.cuda.mem_get_info()
    assert [session.provider for session in sessions.values()] == ["cuda", "cuda"]
    # 64 MB for what each session's arena takes beside the weights.
    assert before - after <= 1.05 * model.ledger.stored_bytes + 64_000_000
    feeds = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    wanted = tieops.session(written[0], provider="cpu").run(feeds)
    for session in sessions.values():
        for name, array in session.run(feeds).items():
            np.testing.assert_allclose(array, wanted[name], rtol=1e-2, atol=2e-3)
    sessions["a"].close()
    assert sessions["b"].run(feeds).keys() == wanted.keys()


def test_few_nodes_fall_to_the_cpu_and_they_are_named(written):
    _, path = written
    placed = tieops.session(path, provider="cuda").placement()
    assert placed.counts["CUDAExecutionProvider"] > len(placed.nodes) / 2
    assert {node.provider for node in placed.fell} <= {"CPUExecutionProvider"}
    assert all(str(node) in str(placed) for node in placed.fell[:40])


def test_tensors_stay_on_the_gpu(written):
    case, path = written
    session = tieops.session(path, provider="cuda")
    on_gpu = {name: tensor.cuda() for name, tensor in case.inputs.items()}
    outputs = session.run_tensors(on_gpu)
    assert {tensor.device.type for tensor in outputs.values()} == {"cuda"}
    arrays = session.run({name: tensor.numpy() for name, tensor in case.inputs.items()})
    for name, tensor in outputs.items():
        np.testing.assert_allclose(tensor.cpu().numpy(), arrays[name], rtol=1e-3, atol=1e-4)
    again = session.run(on_gpu)  # tensors in, arrays out
    for name, array in again.items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("float", torch.float32),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("int64", torch.int64),
        ("bool", torch.bool),
    ],
)
def test_a_tensor_of_each_dtype_is_read_where_it_lies(kind, dtype):
    op = "Not" if kind == "bool" else "Identity"
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({kind}[n] x) => ({kind}[n] y)'
    model = onnx_ir.from_onnx_text(text + f" {{ y = {op}(x) }}")
    session = tieops.session(model, provider="cuda")
    # Enough work queued before the run that a missing wait would read old values.
    fed = torch.ones(1 << 20, device="cuda").cumsum(0).remainder(7).to(dtype)
    found = session.run_tensors({"x": fed})["y"]
    assert found.dtype == dtype
    assert found.device.type == "cuda"
    assert torch.equal(found, ~fed if dtype == torch.bool else fed)


def test_feeding_a_tensor_of_the_gpu_takes_no_memory_there():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float y)'
    model = onnx_ir.from_onnx_text(text + " { y = ReduceMax<keepdims = 0>(x) }")
    session = tieops.session(model, provider="cuda")
    fed = torch.arange(1 << 26, device="cuda", dtype=torch.float32)  # 256 MiB
    session.run_tensors({"x": fed[:8]})
    torch.cuda.synchronize()
    before, _ = torch.cuda.mem_get_info()
    assert session.run_tensors({"x": fed})["y"].item() == fed.max().item()
    after, _ = torch.cuda.mem_get_info()
    assert before - after < fed.nbytes // 2


def test_the_ledger_measures_the_device(tmp_path):
    case = build("lstm", 40_000, 512)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path = tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True).path
    found = tieops.resident_bytes(tieops.session(path, provider="cuda"))
    assert [each.verdict for each in found.undone] == []
    assert found.ties[0].copies[0].place == "device"
    unique = found.unique_bytes
    assert 0.9 * unique <= found.measured.device_bytes <= 1.05 * unique + 64_000_000


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
