"""Write models and their data file beside the old files, then rename them into place.

The data is written first, under a new name. The rename over the target is the commit: a process
that is killed before it leaves the old model, and one that is killed after it leaves the new one.
"""

from __future__ import annotations

import gc
import os
import unicodedata
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
from google.protobuf.message import EncodeError

from tieops.errors import ExportError, PostconditionError, TieopsError
from tieops.exporters.data_file import write_data
from tieops.exporters.data_file_cleanup import (
    DATA,
    data_of,
    free_data_path,
    is_data_name,
    sweep,
    unread,
)
from tieops.exporters.files import (
    Temporary,
    folder_lock,
    mode_of,
    replace_all,
    temporary,
    without_values,
)
from tieops.exporters.layout import Layout
from tieops.importers.onnx import Message, innermost, read_message
from tieops.ir.notation import brief_bytes, printable
from tieops.ir.storage.byte_ranges import stored_bytes
from tieops.ir.storage.data_files import MAX_PROTO_BYTES, mentions
from tieops.ir.storage.external_tensors import HeldTensor, hold_open
from tieops.ir.walk import nesting_depth, stored_values
from tieops.system.file_names import unfit_for_data
from tieops.system.folders import give_name, ignores_case, remove, sync_folder
from tieops.system.gc_paused import gc_paused
from tieops.system.library_logs import suppress_logging
from tieops.system.write_targets import check_target
from tieops.untrusted.limits import UNLIMITED

__all__ = ["Draft", "check_nesting", "write_models"]

MAX_NESTING = 31
"""Graphs within graphs that protobuf's readers take; its writer takes more."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A model that is about to be written.

    Args:
        graph: What is written.
        path: Where.
    """

    graph: onnx_ir.Model
    path: Path


def write_models(
    drafts: Sequence[Draft], layout: Layout, *, inline: bool
) -> tuple[Path | None, list[int], list[Message]]:
    """Write models of one folder, and their new data file if the layout has one.

    Args:
        drafts: The models. A new data file is named after the first.
        layout: Where their tensors lie.
        inline: Whether all weights go into the models instead.

    Returns:
        The new data file, the bytes of each model's own file, and what was read of it again.

    Raises:
        ExportError: If a model does not fit, cannot be read again, or its data is gone.
        OSError: If the system says no.
    """
    paths = [draft.path for draft in drafts]
    folder = paths[0].parent
    _check_names(paths, with_data=bool(layout.ranges) and not inline)
    for draft in drafts:
        layout.settle(draft.graph, folder, inline=inline)
    sweep(folder)
    with ExitStack() as stack:
        data: Temporary | None = None
        if layout.ranges and not inline:
            data = stack.enter_context(temporary(folder, "data", mode_of(paths[0])))
            write_data(layout, data.descriptor, f"{paths[0].name}.data")
            data.close()
        staged = [stack.enter_context(temporary(folder, "model", mode_of(path))) for path in paths]
        try:
            sizes = _stage(drafts, staged, layout, data)
            read = [
                _check_written(each.path, draft.graph, layout)
                for draft, each in zip(drafts, staged, strict=True)
            ]
            _replace(drafts, staged, layout)
        except BaseException:
            if data is not None:
                _take_back(data, layout, paths)
            raise
    return layout.path, sizes, read


def _check_names(paths: Sequence[Path], *, with_data: bool) -> None:
    """Refuse names that no reader takes, and two that are one file here.

    Raises:
        ExportError: With the name, and why.
    """
    data = f"{paths[0].name}.data"
    why = unfit_for_data(data) if with_data else None
    if why is not None:
        raise ExportError(
            f"a model cannot refer to a data file named {printable(data)}",
            {"why": why},
            "choose a name without colons and backslashes, or external_data=False",
        )
    names = {unicodedata.normalize("NFC", path.name).casefold() for path in paths}
    if len(names) < len(paths):
        with temporary(paths[0].parent, "model") as probe:
            if ignores_case(probe.path):
                raise ExportError(
                    "two models cannot be written to one file",
                    {"paths": ", ".join(printable(path.name) for path in paths)},
                    "give them names that differ in more than their case",
                )


def check_nesting(graph: onnx_ir.Model, path: Path) -> None:
    """Refuse a model that could be written and then be read by nobody.

    Raises:
        ExportError: If graphs are nested deeper than readers take.
    """
    if nesting_depth(graph, MAX_NESTING) > MAX_NESTING:
        raise ExportError(
            f"cannot write {path}: its graphs nest too deeply to be read back",
            {"limit": f"{MAX_NESTING} graphs within each other"},
            "flatten its If, Loop and Scan bodies",
        )


def _stage(
    drafts: Sequence[Draft], staged: Sequence[Temporary], layout: Layout, data: Temporary | None
) -> list[int]:
    """Write the models under their temporary names, and give the data its own.

    The models come first: they say which data is of no use if this is the end.
    """
    while True:
        if data is not None:
            layout.refer_to(free_data_path(drafts[0].path))
        for draft in drafts:
            _mark_data(draft)
        sizes: list[int] = []
        for draft, each in zip(drafts, staged, strict=True):
            written = _serialized(draft)
            each.rewrite(written)
            sizes.append(len(written))
        if data is None or layout.path is None:
            return sizes
        try:
            give_name(data.path, layout.path)
        except FileExistsError:  # taken meanwhile
            continue
        return sizes


def _mark_data(draft: Draft) -> None:
    """Note its data files that are named after another model: they go when nobody reads them."""
    tensors = (value.const_value for value in stored_values(draft.graph))
    files = {str(each.location) for each in tensors if isinstance(each, onnx_ir.ExternalTensor)}
    others = {name for name in files if is_data_name(name, of_other_than=draft.path)}
    draft.graph.metadata_props.pop(DATA, None)
    if others:
        draft.graph.metadata_props[DATA] = "/".join(sorted(others))


def _replace(drafts: Sequence[Draft], staged: Sequence[Temporary], layout: Layout) -> None:
    """Rename the models over their targets, and remove the data that nobody reads any more."""
    folder = drafts[0].path.parent
    with folder_lock(folder):
        _check_kept(layout)
        for draft in drafts:
            check_target(draft.path)  # again: something else may have come there meanwhile
        before = {name for draft in drafts for name in data_of(draft.path)}
        sync_folder(folder)  # the data has its name on the disk before a model refers to it
        kept = replace_all([(each.path, to.path) for each, to in zip(staged, drafts, strict=True)])
        # From here on the new model is the model: whatever fails now must not say that it is not.
        with suppress(Exception):
            stale = unread(folder, before)
            if sum(map(_remove_data, stale)) == len(stale):
                for old in kept:
                    remove(old)
        try:
            sync_folder(folder)
        except OSError as error:
            raise ExportError(
                f"{drafts[0].path} is written, but may not be on the disk yet",
                {"the system says": error.strerror or error},
                "the new file is in place and whole; check the disk",
            ) from error


def _remove_data(stale: Path) -> bool:
    """Remove data that no file and no model in memory refers to; return whether it is gone."""
    try:
        hold_open(stale)
    except OSError:  # rather a file too many than a model without its data
        return False
    if remove(stale):
        return True
    gc.collect()  # Windows removes nothing that is mapped, be it by models that nobody has any more
    return remove(stale)


def _check_kept(layout: Layout) -> None:
    """Refuse to refer to data that is gone, or another file than the model reads."""
    for tensor in layout.staying.values():
        is_held = isinstance(tensor, HeldTensor)
        if not (tensor.data.is_current() if is_held else os.path.isfile(tensor.path)):
            raise ExportError(
                "the data file to reuse is gone or was replaced",
                {"file": tensor.path},
                "another program changed it: import the model again; nothing was written",
            )


def _take_back(data: Temporary, layout: Layout, paths: Sequence[Path]) -> None:
    """Remove the data that has its name already, unless a model that is in place refers to it."""
    with suppress(OSError):
        if layout.path is None or mentions(paths, layout.path.name):
            return
        if os.path.samestat(os.lstat(layout.path), data.status):
            layout.path.unlink()


@gc_paused()
def _serialized(draft: Draft) -> bytes:
    try:
        with suppress_logging("onnx_ir.serde"):
            proto = onnx_ir.to_proto(draft.graph)
        _move_metadata(proto.graph)
        return proto.SerializeToString(deterministic=True)
    except onnx_ir.serde.SerdeError as error:
        raise without_values(draft.path, innermost(error)) from error
    except (EncodeError, ValueError) as error:
        stored = brief_bytes(stored_bytes(draft.graph))
        raise ExportError(
            f"{draft.path.name} does not fit into one protobuf message",
            {"stored": stored, "limit": brief_bytes(MAX_PROTO_BYTES)},
            "write it with external_data=True",
        ) from error


def _move_metadata(graph: onnx.GraphProto) -> None:
    """Put what is known of initializers on them, and leave no value infos of them.

    ``onnx_ir`` writes a value's metadata into its value info. ONNX Runtime's quantizer transposes
    the weight of a Gemm and fails on a value info that still has the old shape.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept: list[onnx.ValueInfoProto] = []
    for info in graph.value_info:
        tensor = stored.get(info.name)
        if tensor is None:
            kept.append(info)
            continue
        del tensor.metadata_props[:]
        tensor.metadata_props.extend(info.metadata_props)
    copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept]
    del graph.value_info[:]
    graph.value_info.extend(copies)


@gc_paused()
def _check_written(written: Path, graph: onnx_ir.Model, layout: Layout) -> Message:
    """Parse what was written, as any reader would, before it replaces anything.

    Limits are for files of strangers: whoever holds this model has let it in.
    """
    try:
        message = read_message(written, limits=UNLIMITED)
        again = message.model()
    except TieopsError as error:
        _check_kept(layout)
        raise PostconditionError(
            "tieops wrote a model that it cannot read", {"reader": error}, "please report this"
        ) from error
    wanted, stored = stored_bytes(graph), stored_bytes(again.ir)
    if stored != wanted:
        raise PostconditionError(
            "the number of bytes written differs from what the model stores",
            {"model": wanted, "file": stored},
            "please report this",
        )
    return message
