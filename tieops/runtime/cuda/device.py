"""Memory of an NVIDIA GPU, through its driver: bytes in use, and uploading weights.

ONNX Runtime uploads weights into an arena that grows in powers of two and is not freed before the
process ends. An allocation of this module has exactly the size of its tensor, and is freed with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import weakref
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import onnx_ir

from tieops.system.shared_libraries import CUDA_DRIVER

__all__ = ["DeviceTensor", "used_bytes"]

_CUDA = 2
"""DLPack's number of CUDA, ``kDLCUDA``."""
_OUT_OF_MEMORY = 2
_Address = ctypes.c_uint64


def _call(name: str, *arguments: Any) -> None:
    code = getattr(ctypes.CDLL(CUDA_DRIVER), name)(*arguments)
    if code:
        says = "out of memory" if code == _OUT_OF_MEMORY else f"error {code}"
        raise OSError(f"the NVIDIA driver's {name} says {says}")


@functools.cache
def _primary_context(device: int) -> ctypes.c_void_p:
    """Return a device's primary context, the one that ONNX Runtime and torch use too.

    It is never released: with its last user everything in its memory would go.
    """
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(handle), device)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    return context


@contextlib.contextmanager
def _context(device: int) -> Generator[None]:
    """Work on a device, and leave the thread on the one that it was on."""
    gone = ctypes.c_void_p()
    _call("cuCtxPushCurrent_v2", _primary_context(device))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(gone))


def used_bytes(device: int) -> int:
    """Return the bytes in use on a device, by whatever process.

    Raises:
        OSError: If there is no driver, or it fails.
    """
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _context(device):
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


class DeviceTensor:
    """A tensor on a device, which speaks DLPack; its memory goes when it does.

    Args:
        array: The values; copied.
        dtype: Their element type.
        device: The device's number.

    Raises:
        OSError: If there is no driver, or it fails, as where the device has no room.
    """

    def __init__(self, array: np.ndarray[Any, Any], dtype: onnx_ir.DataType, device: int) -> None:
        # The driver's API is called directly: ONNX Runtime's Python API can allocate only from its
        # arena, and torch, which could allocate too, need not be installed.
        self.shape = array.shape
        self.dtype = dtype
        self.device = device
        array = np.ascontiguousarray(array)
        address = _Address()
        with _context(device):
            _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(array.nbytes, 1)))
            self.address = address.value
            # Registered before the copy, so that memory is freed if the copy fails.
            self._free = weakref.finalize(self, _give_back, device, address.value)
            source = ctypes.c_void_p(array.ctypes.data)
            _call("cuMemcpyHtoD_v2", address, source, ctypes.c_size_t(array.nbytes))

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Return a capsule that refers to the memory, which this object has to outlive."""
        del stream  # the copy was waited for
        described = _describe(self)
        _described.append(described)
        return _capsule(ctypes.addressof(described), b"dltensor", None)


def _give_back(device: int, address: int) -> None:
    with contextlib.suppress(OSError), _context(device):
        _call("cuMemFree_v2", _Address(address))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Managed(ctypes.Structure):
    """DLPack's ``DLManagedTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


def _describe(tensor: DeviceTensor) -> _Managed:
    shape = (ctypes.c_int64 * len(tensor.shape))(*tensor.shape)
    strides = (ctypes.c_int64 * len(tensor.shape))(*_strides(tensor.shape))
    dtype = tensor.dtype
    # DLPack's type codes: 0 signed, 1 unsigned, 2 float, 4 bfloat, which numpy has no kind for.
    kind = 4 if dtype == onnx_ir.DataType.BFLOAT16 else {"f": 2, "i": 0, "u": 1}[dtype.numpy().kind]
    return _Managed(
        tensor.address, _CUDA, tensor.device, len(shape), _Type(kind, dtype.bitwidth, 1),
        shape, strides, 0, None, _NOTHING,
    )  # fmt: skip


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


_described: list[_Managed] = []
"""What capsules point to. ONNX Runtime reads it when a session goes, of which nobody here is told;
so these 72 bytes and a shape stay."""
# ONNX Runtime calls the deleter when a session goes, maybe after Python has ended: it must not be
# Python. This function reads no argument and changes nothing, and is in every Python.
_NOTHING = ctypes.cast(ctypes.pythonapi.PyThread_get_thread_ident, ctypes.c_void_p).value
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
