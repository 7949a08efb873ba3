"""Tensors of torch and of others on their way in and out of a session, without a copy.

On the CPU a torch tensor becomes a numpy array over the same memory. On the GPU its address is
bound to the input, and what speaks DLPack is handed over by that. torch is imported only where
torch tensors are asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from tieops.errors import MissingDependencyError, PreconditionError
from tieops.ir.brief import printable
from tieops.runtime.providers import onnxruntime_module
from tieops.runtime.values import RAW, raw_array

if TYPE_CHECKING:
    import torch

__all__ = [
    "as_array",
    "bind_device_input",
    "dtype_of",
    "is_on_device",
    "tensors_of",
    "to_host",
    "torch_module",
]

_CPU = 1
"""DLPack's number of the CPU, ``kDLCPU``."""


def is_torch(value: object) -> bool:
    """Tell whether this is a torch tensor; where torch is not loaded nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_on_device(value: Any) -> bool:
    """Tell whether this is a tensor in the memory of a device, which numpy cannot read.

    Example:
        >>> is_on_device(np.zeros(3)), is_on_device([1, 2])
        (False, False)
    """
    if is_torch(value):
        return value.device.type != "cpu"
    ask = getattr(value, "__dlpack_device__", None)
    return ask is not None and not isinstance(value, np.ndarray) and int(ask()[0]) != _CPU


def to_host(name: str, value: Any) -> Any:
    """Return a torch tensor of a device copied to the CPU, and anything else as it is.

    Args:
        name: The input that it is fed to.
        value: What is fed.

    Raises:
        PreconditionError: If it lies on a device and is not torch's: nothing here copies it.
    """
    if not is_on_device(value):
        return value
    if not is_torch(value):
        raise PreconditionError(
            f"what is fed to {printable(name)} lies on a device, and the session runs on the CPU",
            {"fed": f"a {type(value).__name__}"},
            "copy it to the CPU first",
        )
    return value.detach().cpu()


def dtype_of(value: Any) -> str:
    """Return the name of a device tensor's dtype as ONNX Runtime writes it.

    Example:
        >>> dtype_of(np.zeros(1, np.float32))
        'float32'
    """
    name = str(getattr(value.dtype, "name", value.dtype)).removeprefix("torch.")
    return name if name.startswith(("float8_e8m0", "bool")) else name.replace("_", "")


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """Return what numpy makes of a value; of a torch tensor on the CPU, an array over its memory.

    Raises:
        TypeError: If numpy can make no array of it.

    Example:
        >>> as_array([1, 2])
        array([1, 2])
    """
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


def bind_device_input(binding: Any, name: str, value: Any, dtype: onnx_ir.DataType) -> object:
    """Bind a tensor of a device to an input where it lies.

    Args:
        binding: ONNX Runtime's ``IOBinding``.
        name: The input.
        value: The tensor; of the dtype that the input wants.
        dtype: That dtype.

    Returns:
        What has to live until the model has run.
    """
    if not is_torch(value):
        bound = onnxruntime_module().OrtValue.from_dlpack(value)
        binding.bind_ortvalue_input(name, bound)
        return bound
    tensor = value.detach().contiguous()
    if tensor.is_cuda:
        # ONNX Runtime works on a stream of its own: what is still being computed has to be there.
        sys.modules["torch"].cuda.current_stream(tensor.device).synchronize()
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
