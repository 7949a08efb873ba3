"""Shared libraries of the system: their names, and whether one is loaded."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["CUDA_DRIVER", "is_loaded", "linker_says_what_lacks"]

CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""The library of NVIDIA's driver."""


def is_loaded(name: str) -> bool:
    """Return whether this process has loaded a library of that name.

    Where the system cannot be asked without loading it, as on Windows, it counts as not loaded.
    """
    if not hasattr(os, "RTLD_NOLOAD"):
        return False
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def linker_says_what_lacks() -> bool:
    """Return whether the error of a library that does not load names the one that it needs."""
    return sys.platform == "linux"
