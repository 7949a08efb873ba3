"""torch tensors in and out of a session, over the same memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch

import tieops
from tieops.errors import MissingDependencyError, PreconditionError
from tieops.runtime.ort_values import value_of
from tieops.runtime.tensors import as_array, bind_device_input, is_on_device, tensors_of

DTYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "float8e4m3fn": torch.float8_e4m3fn,
    "float8e5m2": torch.float8_e5m2,
}


def echo(kind: str, shape: str = "n") -> tieops.runtime.Session:
    """A session that returns what it is fed; bool negated."""
    op = "Not" if kind == "bool" else "Identity"
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({kind}[{shape}] x) => ({kind}[{shape}] y)'
    return tieops.session(onnx_ir.from_onnx_text(text + f" {{ y = {op}(x) }}"), "cpu", threads=1)


def sample(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([1.0, 0.0, 3.0]).to(dtype)


def wanted(tensor: torch.Tensor) -> torch.Tensor:
    return ~tensor if tensor.dtype == torch.bool else tensor


@pytest.mark.parametrize("kind", list(DTYPES))
def test_every_dtype_goes_in_and_comes_out(kind):
    fed = sample(DTYPES[kind])
    found = echo(kind).run_tensors({"x": fed})["y"]
    assert found.dtype == fed.dtype
    assert torch.equal(found.view(torch.uint8), wanted(fed).view(torch.uint8))


@pytest.mark.parametrize("kind", list(DTYPES))
def test_what_goes_in_is_not_copied(kind):
    fed = sample(DTYPES[kind])
    array = as_array(fed)
    assert array.ctypes.data == fed.data_ptr()
    value = value_of(array, echo(kind).inputs[0].data_type)
    assert value.data_ptr() == fed.data_ptr()


def test_run_hands_the_tensors_own_memory_to_the_runtime():
    session, fed, seen = echo("float"), torch.arange(4.0), []
    inner = session._inner

    class Spy:
        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
            seen.append(feeds["x"].ctypes.data)
            return inner.run(names, feeds)

    session._inner = Spy()
    np.testing.assert_array_equal(session.run({"x": fed})["y"], fed.numpy())
    assert seen == [fed.data_ptr()]


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if "float8" not in kind])
def test_what_comes_out_is_not_copied(kind):
    session = echo(kind)
    binding = session._inner.io_binding()
    alive = bind_device_input(binding, "x", sample(DTYPES[kind]), session.inputs[0].data_type)
    binding.bind_output("y", "cpu")
    session._inner.run_with_iobinding(binding)
    values = binding.get_outputs()
    (tensor,) = tensors_of(values)
    assert tensor.data_ptr() == values[0].data_ptr()
    assert tensor.dtype == DTYPES[kind]
    del alive


@pytest.mark.parametrize("kind", list(DTYPES))
def test_a_bound_tensor_is_read_where_it_lies(kind):
    session, fed = echo(kind), sample(DTYPES[kind])
    binding = session._inner.io_binding()
    alive = bind_device_input(binding, "x", fed, session.inputs[0].data_type)
    fed.copy_(torch.tensor([0.0, 1.0, 2.0]).to(fed.dtype))  # after it was bound
    binding.bind_output("y", "cpu")
    session._inner.run_with_iobinding(binding)
    (found,) = tensors_of(binding.get_outputs())
    assert torch.equal(found.view(torch.uint8), wanted(fed).view(torch.uint8))
    del alive


class Exported:
    """Someone else's tensor: it speaks DLPack and nothing more."""

    def __init__(self, tensor: torch.Tensor, device: int = 1) -> None:
        self.tensor, self.dtype, self.shape = tensor, tensor.numpy().dtype, tensor.shape
        self.device = device

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


def test_what_speaks_dlpack_is_bound_where_it_lies():
    session, tensor = echo("float"), torch.arange(3.0)
    binding = session._inner.io_binding()
    bound = bind_device_input(binding, "x", Exported(tensor), onnx_ir.DataType.FLOAT)
    assert bound.data_ptr() == tensor.data_ptr()
    binding.bind_output("y", "cpu")
    session._inner.run_with_iobinding(binding)
    assert torch.equal(tensors_of(binding.get_outputs())[0], tensor)


def test_run_and_run_tensors_take_dlpack_on_the_cpu():
    session, tensor = echo("float"), torch.arange(3.0)
    assert session.run({"x": Exported(tensor)})["y"].tolist() == [0, 1, 2]
    assert session.run_tensors({"x": Exported(tensor)})["y"].tolist() == [0, 1, 2]


def test_what_lies_on_a_device_is_refused_where_the_session_cannot_reach_it():
    there = Exported(torch.arange(3.0), device=2)
    assert is_on_device(there)
    with pytest.raises(PreconditionError, match="the input x is on a device"):
        echo("float").run({"x": there})


# Shapes, conversions, lifetimes


def test_tensors_in_any_order_of_memory_and_with_gradients():
    session = echo("float", "n, m")
    turned = torch.arange(6.0).reshape(2, 3).t()
    assert torch.equal(session.run_tensors({"x": turned})["y"], turned)
    np.testing.assert_array_equal(session.run({"x": turned})["y"], turned.numpy())
    learned = torch.ones(2, 2, requires_grad=True)
    found = session.run_tensors({"x": learned})["y"]
    assert not found.requires_grad


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
@pytest.mark.parametrize("kind", ["float", "bfloat16", "bool", "float8e4m3fn"])
def test_scalars_and_empty_tensors(kind, shape):
    names = ", ".join(f"d{axis}" for axis in range(len(shape)))
    fed = torch.zeros(shape).to(DTYPES[kind])
    found = echo(kind, names).run_tensors({"x": fed})["y"]
    assert (found.shape, found.dtype) == (fed.shape, fed.dtype)


def test_values_are_converted_where_none_changes_as_arrays_are():
    session = echo("int64")
    assert session.run_tensors({"x": torch.tensor([1, 2], dtype=torch.int32)})["y"].tolist() == [
        1,
        2,
    ]
    assert session.run_tensors({"x": [3]})["y"].tolist() == [3]
    assert session.run_tensors({"x": np.array([4])})["y"].tolist() == [4]
    with pytest.raises(PreconditionError, match="x is float32, not int64"):
        session.run_tensors({"x": torch.ones(2)})


@pytest.mark.parametrize("kind", ["float", "bfloat16"])
def test_arrays_that_may_not_be_written_are_fed_as_they_are(kind):
    dtype = echo(kind).inputs[0].data_type.numpy()
    array = np.frombuffer(np.ones(3, dtype).tobytes(), dtype)
    assert not array.flags.writeable
    assert echo(kind).run_tensors({"x": array})["y"].tolist() == [1, 1, 1]
    assert echo(kind).run({"x": array})["y"].tolist() == [1, 1, 1]


def test_outputs_outlive_the_session_and_are_the_callers_own():
    session = echo("float")
    found = session.run_tensors({"x": torch.arange(1000.0)})["y"]
    again = session.run_tensors({"x": torch.zeros(1000)})["y"]
    session.close()
    del session
    assert torch.equal(found, torch.arange(1000.0))
    found += 1
    assert torch.equal(again, torch.zeros(1000))


def test_outputs_are_picked_in_order_and_strings_are_not_tensors():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] a, string[n] b)'
    session = tieops.session(
        onnx_ir.from_onnx_text(text + "{ a = Neg(x) b = Cast<to = 8>(x) }"), "cpu"
    )
    assert [*session.run_tensors({"x": torch.ones(1)}, ["a"])] == ["a"]
    with pytest.raises(PreconditionError, match="cannot be returned as tensors"):
        session.run_tensors({"x": torch.ones(1)})
    with pytest.raises(PreconditionError, match="no output is named c"):
        session.run_tensors({"x": torch.ones(1)}, ["c"])
    assert session.run_tensors({"x": torch.ones(1)}, []) == {}


def test_what_the_runtime_cannot_run_is_told():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n] x, float[m] z) => (float[k] y)'
    session = tieops.session(onnx_ir.from_onnx_text(text + "{ y = Add(x, z) }"), "cpu")
    with pytest.raises(PreconditionError, match="could not run the model") as caught:
        session.run_tensors({"x": torch.ones(2), "z": torch.ones(3)})
    assert "x float32[2], z float32[3]" in str(caught.value)


def test_a_closed_session_is_refused():
    session = echo("float")
    session.close()
    with pytest.raises(PreconditionError, match="closed"):
        session.run_tensors({"x": torch.ones(1)})


def test_without_torch_arrays_still_run_and_tensors_are_an_error(monkeypatch):
    session = echo("float")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert session.run({"x": [1.0]})["y"].tolist() == [1.0]
    with pytest.raises(MissingDependencyError, match="torch tensors need torch"):
        session.run_tensors({"x": [1.0]})
