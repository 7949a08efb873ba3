"""Find NVIDIA's libraries in Python wheels, and load them before ONNX Runtime looks for them.

ONNX Runtime's CUDA provider requests them from the dynamic linker by name, and the linker does not
search Python packages. ``onnxruntime.preload_dlls`` searches only the folder beside onnxruntime,
but they may be in any folder of ``sys.path``, for example where torch is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tieops.system.shared_libraries import is_loaded

__all__ = ["cudnn_error", "load_libraries", "provider_error"]

_NAMES = ("cudart", "nvrtc", "cublasLt", "cublas", "curand", "cufft", "cudnn")
"""In the order in which they need one another."""
_OF_CUDA = ("cudart", "nvrtc", "cublasLt", "cublas")
"""Those that are numbered as CUDA is."""
_CUDNN = "libcudnn.so.9"
_DEFINED_BY_ORT = "Provider_GetHost"


def load_libraries(ort: Any) -> str | None:
    """Load what the CUDA provider needs, and return why it would not load all the same, or None.

    Args:
        ort: The module onnxruntime.
    """
    major = str(getattr(ort, "cuda_version", "")).partition(".")[0]
    folders = list(_folders(Path(ort.__file__).parent.parent, major))
    for name in _NAMES:
        _load(name, major, folders)
    error = provider_error(ort)
    if error is None:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()  # it looks where the system keeps libraries, too
    return provider_error(ort)


def _folders(beside: Path, major: str) -> Iterator[Path]:
    """Yield the folders of NVIDIA's wheels, those that were installed with onnxruntime first."""
    for entry in dict.fromkeys((beside, *map(Path, sys.path))):
        packages = entry / "nvidia"
        # From CUDA 13 on one folder has all but cuDNN; before, each library has one of its own.
        yield packages / f"cu{major}" / "lib"
        with contextlib.suppress(OSError):
            yield from sorted(packages.glob("[!c]*/lib"))
            yield from sorted(packages.glob("cu[!0-9]*/lib"))


def _load(name: str, major: str, folders: list[Path]) -> None:
    pattern = f"lib{name}.so.{major if name in _OF_CUDA else '[0-9]*'}"
    for folder in folders:
        for path in sorted(folder.glob(pattern)):
            if is_loaded(path.name):
                return  # a second copy of it would be another library
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                return


def provider_error(ort: Any) -> str | None:
    """Return why the CUDA provider's library does not load, or None.

    Loading it by hand is safe: until ONNX Runtime has set itself up as its host, one symbol is
    undefined, and the linker, done with all the libraries it needs, gives up before running it.

    Args:
        ort: The module onnxruntime.
    """
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return None if _DEFINED_BY_ORT in str(error) else str(error)
    return None


def cudnn_error() -> str | None:
    """Return why cuDNN does not load, or None.

    ONNX Runtime opens it only when an operator asks for it, so a session can be made without it.
    """
    try:
        ctypes.CDLL(_CUDNN)
    except OSError as error:
        return str(error)
    return None
