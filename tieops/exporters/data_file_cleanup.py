"""Choose free names for data files, and remove data files of ours that no model reads any more.

References are found in the bytes of a model without parsing it, because it may embed gigabytes.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tieops.exporters.files import (
    folder_lock,
    left_over,
    remove_left_over,
)
from tieops.ir.storage.data_files import bytes_of, is_temporary, mentions, models_in
from tieops.system.folders import ignores_case, remove
from tieops.system.opening import is_ours

__all__ = ["DATA", "data_of", "free_data_path", "is_data_name", "sweep", "unread"]

DATA = "tieops.data"
"""On a model: its data files that are named after another model, with ``/`` between them."""
_NUMBERED = r"(?:\.(\d{1,9}))?\.data"


def free_data_path(path: Path) -> Path:
    """Return a name for the data of a model that no file has, nor had while this model was there.

    A number is not given a second time: a process that has read the old model and not yet its data
    must not find other bytes under the same name.
    """
    found = [match for name in os.listdir(path.parent) if (match := _own(path).fullmatch(name))]
    number = max((int(match[1] or 0) for match in found), default=-1) + 1
    while True:
        candidate = path.with_name(f"{path.name}.{number}.data" if number else f"{path.name}.data")
        # Else an old model would take it for its own. Where case and accents are one, the name may
        # be taken by a file that is listed under another.
        if not mentions([path], candidate.name) and not os.path.lexists(candidate):
            return candidate
        number += 1


def _own(path: Path) -> re.Pattern[str]:
    return re.compile(re.escape(path.name) + _NUMBERED)


def is_data_name(name: str, of_other_than: Path | None = None) -> bool:
    """Return whether a file is called as the data of a model is, or of another model than this."""
    if of_other_than is not None and _own(of_other_than).fullmatch(name):
        return False
    return re.fullmatch(r"[^/\\]+\.onnx" + _NUMBERED, name) is not None


def data_of(path: Path) -> set[str]:
    """Return the names of the data files of ours that a model refers to; of a link, none.

    Raises:
        OSError: If the model is there and cannot be read.
    """
    own = _own(path)
    with bytes_of(path) as data:
        recorded = _recorded(data)
        return {
            name
            for name in os.listdir(path.parent)
            if (own.fullmatch(name) or (name in recorded and is_data_name(name)))
            and _refers(data, name)
            and _is_file(path.with_name(name))
        }


def _is_file(path: Path) -> bool:
    """Return whether a file is one that tieops writes: not a link, a FIFO or the like."""
    # Another error is the caller's: data that is not found here is never removed.
    with suppress(FileNotFoundError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def _refers(data: mmap.mmap | bytes, name: str) -> bool:
    """Return whether a tensor of a model lies in a file, by the entry as protobuf writes it."""
    value = os.fsencode(name)
    size = len(value)
    length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    return data.find(b"location\x12" + length + value) >= 0


def _recorded(data: mmap.mmap | bytes) -> set[str]:
    """Return the names that the mark of a model holds, as protobuf writes them."""
    at = data.find(DATA.encode() + b"\x12") + len(DATA) + 1
    if at <= len(DATA):
        return set()
    head = data[at : at + 2]
    if not head or (head[0] >= 0x80 and (len(head) < 2 or head[1] >= 0x80)):
        return set()  # no length, or one of three bytes, which no mark of ours has
    length = head[0] & 0x7F
    if head[0] >= 0x80:  # a length takes a second byte from 128 on
        at += 1
        length |= head[1] << 7
    return set(data[at + 1 : at + 1 + length].decode("utf-8", "replace").split("/"))


def unread(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return those of the data files that no model in the folder refers to.

    Models under temporary names do not count. A writer that is about to refer to data that is there
    already looks, under the lock of the folder, whether it still is.
    """
    candidates = sorted(names)
    if not candidates:
        return []
    models = list(models_in(folder))
    return [
        path
        for path in map(folder.joinpath, candidates)
        if not mentions(models, path.name, any_case=ignores_case(path))
    ]


def sweep(folder: Path) -> None:
    """Remove what killed writers left: their temporary files, and data that no model reads.

    A writer that is killed leaves, under a temporary name, the model that it was about to put in
    place or had just replaced. Data of ours that only such a model refers to goes with it, unless
    the data is younger: then it is somebody else's.

    Raises:
        ExportError: If another process is writing to the folder.
    """
    if not left_over(folder):
        return
    with folder_lock(folder):
        left = left_over(folder)
        data = {path: set(_data_left_with(path)) for path in left}
        # A living writer's model refers to its data before it has its own name.
        names = set(os.listdir(folder)) - {path.name for path in left}
        living = [folder / name for name in names if is_temporary(name)]
        stays: set[str] = set()
        for path in unread(folder, set[str]().union(*data.values())):
            if not _may_refer(living, path.name) and not remove(path):
                stays.add(path.name)  # on Windows: somebody has it open or mapped
        for path in left:
            if data[path].isdisjoint(stays):  # else it tells the next writer what to remove
                remove_left_over(path)


def _data_left_with(model: Path) -> Iterable[str]:
    with bytes_of(model) as data:
        named = [
            name for name in os.listdir(model.parent) if is_data_name(name) and _refers(data, name)
        ]
    written_ns = model.stat().st_mtime_ns
    for name in named:
        status = model.with_name(name).lstat()
        if is_ours(status) and status.st_mtime_ns <= written_ns:
            yield name


def _may_refer(models: Iterable[Path], location: str) -> bool:
    try:
        return mentions(models, location)
    except OSError:  # another user's, or gone: rather a file too many
        return True
