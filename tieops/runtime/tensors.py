"""Pass tensors of torch and other libraries into and out of a session without a copy.

On the CPU, a torch tensor becomes a numpy array over the same memory. On the GPU, its address is
bound to the input, and tensors of other libraries are passed by DLPack. torch is imported only
where torch tensors are requested.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from tieops.arguments import described
from tieops.errors import MissingDependencyError, PreconditionError
from tieops.ir.notation import printable
from tieops.runtime.ort_values import RAW, raw_array
from tieops.runtime.providers import onnxruntime_module

if TYPE_CHECKING:
    import torch

__all__ = [
    "as_array",
    "bind_device_input",
    "device_value",
    "dtype_of",
    "is_on_device",
    "is_ort_value",
    "is_torch",
    "shape_of",
    "tensors_of",
    "to_host",
    "torch_module",
]

_CPU = 1
"""DLPack's number of the CPU, ``kDLCPU``."""
_DEFAULT_STREAM = 1
"""DLPack's number of CUDA's legacy default stream."""


def is_torch(value: object) -> bool:
    """Return whether this is a torch tensor; False while torch is not loaded."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_on_device(value: Any) -> bool:
    """Return whether this is a tensor in the memory of a device, which numpy cannot read.

    Example:
        >>> is_on_device(np.zeros(3)), is_on_device([1, 2])
        (False, False)
    """
    if is_torch(value):
        return value.device.type != "cpu"
    if is_ort_value(value):
        return value.is_tensor() and value.device_name() != "cpu"
    ask = getattr(value, "__dlpack_device__", None)
    return ask is not None and not isinstance(value, np.ndarray) and int(ask()[0]) != _CPU


def is_ort_value(value: object) -> bool:
    """Return whether this is a value of ONNX Runtime; False while it is not loaded."""
    runtime = sys.modules.get("onnxruntime")
    return runtime is not None and isinstance(value, runtime.OrtValue)


class _OnStream:
    """A tensor that is handed over ready on one stream; ``OrtValue.from_dlpack`` names none."""

    def __init__(self, tensor: Any, stream: int) -> None:
        self._tensor = tensor
        self._stream = stream
        if hasattr(tensor, "dtype"):
            self.dtype = tensor.dtype  # DLPack itself may hand booleans over as bytes

    def __dlpack__(self) -> Any:
        return self._tensor.__dlpack__(stream=self._stream)


def device_value(value: Any, stream: int = 0) -> Any:
    """Return a tensor of a device as ONNX Runtime's value over its memory.

    Args:
        value: A value of ONNX Runtime, or anything that speaks DLPack.
        stream: The address of the stream that the session works on; 0 for one of its own. Then it
            is made ready on the default stream, which is waited for before a run.
    """
    if is_ort_value(value):
        return value
    if is_torch(value):
        value = _settled(value, stream)
        return onnxruntime_module().OrtValue.from_dlpack(value)
    if is_on_device(value):
        value = _OnStream(value, stream or _DEFAULT_STREAM)
    return onnxruntime_module().OrtValue.from_dlpack(value)


def _settled(tensor: Any, stream: int) -> Any:
    """Return a torch tensor in C order, once it is computed or where the session's stream waits."""
    tensor = tensor.detach().contiguous()
    if tensor.is_cuda:
        current = sys.modules["torch"].cuda.current_stream(tensor.device)
        if not stream or current.cuda_stream != stream:
            current.synchronize()
    return tensor


def to_host(name: str, value: Any) -> Any:
    """Return a tensor of a device copied to the CPU if torch or ONNX Runtime has it there.

    Anything else is returned as it is.

    Args:
        name: The input that it is fed to.
        value: What is fed.

    Raises:
        PreconditionError: If it lies on a device, and nothing here copies it.
    """
    if not is_on_device(value):
        return value
    if is_ort_value(value):
        there = onnxruntime_module().OrtValue.ortvalue_from_shape_and_type(
            value.shape(), value.element_type()
        )
        there.update_inplace(value)
        return there
    if not is_torch(value):
        raise PreconditionError(
            f"the input {printable(name)} is on a device, but the session runs on the CPU",
            {"fed": f"{described(value)}"},
            "copy it to the CPU first",
        )
    return value.detach().cpu()


def dtype_of(value: Any) -> str:
    """Return the name of a device tensor's dtype as ONNX Runtime writes it.

    Example:
        >>> dtype_of(np.zeros(1, np.float32))
        'float32'
    """
    if is_ort_value(value):
        name = onnx_ir.DataType(value.element_type()).name.lower()
        return {"float": "float32", "double": "float64"}.get(name, name)
    name = str(getattr(value.dtype, "name", value.dtype)).removeprefix("torch.")
    return name if name.startswith(("float8_e8m0", "bool")) else name.replace("_", "")


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a device tensor."""
    return tuple(value.shape() if is_ort_value(value) else value.shape)


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """Return what numpy makes of a value; of a torch tensor on the CPU, an array over its memory.

    Raises:
        TypeError: If numpy can make no array of it.

    Example:
        >>> as_array([1, 2])
        array([1, 2])
    """
    if is_ort_value(value):
        return raw_array(value)
    if not is_torch(value):
        plain = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
        return np.from_dlpack(value) if plain else np.asarray(value)
    tensor = value.detach().resolve_conj().resolve_neg()
    name = dtype_of(tensor).upper()
    if name not in RAW:
        return tensor.numpy()
    torch = sys.modules["torch"]
    bits = tensor.view(torch.int16 if tensor.itemsize == 2 else torch.uint8)
    return bits.numpy().view(onnx_ir.DataType[name].numpy())


def bind_device_input(
    binding: Any, name: str, value: Any, dtype: onnx_ir.DataType, stream: int = 0
) -> object:
    """Bind a tensor of a device to an input where it lies.

    Args:
        binding: ONNX Runtime's ``IOBinding``.
        name: The input.
        value: The tensor; of the dtype that the input wants.
        dtype: That dtype.
        stream: The address of the stream that the session works on; 0 for one of its own.

    Returns:
        What has to live until the model has run.
    """
    if not is_torch(value):
        bound = device_value(value, stream)
        binding.bind_ortvalue_input(name, bound)
        return bound
    # ONNX Runtime works on a stream of its own: what is still being computed has to be there.
    tensor = _settled(value, stream)
    where = tensor.device
    address = tensor.data_ptr()
    binding.bind_input(name, where.type, where.index or 0, int(dtype), tuple(tensor.shape), address)
    return tensor


def tensors_of(values: Iterable[Any]) -> list[torch.Tensor]:
    """Return ONNX Runtime's values as torch tensors over the same memory.

    float8, which DLPack cannot name, is copied.

    Raises:
        MissingDependencyError: If torch is not installed.
    """
    torch = torch_module()
    found: list[torch.Tensor] = []
    for value in values:
        dtype = onnx_ir.DataType(value.element_type())
        if dtype.name.startswith("FLOAT8"):
            raw = torch.from_numpy(raw_array(value).view(np.uint8))
            found.append(raw.view(_torch_float8(torch, dtype)))
            continue
        if value.device_name() == "cuda" and not torch.backends.cuda.is_built():
            raise MissingDependencyError(
                "torch tensors on the GPU need a CUDA build of torch",
                {"torch": torch.__version__},
                "install one, or use run for arrays and run_values for ONNX Runtime's own values",
            )
        tensor = torch.from_dlpack(value)
        # DLPack hands booleans over as bytes.
        found.append(tensor.view(torch.bool) if dtype == onnx_ir.DataType.BOOL else tensor)
    return found


def torch_module() -> Any:
    """Return the module torch.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "torch tensors need torch", {"import says": str(error)}, "pip install 'tieops[torch]'"
        ) from error
    return torch


def _torch_float8(torch: Any, dtype: onnx_ir.DataType) -> Any:
    names = [name for name in dir(torch) if name.startswith("float8_")]
    return next(getattr(torch, n) for n in names if n.replace("_", "").upper() == dtype.name)
