"""To ONNX: one file, or one and its data, with one stored copy of every parameter.

The old file is whole until the new one is: data goes into a new file beside it, the model into a
temporary one that is parsed again and then renamed over the target, in one step.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir
from google.protobuf.message import DecodeError, EncodeError

from tieops._version import __version__
from tieops.errors import ExportError, PostconditionError, TieopsError
from tieops.exporters.data_file import Layout, lay_out, write_data
from tieops.importers.onnx import MAX_PROTO_BYTES, from_onnx, innermost
from tieops.ir.brief import brief_bytes
from tieops.ir.scopes import all_graphs
from tieops.ir.storage import stored_bytes
from tieops.passes.lower import LowerTiedReadsPass
from tieops.tied_model import TiedModel, check_model

__all__ = ["Written", "to_onnx"]

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
        file_bytes: Size of all files together.
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


def to_onnx(
    model: TiedModel,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    tie_form: str = "gemm",
) -> Written:
    """Write a model so that every parameter is stored once, and stays so where it runs.

    Args:
        model: The model; left alone.
        path: The file to write. A data file, where there is one, lies beside it and is named after
            it; saving over the model's own source works.
        external_data: Weights in a data file (``True``), in the model (``False``), or by need: from
            16 MB on, and where two names share one range of bytes, which a model cannot hold once.
        tie_form: ``"gemm"`` writes a tied read as a ``Gemm`` that transposes by itself, which
            ONNX Runtime does not fold into a second copy; results may differ in rounding.
            ``"portable"`` keeps ``Transpose`` and ``MatMul`` as they are.

    Returns:
        What was written where; usable as a path.

    Raises:
        ExportError: If the folder cannot be written, the disk is full, or the model does not fit;
            the old file is whole.

    Example:
        >>> import tempfile
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1,2,3,4}>
        ... { y = MatMul(x, w) }''')
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_onnx(TiedModel(graph), Path(folder, "m.onnx")).stored_bytes
        16
    """
    path = Path(path)
    check_model(model)
    if not path.name:
        raise ExportError(f"{os.fspath(path)!r} names no file", None, "give a path such as m.onnx")
    if tie_form not in ("gemm", "portable"):
        raise ExportError(
            f"no tie form is called {tie_form!r}", {"known": "gemm, portable"}, "use one of them"
        )
    graph = model.clone()
    notes: tuple[str, ...] = ()
    if tie_form == "gemm":
        notes = tuple(map(str, LowerTiedReadsPass()(graph).skips))
    graph.metadata_props["tieops.version"] = __version__
    layout = lay_out(graph, MIN_EXTERNAL_BYTES)
    if external_data is None:
        external_data = layout.stored_bytes > EXTERNAL_BYTES or layout.shares_ranges
    with _as_export_error(path):
        if external_data and layout.ranges:
            layout.bring_inline(graph, all_tensors=False)
            return replace(_write_with_data(model, graph, layout, path), notes=notes)
        layout.bring_inline(graph, all_tensors=True)
        layout.stored_bytes = stored_bytes(graph)  # tensors of one range are two within a model
        return replace(_write(graph, layout, path, None), notes=notes)


@contextmanager
def _as_export_error(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        facts: dict[str, object] = {"the system says": error.strerror or error}
        if error.filename is not None and not str(error.filename).endswith(".tmp"):
            facts["about"] = error.filename  # not what is written, but what is read for it
        raise ExportError(
            f"cannot write {path}",
            facts,
            "make room or choose another folder; what was there is unchanged",
        ) from error


def _write_with_data(
    source: TiedModel, graph: onnx_ir.Model, layout: Layout, path: Path
) -> Written:
    data_path = _free_data_path(path)
    temporary = _fresh(path.with_name(f".{data_path.name}.tmp"))
    old = _old_data(path)
    placed = False
    try:
        write_data(layout, temporary)
        _place(temporary, data_path)
        placed = True
        layout.refer_to(data_path)
        written = _write(graph, layout, path, data_path)
    except BaseException:
        if placed:
            data_path.unlink(missing_ok=True)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    for stale in old:
        _keep_mapped(source, stale)
        with suppress(OSError):
            stale.unlink()
    return written


def _place(temporary: Path, data_path: Path) -> None:
    """Give the data its name before any model refers to it, and none that was taken meanwhile."""
    try:
        os.link(temporary, data_path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        temporary.rename(data_path)
    else:
        # Readers refuse data with two hard links: one name must be left when the model appears.
        temporary.unlink()


def _write(graph: onnx_ir.Model, layout: Layout, path: Path, data_path: Path | None) -> Written:
    try:
        proto = onnx_ir.to_proto(graph)
        _move_metadata(proto.graph)
        data = proto.SerializeToString(deterministic=True)
    except onnx_ir.serde.SerdeError as error:
        raise ExportError(
            f"cannot write {path}: a tensor has no values that can be stored",
            {"onnx_ir says": innermost(error)},
            "materialise the model's parameters first (no meta tensors)",
        ) from error
    except (EncodeError, ValueError) as error:
        raise ExportError(
            f"{path.name} does not fit into one protobuf message",
            {"stored": brief_bytes(layout.stored_bytes), "limit": brief_bytes(MAX_PROTO_BYTES)},
            "write it with external_data=True",
        ) from error
    temporary = _fresh(path.with_name(f".{path.name}.tmp"))
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _check_written(temporary, layout)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    size = len(data) + (data_path.stat().st_size if data_path else 0)
    return Written(path, data_path, layout.stored_bytes, size)


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


def _check_written(temporary: Path, layout: Layout) -> None:
    """Parse what was written, as any reader would, before it replaces anything."""
    try:
        again = from_onnx(temporary)
    except TieopsError as error:
        raise PostconditionError(
            "tieops wrote a model that it cannot read", {"reader": error}, "please report this"
        ) from error
    stored = stored_bytes(again.ir)
    if stored != layout.stored_bytes:
        raise PostconditionError(
            "tieops wrote another number of bytes than the model stores",
            {"model": layout.stored_bytes, "file": stored},
            "please report this",
        )


def _fresh(path: Path) -> Path:
    """Create a file that was not there, and no link to one that was."""
    for attempt in range(1000):
        candidate = path.with_name(f"{path.name}{attempt or ''}")
        try:
            os.close(os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            continue
        return candidate
    raise ExportError(f"cannot find a free name beside {path}", None, "clean the folder up")


def _free_data_path(path: Path) -> Path:
    names = (f"{path.name}.data", *(f"{path.name}.{i}.data" for i in range(1, 1000)))
    for name in names:
        candidate = path.with_name(name)
        if not os.path.lexists(candidate):
            return candidate
    raise ExportError(f"cannot find a free data name beside {path}", None, "clean the folder up")


def _old_data(path: Path) -> list[Path]:
    """Return the data files of ours that the model now at ``path`` refers to, and only those."""
    if not path.is_file() or path.stat().st_size > MAX_PROTO_BYTES:
        return []
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        return []
    ours = re.compile(re.escape(path.name) + r"(\.\d+)?\.data")
    locations = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and ours.fullmatch(entry.value)
    }
    return [path.with_name(each) for each in sorted(locations) if not _is_shared(path, each)]


def _is_shared(path: Path, location: str) -> bool:
    """Tell whether another model of the folder refers to a data file, as far as its bytes say."""
    for other in path.parent.glob("*.onnx"):
        if other.name == path.name or not other.is_file():
            continue
        with other.open("rb") as file, suppress(ValueError, OSError):
            if mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(location.encode()) >= 0:
                return True
    return False


def _keep_mapped(model: TiedModel, stale: Path) -> None:
    """Map what the model still has in a file that goes away; the bytes stay readable."""
    for graph in all_graphs(model.ir):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, onnx_ir.ExternalTensor) and Path(tensor.path) == stale:
                value.const_value = onnx_ir.Tensor(
                    tensor.numpy(), dtype=tensor.dtype, name=tensor.name
                )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
