"""Evidence: why two readers are believed to share one weight."""

from __future__ import annotations

import enum

__all__ = ["Evidence"]


class Evidence(enum.StrEnum):
    """The kinds of evidence for a tie, strongest first."""

    OBJECT = "object"
    """The same torch Parameter object."""
    STORAGE = "storage"
    """The same bytes: one buffer in memory, one initializer or one range of a file."""
    CONTENT = "content"
    """Two stored tensors, compared bit for bit."""
    DECLARED = "declared"
    """The user said so."""
    ACCIDENTAL = "accidental"
    """Parameters of several modules that began equal, and that an exporter stored once."""
    SAMPLES = "samples"
    """Two stored tensors, equal in the few elements that were looked at: likely, and not known."""

    def __str__(self) -> str:
        return self.value
