"""Export to ONNX: one file, or a file and its data, with one stored copy of every parameter.

The old file stays complete until the new one is: data goes into a new file beside it, and the model
into a temporary file, which is read back and then renamed over the target. Several models are
renamed one after another, once all of them are written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, overload

from tieops._version import __version__
from tieops.arguments import file_path
from tieops.errors import ExportError
from tieops.exporters.files import as_export_error
from tieops.exporters.layout import Layout, lay_out
from tieops.exporters.model_files import Draft, check_nesting, write_models
from tieops.importers.onnx import Message
from tieops.ir.metadata.parsing import number
from tieops.ir.notation import brief_bytes
from tieops.ir.storage.byte_ranges import LISTED_WEIGHTS, OVERRIDABLE_FROM, stored_bytes
from tieops.ir.storage.data_files import data_parts, unread_bytes
from tieops.model import TiedModel, check_model
from tieops.passes.lower import LowerTiedReadsPass
from tieops.system.gc_paused import gc_paused
from tieops.system.write_targets import check_target

__all__ = ["Written", "to_onnx", "write_and_read"]

PathLike = str | os.PathLike[str]
ExternalData: TypeAlias = bool | Literal["reuse"] | None

EXTERNAL_BYTES = 16_000_000
"""From this size on weights go into a data file, which runtimes map instead of copying."""
MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the model: runtimes need them there for shape inference."""


@dataclass(frozen=True)
class Written:
    """What ``to_onnx`` wrote.

    Args:
        path: The model.
        data_paths: The data files that it reads, the new one first.
        stored_bytes: Bytes of all tensors as stored, each once.
        file_bytes: Size of the model and its data files together; a data file that several models
            share counts in each.
        unread_bytes: Bytes of reused data files that this model does not read.
        notes: Tied reads that could not be written as a Gemm, and why: ONNX Runtime may hold them
            twice.
    """

    path: Path
    data_paths: tuple[Path, ...]
    stored_bytes: int
    file_bytes: int
    unread_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def data_path(self) -> Path | None:
        """Its data file, if it has one: the new one, where there are others that it reuses."""
        return self.data_paths[0] if self.data_paths else None

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        beside = "".join(f" + {each.name}" for each in self.data_paths)
        unread = f", {brief_bytes(self.unread_bytes)} unread" if self.unread_bytes else ""
        return f"{self.path}{beside}: {brief_bytes(self.stored_bytes)} stored{unread}"


@overload
def to_onnx(
    model: TiedModel,
    path: PathLike,
    *,
    external_data: ExternalData = None,
    tie_form: str = "gemm",
) -> Written: ...
@overload
def to_onnx(
    model: Sequence[TiedModel],
    path: Sequence[PathLike],
    *,
    external_data: ExternalData = None,
    tie_form: str = "gemm",
) -> tuple[Written, ...]: ...
def to_onnx(
    model: TiedModel | Sequence[TiedModel],
    path: PathLike | Sequence[PathLike],
    *,
    external_data: ExternalData = None,
    tie_form: str = "gemm",
) -> Written | tuple[Written, ...]:
    """Write a model so that every parameter is stored once, and stays so where it runs.

    Several models are written with one data file, in which what they have in common is stored once:
    what is the same bytes, and what is equal in dtype, shape and every bit. Each file is a whole
    model for itself.

    Args:
        model: The model; left alone. Or several.
        path: The file to write. A data file, where there is one, lies beside it and is named after
            it; saving over the model's own source works. Or one for each model, all in one folder;
            the data file is named after the first.
        external_data: Weights in a new data file (``True``), in the model (``False``), or by need:
            from 16 MB on, and where two names share one range of bytes, which a model cannot hold
            once. Several models have a data file. ``"reuse"`` leaves weights in the data files
            where they are, in the folder of ``path``, and writes only the graph; what lies in no
            data file yet goes to a new, additional one.
        tie_form: ``"gemm"`` writes a tied read as a ``Gemm`` that transposes by itself, which
            ONNX Runtime does not fold into a second copy; results may differ in rounding.
            ``"portable"`` keeps ``Transpose`` and ``MatMul`` as they are.

    Returns:
        What was written where; usable as a path. One for each model if there are several.

    Raises:
        ExportError: If the folder cannot be written, the disk is full, or the model does not fit;
            the old file is whole. If the target is neither absent, nor a regular file, nor a link
            to one. If the paths of several models are not one for each, or not in
            one folder. If data to reuse lies outside of the folder, or is the file to write.

    Example:
        >>> import onnx_ir, tempfile
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1,2,3,4}>
        ... { y = MatMul(x, w) }''')
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_onnx(TiedModel(graph), Path(folder, "m.onnx")).stored_bytes
        16
    """
    if tie_form not in ("gemm", "portable"):
        raise ExportError(
            f"unknown tie form {tie_form!r}", {"known": "gemm, portable"}, "use one of them"
        )
    if external_data not in (None, True, False, "reuse"):
        raise ExportError(
            f"unknown external_data mode {external_data!r}",
            {"known": "None, True, False, 'reuse'"},
            "use one of them",
        )
    if isinstance(model, TiedModel) and isinstance(path, (str, os.PathLike)):
        return write_and_read(model, path, external_data, tie_form)[0]
    return _several(model, path, external_data, tie_form)


def write_and_read(
    model: TiedModel, path: PathLike, external_data: ExternalData = None, tie_form: str = "gemm"
) -> tuple[Written, Message]:
    """As `to_onnx` for one model, and return what was read of the file to check it.

    Whoever goes on with the file has no need to read it once more.
    """
    draft, notes = _draft(model, file_path(path), tie_form)
    layout = _laid_out([draft], external_data)
    if external_data is None:
        external_data = stored_bytes(draft.graph) > EXTERNAL_BYTES or layout.shares_ranges
    (written,), (message,) = _write([draft], [notes], layout, inline=not external_data)
    return written, message


def _several(
    model: TiedModel | Sequence[TiedModel],
    path: PathLike | Sequence[PathLike],
    external_data: ExternalData,
    tie_form: str,
) -> tuple[Written, ...]:
    models, paths = _paired(model, path)
    if external_data is False:
        raise ExportError(
            "models written together share one data file",
            None,
            "leave external_data out, or write each model separately",
        )
    drafts, notes = zip(
        *(_draft(each, to, tie_form) for each, to in zip(models, paths, strict=True)), strict=True
    )
    with as_export_error(paths[0]):
        layout = _laid_out(drafts, external_data)
    return _write(drafts, notes, layout, inline=False)[0]


@gc_paused()
def _laid_out(drafts: Sequence[Draft], external_data: ExternalData) -> Layout:
    """Return where the tensors go.

    Raises:
        ExportError: If data to reuse lies outside of the folder, or is the file to write.
    """
    folder = drafts[0].path.parent if external_data == "reuse" else None
    layout = lay_out([draft.graph for draft in drafts], MIN_EXTERNAL_BYTES, folder)
    kept = {os.path.realpath(each) for each in layout.files_kept}
    for draft in drafts:
        if os.path.realpath(draft.path) in kept:
            raise ExportError(
                f"cannot write {draft.path}: the model's weights lie in this file",
                None,
                "choose another path, or leave reuse out",
            )
    return layout


def _write(
    drafts: Sequence[Draft], notes: Sequence[tuple[str, ...]], layout: Layout, *, inline: bool
) -> tuple[tuple[Written, ...], list[Message]]:
    with as_export_error(drafts[0].path):
        sizes = {path: path.stat().st_size for path in layout.files_kept}
        new, own_sizes, read = write_models(drafts, layout, inline=inline)
    found: list[Written] = []
    for draft, own_size, skips in zip(drafts, own_sizes, notes, strict=True):
        parts = {Path(path).resolve(): each for path, each in data_parts(draft.graph).items()}
        kept = {path: parts[path.resolve()] for path in sizes if path.resolve() in parts}
        beside = sum(sizes[path] for path in kept)
        unread = sum(unread_bytes(sizes[path], kept[path]) for path in kept)
        paths = tuple(kept)
        if new is not None and new.resolve() in parts:
            paths, beside = (new, *kept), beside + layout.size
        stored = stored_bytes(draft.graph)
        found.append(Written(draft.path, paths, stored, own_size + beside, unread, skips))
    return tuple(found), read


def _paired(
    model: TiedModel | Sequence[TiedModel], path: PathLike | Sequence[PathLike]
) -> tuple[list[TiedModel], list[Path]]:
    if not isinstance(model, (list, tuple)):
        check_model(model)
    single = isinstance(model, TiedModel), isinstance(path, (str, os.PathLike))
    if not isinstance(path, (list, tuple)):
        file_path(path, "a path to write to, or one for each model")
    models = [model] if isinstance(model, TiedModel) else list(model)
    paths = (
        [Path(path)] if isinstance(path, (str, os.PathLike)) else [file_path(each) for each in path]
    )
    for each in models:
        check_model(each)
    places = [os.path.realpath(each.parent) for each in paths]
    what = ""
    if any(single) or not models or len(models) != len(paths):
        what = "several models need one path each"
    elif len({(place, each.name) for place, each in zip(places, paths, strict=True)}) < len(paths):
        what = "two models cannot be written to one file"
    elif len(set(places)) > 1:
        what = "models that share a data file lie in one folder"
    if what:
        raise ExportError(
            what,
            {"models": len(models), "paths": ", ".join(map(str, paths)) or "none"},
            'write to_onnx([a, b], ["a.onnx", "b.onnx"])',
        )
    return models, paths


@gc_paused()
def _draft(model: TiedModel, path: Path, tie_form: str) -> tuple[Draft, tuple[str, ...]]:
    """Return what to write where, and the tied reads that could not be given their form."""
    check_target(path)
    check_nesting(model.ir, path)
    graph = model.clone()
    # Before IR version 4 every initializer had to be a graph input; ONNX Runtime never minded.
    if not all(value.is_graph_input() for value in graph.graph.initializers.values()):
        graph.ir_version = max(graph.ir_version, OVERRIDABLE_FROM)
    old = number(graph.metadata_props.pop(LISTED_WEIGHTS, None))
    notes: tuple[str, ...] = ()
    if tie_form == "gemm":
        notes = tuple(map(str, LowerTiedReadsPass()(graph).skips))
    if old is not None and graph.ir_version == OVERRIDABLE_FROM:
        listed = set(graph.graph.inputs)
        weights = graph.graph.initializers.values()
        graph.graph.inputs.extend(each for each in weights if each not in listed)
        graph.ir_version = old
    graph.metadata_props["tieops.version"] = __version__
    return Draft(graph, path), notes
