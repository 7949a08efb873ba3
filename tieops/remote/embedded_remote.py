"""Read the graph of a remote .onnx file without its weights, in ranges.

Only the graph is read. A large tensor becomes external data in the model's own file, so that one
kind of tensor serves both cases.
"""

from __future__ import annotations

from tieops.errors import UntrustedFileError
from tieops.ir.notation import printable
from tieops.ir.storage.ranged_tensors import Ranges
from tieops.untrusted.embedded import Lifted, lift
from tieops.untrusted.limits import Limits

__all__ = ["read_graph"]

MIN_SKIPPED_BYTES = 16 << 10
"""Smaller data is read along: a request of its own would cost as much."""
FIRST_READ_BYTES = 4 << 10
MAX_READ_BYTES = 1 << 20


def read_graph(source: Ranges, location: str, limits: Limits) -> bytes:
    """Return a model in which large tensors are external data that lies in the model's own file.

    Args:
        source: The .onnx file.
        location: What those tensors say their file is called.
        limits: What the file may hold.

    Raises:
        UntrustedFileError: If it is damaged, or a tensor has its values in two places.
        UnsupportedModelError: If it has more fields than the limit.
    """

    def refer(lifted: Lifted) -> bytes:
        if lifted.is_ambiguous:
            raise UntrustedFileError(
                f"{printable(lifted.tensor.name) or 'a tensor'} has its values in two places, "
                "which may differ",
                {"file": source.name},
            )
        return lifted.referring(location)

    return lift(_Steps(source), MIN_SKIPPED_BYTES, refer, limits)


class _Steps:
    """Windows that grow while a walk goes on, and begin small again behind what it stepped over."""

    def __init__(self, source: Ranges) -> None:
        self.name = source.name
        self.size = source.size
        self._source = source
        self._end = 0
        self._step = FIRST_READ_BYTES

    def window(self, start: int, stop: int) -> bytes:
        near = start == self._end
        self._step = min(self._step * 2, MAX_READ_BYTES) if near else FIRST_READ_BYTES
        self._end = min(max(stop, start + self._step), self.size)
        (data,) = self._source.read([(start, self._end)])
        return data
