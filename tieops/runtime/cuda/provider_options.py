"""Options of ONNX Runtime's CUDA provider: which GPU, how much memory, which stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tieops.errors import PreconditionError
from tieops.ir.notation import printable

__all__ = ["checked_options", "device_of", "elsewhere", "stream_of", "uses_cuda_graph"]

_STREAM = "user_compute_stream"
_OF_THIS_PROCESS = (_STREAM, "has_user_compute_stream", "gpu_external_alloc", "gpu_external_free",
                    "gpu_external_empty_cache")  # fmt: skip


def checked_options(given: Any, provider: str) -> dict[str, str]:
    """Return the provider's options as ONNX Runtime takes them.

    Args:
        given: Texts, numbers and truth values by name; a stream may be torch's.
        provider: What was asked for; the CPU has no options.

    Raises:
        PreconditionError: If they are no mapping, or there is a value that none of them has.

    Example:
        >>> checked_options({"device_id": 1, "use_tf32": False}, "cuda")
        {'device_id': '1', 'use_tf32': '0'}
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise PreconditionError(
            "provider_options must be a mapping of names to values",
            {"got": type(given).__name__},
            'pass them by name: {"device_id": 1, "use_tf32": 0}',
        )
    if provider == "cpu" and given:
        raise PreconditionError(
            "provider_options apply only to CUDA, but provider='cpu' was requested",
            {"got": ", ".join(map(printable, given))},
            "leave them out, or ask for 'cuda' or 'auto'",
        )
    found = {name: _text(name, value) for name, value in given.items()}
    if found.get(_STREAM, "0") != "0":
        found.setdefault("has_user_compute_stream", "1")
    if not found.get("device_id", "0").isdecimal():
        raise PreconditionError(
            "device_id must be the number of a GPU",
            {"got": printable(found["device_id"])},
            "count from 0: nvidia-smi lists them",
        )
    return found


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))  # ONNX Runtime reads "True" as no number
    if isinstance(value, (str, int, float)):
        return str(value)
    handle = getattr(value, "cuda_stream", None)
    if name == _STREAM and isinstance(handle, int):
        return str(handle)
    raise PreconditionError(
        f"expected a string or a number for the option {printable(name)}",
        {"got": type(value).__name__},
        "pass it as ONNX Runtime documents it; a stream by its address",
    )


def device_of(options: Mapping[str, str]) -> int:
    """Return the number of the GPU.

    Example:
        >>> device_of({}), device_of({"device_id": "1"})
        (0, 1)
    """
    return int(options.get("device_id", "0"))


def stream_of(options: Mapping[str, str]) -> int:
    """Return the address of the stream that the session works on, 0 if it has one of its own."""
    return int(options.get(_STREAM, "0"))


def uses_cuda_graph(options: Mapping[str, str]) -> bool:
    """Return whether runs are captured into a CUDA graph."""
    return options.get("enable_cuda_graph", "0") not in ("0", "False", "false")


def elsewhere(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options that mean the same in another process: no addresses of this one."""
    return {name: text for name, text in options.items() if name not in _OF_THIS_PROCESS}
