"""Processors, and processes with limits."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from tieops.system.memory import address_space_bytes

__all__ = ["cannot_limit_memory", "confine", "ended_by_time", "limit_data", "processors"]

_WRITTEN_BYTES = 1_000_000
"""How large a file may become in a confined process: what is written to stderr is one."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


def processors() -> int:
    """Return how many processors this process may use, as containers and ``taskset`` say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cannot_limit_memory() -> str | None:
    """Return the name of this system if it cannot limit the memory of a process.

    Only Linux can: None there.
    """
    return None if sys.platform == "linux" else sys.platform


def limit_data(nbytes: int) -> None:
    """Limit the memory of this process, the mapped pages of files not counted.

    Args:
        nbytes: How much it may take.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))


def confine(parent: int, memory_bytes: int, seconds: float) -> None:
    """Hold this process to limits, and let it end with the one that asked for it.

    Args:
        parent: The process that asked for it; if it is gone already, this one ends.
        memory_bytes: How much address space it may take beyond what it has.
        seconds: How long it may run, on each processor.
    """
    import resource

    prctl = ctypes.CDLL(None).prctl
    prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    has = address_space_bytes()
    assert has is not None  # who cannot limit memory was asked before
    for which, limit in (
        (resource.RLIMIT_AS, has + memory_bytes),
        # The caller's clock ends it; this is for when the caller is stopped.
        (resource.RLIMIT_CPU, int(seconds * (os.cpu_count() or 1)) + 5),
        (resource.RLIMIT_FSIZE, _WRITTEN_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (limit, limit))


def ended_by_time(code: int) -> bool:
    """Return whether a process ended because its processor time was over.

    Args:
        code: Its return code, as ``subprocess`` tells it.
    """
    return code < 0 and -code == getattr(signal, "SIGXCPU", None)
