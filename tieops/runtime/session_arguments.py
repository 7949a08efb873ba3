"""Validate the arguments of a session; this module loads nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from tieops.errors import PreconditionError

__all__ = ["Memory", "Provider", "check_choices"]

Provider: TypeAlias = Literal["auto", "cuda", "cpu"]
"""Requested provider of a session."""
Memory: TypeAlias = Literal["packed", "mapped", "default"]
"""How the CPU holds tied weights."""

_BY_CLASS = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}
"""What ONNX Runtime calls them."""


def check_choices(provider: object, memory: object, options: object, threads: object) -> None:
    """Validate the arguments of a session before anything is done.

    Raises:
        PreconditionError: If it is none of the providers or memory modes, no mapping of entries, or
            threads is not a number of threads.
    """
    if not isinstance(provider, str) or provider not in ("auto", "cuda", "cpu"):
        known = _BY_CLASS.get(str(provider))
        fix = f'use provider="{known}"' if known else "use 'auto', 'cuda' or 'cpu'"
        raise PreconditionError(f"unknown provider {provider!r}", {}, fix)
    _check_memory(memory)
    if options is not None and not (
        isinstance(options, Mapping) and all(isinstance(key, str) for key in options)
    ):
        raise PreconditionError(
            "expected options to map names of configuration entries to values",
            {"given": repr(options)},
            'pass names and values: {"session.disable_prepacking": "1"}',
        )
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads < 2**15
    ):
        raise PreconditionError(
            f"threads must be a non-negative integer or None, got {threads!r}",
            None,
            "pass 1 or more; 0 and None leave the number to ONNX Runtime",
        )


def _check_memory(memory: object) -> None:
    """Refuse an unknown memory mode.

    Raises:
        PreconditionError: If the mode is none of the three.
    """
    if not isinstance(memory, str) or memory not in ("packed", "mapped", "default"):
        raise PreconditionError(
            f"unknown memory mode {memory!r}", {}, "use 'packed', 'mapped' or 'default'"
        )
