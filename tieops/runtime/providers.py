"""Which providers really load: asked of the dynamic linker and the driver, not of a list.

The only file that imports onnxruntime, and only when it is called for: a program that reads or
edits models needs no runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import io
import sys
from pathlib import Path
from typing import Any

from tieops.errors import MissingDependencyError, ProviderError

__all__ = [
    "CUDA",
    "cuda_blocker",
    "environment",
    "first_line",
    "library_error",
    "not_on_cuda",
    "onnxruntime_errors",
    "onnxruntime_module",
]

CUDA = "CUDAExecutionProvider"
_INSTALL = "pip install 'tieops[gpu]' (NVIDIA) or 'tieops[cpu]'"
_DEFINED_BY_ORT = "Provider_GetHost"


def onnxruntime_module() -> Any:
    """Return the module onnxruntime.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "running a model needs onnxruntime", {"import says": str(error)}, _INSTALL
        ) from error
    return onnxruntime


def cuda_blocker() -> str | None:
    """Return what keeps ONNX Runtime from using CUDA here, or None if nothing is known to.

    ``onnxruntime.get_available_providers()`` lists what a package was built with, not what loads;
    so this asks the dynamic linker, then the driver. It writes nothing to stderr.

    Raises:
        MissingDependencyError: If onnxruntime is not installed.

    Example:
        >>> why = cuda_blocker()  # "libcuda.so.1: cannot open shared object file: ..."
        >>> why is None or len(why) > 0
        True
    """
    ort = onnxruntime_module()
    if CUDA not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} was built without CUDA"
    if sys.platform != "linux":
        return None  # the linker's answers are read on Linux only; `create` looks afterwards
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return str(error)
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return f"the NVIDIA driver shows no GPU (CUDA error {code}, {count.value} devices)"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    return library_error()


def library_error() -> str | None:
    """Return why the CUDA provider's library does not load, or None.

    Loading it by hand is safe: until ONNX Runtime has set itself up as its host, one symbol is
    undefined, and the linker, done with all the libraries it needs, gives up before running it.
    """
    folder = Path(onnxruntime_module().__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return None if _DEFINED_BY_ORT in str(error) else str(error)
    return None


def not_on_cuda(blocker: str) -> ProviderError:
    """Return the error that says why CUDA will not run the model."""
    return ProviderError(
        "the model would not run on CUDA",
        {"missing": blocker},
        "install what is missing (pip install 'tieops[gpu]', an NVIDIA driver), or ask for 'cpu'",
    )


def environment() -> dict[str, str]:
    """Return the versions that matter, and for each provider "loads" or why it does not.

    Example:
        >>> found = environment()
        >>> found["cpu"], sorted(found)
        ('loads', ['cpu', 'cuda', 'onnx', 'onnx_ir', 'onnxruntime', 'tieops', 'torch'])
    """
    packages = {
        "tieops": ("tieops",),
        "onnx": ("onnx",),
        "onnx_ir": ("onnx-ir",),
        "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
        "torch": ("torch",),
    }
    found = {name: _version(names) for name, names in packages.items()}
    try:
        onnxruntime_module()
    except MissingDependencyError as error:
        return found | {"cpu": error.what, "cuda": error.what}
    return found | {"cpu": "loads", "cuda": cuda_blocker() or "loads"}


def _version(names: tuple[str, ...]) -> str:
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "not installed"


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's exceptions, which share no base class."""
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [each for each in vars(state).values() if isinstance(each, type)]
    return (RuntimeError, ValueError, *(each for each in own if issubclass(each, Exception)))


def first_line(error: Exception) -> str:
    """Return the first line with text of an error from elsewhere, as a fact for ours."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
