"""Run models with ONNX Runtime; importing this package does not load it."""

from typing import TYPE_CHECKING

from tieops._lazy import lazy

if TYPE_CHECKING:
    # `sessions` stays in its module: here its name is the module of `session`.
    from tieops.runtime.accounting.ledger import ledger_of, resident_bytes
    from tieops.runtime.accounting.resident import Held, ResidentBytes
    from tieops.runtime.feeds import Port
    from tieops.runtime.group import Sessions
    from tieops.runtime.model_source import Runnable
    from tieops.runtime.providers import cuda_blocker, environment
    from tieops.runtime.session_arguments import Provider
    from tieops.runtime.sessions import Session, session

__all__ = [
    "Held",
    "Port",
    "Provider",
    "ResidentBytes",
    "Runnable",
    "Session",
    "Sessions",
    "cuda_blocker",
    "environment",
    "ledger_of",
    "resident_bytes",
    "session",
]

__getattr__ = lazy(
    __name__,
    {
        "Held": "tieops.runtime.accounting.resident",
        "Port": "tieops.runtime.feeds",
        "Provider": "tieops.runtime.session_arguments",
        "ResidentBytes": "tieops.runtime.accounting.resident",
        "Runnable": "tieops.runtime.model_source",
        "Session": "tieops.runtime.sessions",
        "Sessions": "tieops.runtime.group",
        "cuda_blocker": "tieops.runtime.providers",
        "environment": "tieops.runtime.providers",
        "ledger_of": "tieops.runtime.accounting.ledger",
        "resident_bytes": "tieops.runtime.accounting.ledger",
        "session": "tieops.runtime.sessions",
    },
)
