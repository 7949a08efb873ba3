"""To ONNX: one file, or one and its data, with one stored copy of every parameter.

The old file is whole until the new one is: data goes into a new file beside it, the model into a
temporary one that is parsed again and then renamed over the target, in one step. Several models
are renamed one after another, when all of them are written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from tieops._version import __version__
from tieops.errors import ExportError
from tieops.exporters.data_file import lay_out
from tieops.exporters.files import DATA, as_export_error
from tieops.exporters.model_files import Draft, write_inline, write_with_data
from tieops.ir.brief import brief_bytes
from tieops.ir.storage import stored_bytes
from tieops.passes.lower import LowerTiedReadsPass
from tieops.tied_model import TiedModel, check_model

__all__ = ["Written", "to_onnx"]

PathLike = str | os.PathLike[str]

EXTERNAL_BYTES = 16_000_000
"""From this size on weights go into a data file, which runtimes map instead of copying."""
MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the model: runtimes need them there for shape inference."""


@dataclass(frozen=True)
class Written:
    """What ``to_onnx`` wrote.

    Args:
        path: The model.
        data_path: Its data file, if it has one.
        stored_bytes: Bytes of all tensors as stored, each once.
        file_bytes: Size of the model and its data file together; a data file that several models
            share counts in each.
        notes: Tied reads that could not be written as a Gemm, and why: ONNX Runtime may hold them
            twice.
    """

    path: Path
    data_path: Path | None
    stored_bytes: int
    file_bytes: int
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        beside = f" + {self.data_path.name}" if self.data_path else ""
        return f"{self.path}{beside}: {brief_bytes(self.stored_bytes)} stored"


@overload
def to_onnx(
    model: TiedModel,
    path: PathLike,
    *,
    external_data: bool | None = None,
    tie_form: str = "gemm",
) -> Written: ...
@overload
def to_onnx(
    model: Sequence[TiedModel],
    path: Sequence[PathLike],
    *,
    external_data: bool | None = None,
    tie_form: str = "gemm",
) -> tuple[Written, ...]: ...
def to_onnx(
    model: TiedModel | Sequence[TiedModel],
    path: PathLike | Sequence[PathLike],
    *,
    external_data: bool | None = None,
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
        external_data: Weights in a data file (``True``), in the model (``False``), or by need: from
            16 MB on, and where two names share one range of bytes, which a model cannot hold once.
            Several models have a data file.
        tie_form: ``"gemm"`` writes a tied read as a ``Gemm`` that transposes by itself, which
            ONNX Runtime does not fold into a second copy; results may differ in rounding.
            ``"portable"`` keeps ``Transpose`` and ``MatMul`` as they are.

    Returns:
        What was written where; usable as a path. One for each model if there are several.

    Raises:
        ExportError: If the folder cannot be written, the disk is full, or the model does not fit;
            the old file is whole. If the paths of several models are not one for each, or not in
            one folder.

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
            f"no tie form is called {tie_form!r}", {"known": "gemm, portable"}, "use one of them"
        )
    if isinstance(model, TiedModel) and isinstance(path, (str, os.PathLike)):
        return _one(model, Path(path), external_data, tie_form)
    return _several(model, path, external_data, tie_form)


def _one(model: TiedModel, path: Path, external_data: bool | None, tie_form: str) -> Written:
    draft, notes = _draft(model, path, tie_form)
    stored = stored_bytes(draft.graph)
    layout = lay_out([draft.graph], MIN_EXTERNAL_BYTES)
    if external_data is None:
        external_data = stored > EXTERNAL_BYTES or layout.shares_ranges
    with as_export_error(path):
        if external_data and layout.ranges:
            data_path, sizes = write_with_data([draft], layout)
            return Written(path, data_path, stored, sizes[0] + data_path.stat().st_size, notes)
        (size,) = write_inline([draft], layout)
        # Tensors of one range are two within a model.
        return Written(path, None, stored_bytes(draft.graph), size, notes)


def _several(
    model: TiedModel | Sequence[TiedModel],
    path: PathLike | Sequence[PathLike],
    external_data: bool | None,
    tie_form: str,
) -> tuple[Written, ...]:
    models, paths = _paired(model, path)
    if external_data is False:
        raise ExportError(
            "several models share a data file", None, "leave external_data out, or write each apart"
        )
    drafts, notes = zip(
        *(_draft(each, to, tie_form) for each, to in zip(models, paths, strict=True)), strict=True
    )
    stored = [stored_bytes(draft.graph) for draft in drafts]
    data_path, beside = None, 0
    with as_export_error(paths[0]):
        layout = lay_out([draft.graph for draft in drafts], MIN_EXTERNAL_BYTES)
        if layout.ranges:
            data_path, sizes = write_with_data(drafts, layout)
            beside = data_path.stat().st_size
        else:
            sizes = write_inline(drafts, layout)
    found = zip(paths, stored, sizes, notes, strict=True)
    return tuple(Written(to, data_path, n, size + beside, skips) for to, n, size, skips in found)


def _paired(
    model: TiedModel | Sequence[TiedModel], path: PathLike | Sequence[PathLike]
) -> tuple[list[TiedModel], list[Path]]:
    if not isinstance(model, (list, tuple)):
        check_model(model)
    single = isinstance(model, TiedModel), isinstance(path, (str, os.PathLike))
    models = [model] if isinstance(model, TiedModel) else list(model)
    paths = [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(each) for each in path]
    for each in models:
        check_model(each)
    places = [os.path.realpath(each.parent) for each in paths]
    what = ""
    if any(single) or not models or len(models) != len(paths):
        what = "several models need one path each"
    elif len({(place, each.name) for place, each in zip(places, paths, strict=True)}) < len(paths):
        what = "two models cannot be one file"
    elif len(set(places)) > 1:
        what = "models that share a data file lie in one folder"
    if what:
        raise ExportError(
            what,
            {"models": len(models), "paths": ", ".join(map(str, paths)) or "none"},
            'write to_onnx([a, b], ["a.onnx", "b.onnx"])',
        )
    return models, paths


def _draft(model: TiedModel, path: Path, tie_form: str) -> tuple[Draft, tuple[str, ...]]:
    """Return what to write where, and the tied reads that could not be given their form."""
    if not path.name:
        raise ExportError(f"{os.fspath(path)!r} names no file", None, "give a path such as m.onnx")
    graph = model.clone()
    # Before IR version 4 every initializer had to be a graph input; ONNX Runtime never minded.
    if not all(value.is_graph_input() for value in graph.graph.initializers.values()):
        graph.ir_version = max(graph.ir_version, 4)
    notes: tuple[str, ...] = ()
    if tie_form == "gemm":
        notes = tuple(map(str, LowerTiedReadsPass()(graph).skips))
    graph.metadata_props["tieops.version"] = __version__
    graph.metadata_props.pop(DATA, None)  # it tells of the file that the model came from
    return Draft(model, graph, path), notes
