"""The configuration that a session was opened with: enough to reopen it anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tieops.runtime.cuda.provider_options import device_of
from tieops.runtime.providers import onnxruntime_module
from tieops.runtime.session_arguments import Memory, Provider
from tieops.untrusted.limits import Limits

__all__ = ["SessionConfig", "session_options"]


@dataclass(frozen=True)
class SessionConfig:
    """What a session was opened with.

    Args:
        opened: The path, or the bytes of the model.
        provider: What was asked for; of an open session, what runs it.
        memory: How many copies of tied weights the CPU should hold.
        options: Configuration entries of ONNX Runtime that the user gave.
        optimize: Whether graph optimizations are on.
        threads: How many threads one operator may use; None leaves it to ONNX Runtime.
        limits: What the file may ask of tieops, which reads it to prepare its weights.
        provider_options: Options of the CUDA provider, as ONNX Runtime takes them.
    """

    opened: str | bytes = field(repr=False)
    provider: Provider = "auto"
    memory: Memory = "packed"
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    optimize: bool = True
    threads: int | None = None
    limits: Limits = field(default_factory=Limits)
    provider_options: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def device(self) -> int:
        """The number of the GPU that runs it, where one does."""
        return device_of(self.provider_options)


def session_options(config: SessionConfig) -> Any:
    """Return the ``SessionOptions`` that a config asks for, without its weights."""
    ort = onnxruntime_module()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # fatal: what it logs as errors, it raises too
    # Lets a session report afterwards which node runs where, at the cost of the nodes' names.
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not config.optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if config.threads is not None:
        settings.intra_op_num_threads = config.threads
    for key, value in config.options.items():
        settings.add_session_config_entry(key, value)
    return settings
