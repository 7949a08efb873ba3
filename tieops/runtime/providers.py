"""Find out which providers really load, from the dynamic linker and the driver.

This is the only module that imports onnxruntime, and only when it is needed: a program that reads
or edits models needs no runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tieops.errors import MissingDependencyError, ProviderError
from tieops.ir.notation import counted
from tieops.runtime.cuda.libraries import cudnn_error, load_libraries, provider_error
from tieops.system.shared_libraries import CUDA_DRIVER, linker_says_what_lacks

__all__ = [
    "CUDA",
    "Blocker",
    "cuda_blocker",
    "environment",
    "find_blocker",
    "first_line",
    "library_error",
    "not_on_cuda",
    "onnxruntime_errors",
    "onnxruntime_module",
    "out_of_memory",
    "out_of_memory_error",
]

CUDA = "CUDAExecutionProvider"
_INSTALL = "pip install 'tieops[gpu]' (NVIDIA) or 'tieops[cpu]'"
_LIBRARIES = "pip install 'tieops[cuda]', which brings CUDA's libraries and cuDNN"
_NO_ROOM = re.compile(
    r"Failed to allocate memory for requested buffer of size \d+"
    r"|Available memory of \d+ is smaller than requested bytes of \d+|out of memory"
)
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
"""NVIDIA's number among the vendors of PCI devices."""


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


@dataclass(frozen=True)
class Blocker:
    """What keeps ONNX Runtime from using CUDA.

    Attributes:
        what: A sentence, or what the dynamic linker says.
        fix: What helps.
    """

    what: str
    fix: str


def cuda_blocker() -> str | None:
    """Return what keeps ONNX Runtime from using CUDA here, or None if nothing is known to.

    ``onnxruntime.get_available_providers()`` lists what a package was built with, not what loads;
    so this asks the driver, then the dynamic linker. Libraries in NVIDIA's wheels are found along
    ``sys.path`` and loaded. It writes nothing to stderr.

    Raises:
        MissingDependencyError: If onnxruntime is not installed.

    Example:
        >>> why = cuda_blocker()  # "no NVIDIA GPU was found"
        >>> why is None or len(why) > 0
        True
    """
    found = find_blocker()
    return None if found is None else found.what


def find_blocker(device: int = 0) -> Blocker | None:
    """Return what keeps ONNX Runtime from using one GPU, and what helps; or None.

    Args:
        device: The GPU's number.
    """
    ort = onnxruntime_module()
    if CUDA not in ort.get_available_providers():
        return Blocker(
            f"onnxruntime {ort.__version__} was built without CUDA",
            f"uninstall onnxruntime, then {_LIBRARIES}",
        )
    if not linker_says_what_lacks():
        return None  # the linker's answers are read on Linux only; `create` looks afterwards
    try:
        driver = ctypes.CDLL(CUDA_DRIVER)
    except OSError as error:
        return _no_driver(str(error))
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return Blocker(
            f"the NVIDIA driver shows no GPU (CUDA error {code}, {count.value} devices)",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES; a container needs access to the GPU",
        )
    if device >= count.value:
        there = counted(count.value, "GPU")
        return Blocker(f"there is no GPU {device}: the driver shows {there}, counted from 0",
                       'give another "device_id"')  # fmt: skip
    error = load_libraries(ort)
    return None if error is None else Blocker(error, _LIBRARIES)


def _no_driver(error: str) -> Blocker:
    """Distinguish a machine without a GPU from one whose driver is missing."""
    if not any(_has_text(path, _NVIDIA) for path in _PCI.glob("*/vendor")):
        return Blocker("no NVIDIA GPU was found", "run it on a machine that has one")
    return Blocker(
        f"there is an NVIDIA GPU, and no driver for it: {error}",
        "install NVIDIA's driver; a container needs access to the GPU",
    )


def _has_text(path: Path, text: str) -> bool:
    try:
        return path.read_text("ascii").strip() == text
    except (OSError, ValueError):
        return False


def library_error() -> str | None:
    """Return why the CUDA provider's library does not load, or None."""
    return provider_error(onnxruntime_module())


def not_on_cuda(blocker: str, fix: str = "") -> ProviderError:
    """Return the error that says why CUDA will not run the model.

    Args:
        blocker: What is missing.
        fix: What helps; empty for what brings the libraries.
    """
    return ProviderError(
        "the model cannot run on CUDA",
        {"missing": blocker},
        f"{fix or _LIBRARIES}; or ask for 'cpu'",
    )


def out_of_memory(text: str) -> str | None:
    """Return the part of an error that says that a GPU has no room left, or None."""
    found = _NO_ROOM.search(text)
    return None if found is None else found[0]


def out_of_memory_error(says: str) -> ProviderError:
    """Return the error for a model that does not fit in GPU memory.

    Args:
        says: What `out_of_memory` found.
    """
    return ProviderError(
        "the model does not fit in GPU memory",
        {"it says": says},
        "close other sessions, raise gpu_mem_limit if it is set, or ask for 'cpu'",
    )


def environment() -> dict[str, str]:
    """Return the versions that matter, and for each provider "loads" or why it does not.

    Where CUDA loads, "cudnn" says whether cuDNN does, which convolutions and recurrent layers need.

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
    cuda = cuda_blocker()
    # If CUDA does not load, what else is missing does not matter.
    cudnn = {} if cuda else {"cudnn": cudnn_error() or "loads"}
    return found | {"cpu": "loads", "cuda": cuda or "loads"} | cudnn


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
