"""On an NVIDIA GPU: ``pytest -m gpu tests/gpu -W default``. Without one these fail.

They are not skipped. ``tests/runtime/cuda/test_rehearsal.py`` runs them on a stand-in, where those
of ``tests.gpu`` that need numbers or torch's CUDA are known to fail, and all others have to pass.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch

import tieops
from fixtures.torch_models import build
from tieops.runtime.cuda.device import used_bytes

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""ONNX Runtime computes float32 products in TF32, with 10 bits of mantissa as float16 has."""
PRECISE = {"use_tf32": 0}
VOCAB, WIDTH = 125_000, 512
"""256 MB of tied weight."""
SLACK = 200_000_000
"""cuBLAS' and cuDNN's handles, and cuDNN's copy of the LSTM; a second copy would be more."""


def in_use() -> int:
    gc.collect()
    return used_bytes(0)


def opened_before(vocab: int = 100, width: int = 8) -> Path:
    """Write a small model, so that what every session costs is paid before."""
    small = build("lstm", vocab, width)
    model = tieops.from_torch(small.module, (), small.inputs, dynamic_shapes=small.dynamic_shapes)
    folder = Path(tempfile.mkdtemp())
    return tieops.to_onnx(model, folder / "small.onnx", external_data=True).path


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


def ran(dtype, folder, **options):
    """Return what a model in a dtype gives on CUDA, and what torch gives on the CPU."""
    case = build("gpt2", 2000, 64)
    module = case.module.to(dtype)
    model = tieops.from_torch(module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path = tieops.to_onnx(model, folder / "m.onnx").path
    outputs = tieops.session(path, provider="cuda", **options).run(
        {name: tensor.numpy() for name, tensor in case.inputs.items()}
    )
    with torch.no_grad():
        wanted = module(**case.inputs)[0].float().numpy()
    return next(iter(outputs.values())).astype(np.float32), wanted


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_each_dtype_runs(dtype, tmp_path):
    found, wanted = ran(dtype, tmp_path)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_float32_without_tf32_is_float32(tmp_path):
    found, wanted = ran(torch.float32, tmp_path, provider_options=PRECISE)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    case = build("lstm", VOCAB, WIDTH)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    folder = tmp_path_factory.mktemp("large")
    written = tieops.to_onnx([model, model], [folder / "a.onnx", folder / "b.onnx"])
    return written[0].path, written[1].path, model.ledger.stored_bytes


def test_a_tied_weight_is_one_copy_on_the_device(large):
    path, _, unique = large
    small = tieops.session(opened_before(), provider="cuda")
    small.run({"x": [[1]]})
    before = in_use()
    session = tieops.session(path, provider="cuda")
    took = in_use() - before
    print(f"one session: {took} bytes, {unique} unique")
    assert session.provider == "cuda"
    assert 0.9 * unique <= took <= 1.05 * unique + SLACK


def test_two_sessions_hold_one_copy_on_the_device_and_give_it_back(large):
    *paths, unique = large
    small = opened_before()
    empty = tieops.sessions({"a": small, "b": small}, provider="cuda")
    for session in empty.values():
        session.run({"x": [[1]]})
    before = in_use()
    sessions = tieops.sessions(dict(zip("ab", paths, strict=True)), provider="cuda")
    took = in_use() - before
    print(f"two sessions: {took} bytes, {unique} unique")
    assert [session.provider for session in sessions.values()] == ["cuda", "cuda"]
    assert 0.9 * unique <= took <= 1.05 * unique + SLACK
    sessions["a"].close()
    assert sessions["b"].run({"x": [[1, 2, 3]]})
    sessions.close()
    del sessions
    assert in_use() - before <= SLACK


def test_two_sessions_compute_what_the_cpu_does(large):
    *paths, _ = large
    sessions = tieops.sessions(dict(zip("ab", paths, strict=True)), provider="cuda")
    feeds = {"x": [[1, 2, 3]]}
    wanted = tieops.session(paths[0], provider="cpu").run(feeds)
    for session in sessions.values():
        for name, array in session.run(feeds).items():
            np.testing.assert_allclose(array, wanted[name], rtol=1e-2, atol=2e-3)


def test_only_nodes_that_compute_shapes_fall_to_the_cpu_and_they_are_named(written):
    _, path = written
    session = tieops.session(path, provider="cuda")
    placed = session.placement()
    assert session.note == ""
    assert placed.counts["CUDAExecutionProvider"] > len(placed.nodes) / 2
    assert {node.provider for node in placed.fell} <= {"CPUExecutionProvider"}
    assert all(node.computes_shapes for node in placed.fell)
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
    before = in_use()
    assert session.run_tensors({"x": fed})["y"].item() == fed.max().item()
    assert in_use() - before < fed.nbytes // 2


def test_a_value_that_stays_on_the_device_is_fed_again(written):
    case, path = written
    session = tieops.session(path, provider="cuda")
    arrays = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    there = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        for name, array in arrays.items()
    }
    found = session.run_values(there)
    assert {value.device_name() for value in found.values()} == {"cuda"}
    assert [value.shape() for value in found.values()] == [
        list(array.shape) for array in session.run(arrays).values()
    ]


def test_a_captured_run_gives_what_a_plain_one_does():
    text = """<ir_version: 10, opset_import: ["": 20]>
        g (float[4, 8] x) => (float[4, 8] y) { h = MatMul(x, w)  y = Tanh(h) }"""
    model = onnx_ir.from_onnx_text(text)
    weight = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    initializer = onnx_ir.Value(
        name="w", shape=onnx_ir.Shape((8, 8)), const_value=onnx_ir.tensor(weight, name="w"),
        type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT),
    )  # fmt: skip
    next(iter(model.graph)).replace_input_with(1, initializer)
    model.graph.register_initializer(initializer)
    model = tieops.from_onnx(model)
    captured = tieops.session(model, "cuda", provider_options={"enable_cuda_graph": 1})
    plain = tieops.session(model, "cuda")
    for seed in range(3):
        fed = np.random.default_rng(seed).standard_normal((4, 8), np.float32)
        np.testing.assert_allclose(captured.run({"x": fed})["y"], plain.run({"x": fed})["y"])
        np.testing.assert_allclose(plain.run({"x": fed})["y"], np.tanh(fed @ weight), atol=2e-2)


def test_the_ledger_measures_the_device(large):
    path, *_ = large
    found = tieops.resident_bytes(tieops.session(path, provider="cuda"))
    print(found)
    assert [each.verdict for each in found.undone] == []
    assert found.ties[0].copies[0].place == "device"
    unique = found.unique_bytes
    assert 0.9 * unique <= found.measured.device_bytes <= 1.05 * unique + SLACK


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
