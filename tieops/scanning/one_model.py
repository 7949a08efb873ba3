"""Scan one model; whatever is wrong with it becomes part of its record."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir

from tieops.analysis.duplicates.by_content import find_duplicates
from tieops.errors import TieopsError, UnsupportedModelError
from tieops.importers import TORCH_SUFFIXES
from tieops.importers.onnx import from_onnx
from tieops.ir.notation import printable
from tieops.ir.storage.ranged_tensors import RangedTensor
from tieops.ir.walk import stored_values
from tieops.model import TiedModel
from tieops.progress import silent
from tieops.remote.remote_files import SOURCE, RemoteFile, open_remote
from tieops.remote.urls import is_url
from tieops.scanning.model_record import Failure, FileMark, FoundDuplicate, FoundTie, ScanRecord
from tieops.untrusted.limits import Limits

__all__ = ["look"]


def look(
    target: str,
    *,
    whole: bool,
    options: Mapping[str, Any] | None,
    limits: Limits | None,
    known: ScanRecord | None,
) -> ScanRecord:
    """Look at one model.

    Args:
        target: Its path or URL.
        whole: Read large tensors of a remote file whole where they may be equal.
        options: What the file systems of URLs need.
        limits: What it may hold.
        known: What is known of it from before; returned as it is if no file has changed since.

    Returns:
        What was found. Errors are part of it; none is raised.
    """
    started = time.perf_counter()
    try:
        if known is not None and _still_holds(known, whole, options):
            return known
        with silent():
            record = _look(target, whole, options, limits)
    except Exception as error:
        record = ScanRecord(target, error=Failure.of(error))
    return replace(record, seconds=round(time.perf_counter() - started, 3))


def _look(
    target: str, whole: bool, options: Mapping[str, Any] | None, limits: Limits | None
) -> ScanRecord:
    if target.lower().endswith(TORCH_SUFFIXES) and not is_url(target):
        raise UnsupportedModelError(
            "expected an ONNX file, got a PyTorch file",
            None,
            f"convert it first: tieops convert {printable(target)} OUT.onnx",
        )
    # Marked before it is read: what changes meanwhile is seen to have changed.
    first = None if is_url(target) else _mark(target, options)
    storage_options = options if is_url(target) else None
    model = from_onnx(target, storage_options=storage_options, limits=limits)
    remote = _remote_files(model)
    ties = tuple(
        FoundTie(tie.names, tuple(slot.name for slot in tie.slots), tie.saved_bytes)
        for tie in model.ties
    )
    duplicates = tuple(
        FoundDuplicate(
            tuple(each.name for each in found.parameters),
            found.wasted_bytes,
            str(found.evidence),
            found.held_back,
        )
        for found in find_duplicates(model.parameters, whole=whole)
    )
    marks = [FileMark(file.url, file.size, file.stamp) for file in remote]
    return ScanRecord(
        target,
        (*([] if first is None else [first]), *_data_marks(model, target), *marks),
        len(model.parameters),
        model.ledger.stored_bytes,
        ties,
        duplicates,
        whole,
        sum(file.read_bytes for file in remote),
    )


def _mark(target: str, options: Mapping[str, Any] | None) -> FileMark:
    if is_url(target):
        file = open_remote(target, options or {})
        return FileMark(target, file.size, file.stamp)
    try:
        status = os.stat(target)
    except OSError:
        return FileMark(target, 0, "")  # reading it tells why
    return FileMark(target, status.st_size, str(status.st_mtime_ns))


def _still_holds(known: ScanRecord, whole: bool, options: Mapping[str, Any] | None) -> bool:
    """Return whether what is known is all that is asked for, and of files as they are now."""
    if known.error is not None or (whole and known.likely_wasted_bytes):
        return False
    try:
        return all(each.mark and _mark(each.path, options) == each for each in known.files)
    except TieopsError:
        return False


def _data_marks(model: TiedModel, path: str) -> Iterator[FileMark]:
    """Yield a mark of each file beside the model that its tensors lie in."""
    seen = {path}
    for value in stored_values(model.ir):
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor) and tensor.path not in seen:
            seen.add(tensor.path)
            yield _mark(str(Path(tensor.path)), None)


def _remote_files(model: TiedModel) -> list[RemoteFile]:
    """Return what a remote model was read from: its own file first, then those of its tensors."""
    tensors = (value.const_value for value in stored_values(model.ir))
    sources = [each.source for each in tensors if isinstance(each, RangedTensor)]
    files = dict.fromkeys([model.ir.meta.get(SOURCE), *sources])
    return [file for file in files if isinstance(file, RemoteFile)]
