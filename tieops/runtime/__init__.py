"""Running models with ONNX Runtime; importing this loads no runtime."""

# `sessions` stays in its module: here its name is the module of `session`.
from tieops.runtime.group import Sessions
from tieops.runtime.ports import Port
from tieops.runtime.providers import cuda_blocker, environment
from tieops.runtime.sessions import Provider, Session, session
from tieops.runtime.source import Runnable

__all__ = [
    "Port",
    "Provider",
    "Runnable",
    "Session",
    "Sessions",
    "cuda_blocker",
    "environment",
    "session",
]
