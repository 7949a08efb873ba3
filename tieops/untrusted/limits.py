"""Limits on what a file may demand of its reader."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tieops.arguments import expect
from tieops.errors import UnsupportedModelError

__all__ = ["UNLIMITED", "Limits", "check_limit", "raising"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of each thing a model may hold; what asks for more is refused by name.

    The defaults let every model through that we know, and keep what a file can make its reader do
    to about a gigabyte and a minute beyond its own size.

    Args:
        file_bytes: Bytes of the model's own file. More than protobuf's 2 GiB cannot be read.
        data_bytes: Bytes of one file of external data.
        fields: Fields of the protobuf message, in all that is nested. A field of two bytes can
            take a hundred in memory.
        numbers: Numbers that are not in raw data: sizes, attributes, and values in typed fields.
        nodes: Nodes of all graphs, and of all graphs with each function call written out.
        tensors: Initializers and tensor attributes.
        depth: Graphs within graphs (protobuf cannot read more than 31).
        call_depth: Functions that call functions.
        rank: Axes of a tensor.
        name_bytes: Bytes of a name.
        hard_links: Whether a file of external data may have other names elsewhere, as some package
            installers leave them. Whoever has such a name can change the data.

    Example:
        >>> Limits(nodes=1000).nodes
        1000
    """

    file_bytes: int = 2**31 - 1
    data_bytes: int = 2**42
    fields: int = 10_000_000
    numbers: int = 100_000_000
    nodes: int = 250_000
    tensors: int = 250_000
    depth: int = 31
    call_depth: int = 100
    rank: int = 32
    name_bytes: int = 65_536
    hard_links: bool = False

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            kind, wanted = (bool, "True or False") if name == "hard_links" else (int, "a number")
            expect(kind, limit, f"{wanted} for the limit {name}", f"write Limits({name}=...)")


UNLIMITED = Limits(
    data_bytes=sys.maxsize,
    fields=sys.maxsize,
    numbers=sys.maxsize,
    nodes=sys.maxsize,
    tensors=sys.maxsize,
    call_depth=sys.maxsize,
    rank=sys.maxsize,
    name_bytes=sys.maxsize,
    hard_links=True,
)
"""For a model that this process holds already; the two that are protobuf's own stay."""


def check_limit(limits: Limits, option: str, count: int, what: str) -> None:
    """Refuse what is more than a limit.

    Args:
        limits: The limits.
        option: The field of ``limits``.
        count: How many there are.
        what: What is counted, and where.

    Raises:
        UnsupportedModelError: With the count, the limit, and the option that raises it.
    """
    most = getattr(limits, option)
    if count > most:
        raise UnsupportedModelError(
            f"{what}: more than the limit",
            {"found": f"{count:,}", "limit": f"{most:,}"},
            f"if you trust the file: {raising(option)}",
        )


def raising(option: str) -> str:
    """Return how a limit is raised, in Python and on the command line.

    Example:
        >>> raising("nodes")
        'limits=Limits(nodes=...), or --limit nodes=...'
    """
    value, word = ("True", "true") if option == "hard_links" else ("...", "...")
    return f"limits=Limits({option}={value}), or --limit {option}={word}"
