"""Data files beside models: the bytes of one that a model reads, and the models that refer to it.

References are found in the bytes of a model without parsing it, because it may embed gigabytes.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx_ir

from tieops.ir.walk import all_graphs, attribute_tensors
from tieops.system.mapping import map_file
from tieops.system.opening import open_regular

__all__ = [
    "MAX_PROTO_BYTES",
    "TEMPORARY",
    "bytes_of",
    "data_parts",
    "is_temporary",
    "mentions",
    "models_in",
    "unread_bytes",
]

MAX_PROTO_BYTES = 2**31 - 1
"""protobuf's own limit for one message."""
PAGE_BYTES = 4096
"""Less than that between two tensors is not worth a word."""
ALIGNMENTS = (16384, 65536)
"""Some writers begin a tensor on a page of other systems; what is left free before it is theirs."""


TEMPORARY = re.compile(r"(\.tieops-[0-9a-f]{16})\.(?:(?:data|model|file)\.tmp|lock)")


def is_temporary(name: str) -> bool:
    """Return whether a file has the name of a temporary one of ours, or of the lock of one."""
    return TEMPORARY.fullmatch(name) is not None


def data_parts(model: onnx_ir.Model) -> dict[str, list[tuple[int, int]]]:
    """Return the data files that a model refers to, and the ranges of bytes that it reads of each.

    Args:
        model: The graph; tensors in attributes and functions count.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    stored = [value.const_value for g in all_graphs(model) for value in g.initializers.values()]
    for tensor in (*stored, *attribute_tensors(model)):
        if isinstance(tensor, onnx_ir.ExternalTensor):
            begin = tensor.offset or 0
            found.setdefault(tensor.path, []).append((begin, begin + int(tensor.nbytes)))
    return found


def unread_bytes(size: int, parts: Sequence[tuple[int, int]]) -> int:
    """Return how many bytes of a file lie in none of these parts, alignments apart.

    Args:
        size: The file's bytes.
        parts: Where each part begins and ends; they may overlap.

    Example:
        >>> unread_bytes(30_000, [(0, 100), (4096, 10_000), (4096, 5000)])
        20000
    """
    unread = end = 0
    for begin, stop in sorted(parts):
        gap = begin - end
        if gap >= PAGE_BYTES and not any(begin % a == 0 and gap < a for a in ALIGNMENTS):
            unread += gap
        end = max(end, stop)
    return unread + (size - end if size - end >= PAGE_BYTES else 0)


@contextmanager
def bytes_of(path: Path) -> Generator[mmap.mmap | bytes]:
    """Map a file that may be a model; what cannot be one, such as a link, has no bytes."""
    try:
        descriptor = open_regular(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        yield b""
        return
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_PROTO_BYTES:
            yield b""
            return
        with map_file(descriptor) as data:
            yield data
    finally:
        os.close(descriptor)


def models_in(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that may be models; those under temporary names of ours are not.

    Raises:
        OSError: If the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        yield from [folder / entry.name for entry in entries if _may_be_model(entry)]


def _may_be_model(entry: os.DirEntry[str]) -> bool:
    if is_temporary(entry.name) or not entry.is_file():
        return False
    if entry.name.endswith(".onnx"):
        return True
    with suppress(OSError), open(entry.path, "rb", buffering=0) as file:
        return file.read(1) == b"\x08"  # the first field of a model, its version
    return False


def mentions(models: Iterable[Path], location: str, *, any_case: bool = False) -> bool:
    """Return whether one of these models, or what they are links to, may refer to a data file.

    Args:
        models: The models.
        location: The name of the data file.
        any_case: Whether it is found under its name in another case too.
    """
    wanted = os.fsencode(location)
    pattern = re.compile(re.escape(wanted), re.IGNORECASE) if any_case else None
    for model in models:
        with bytes_of(Path(os.path.realpath(model))) as data:
            if (pattern.search(data) is not None) if pattern else (data.find(wanted) >= 0):
                return True
    return False
