"""Writing models and their one data file: the data first, the models when all of them are whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
from google.protobuf.message import EncodeError

from tieops.errors import ExportError, PostconditionError, TieopsError
from tieops.exporters.data_file import Layout, write_data
from tieops.exporters.files import (
    DATA,
    free_data_path,
    fresh,
    mentions,
    old_data,
    place,
    replace_all,
    sync_folder,
    without_values,
)
from tieops.importers.onnx import MAX_PROTO_BYTES, from_onnx, innermost
from tieops.ir.brief import brief_bytes
from tieops.ir.logs import silenced
from tieops.ir.scopes import all_graphs
from tieops.ir.storage import stored_bytes
from tieops.tied_model import TiedModel

__all__ = ["Draft", "write_inline", "write_with_data"]


@dataclass(frozen=True, eq=False)
class Draft:
    """A model that is about to be written.

    Args:
        source: Where it comes from; what it still needs of files that go away is mapped.
        graph: What is written.
        path: Where.
    """

    source: TiedModel
    graph: onnx_ir.Model
    path: Path


def write_inline(drafts: Sequence[Draft], layout: Layout) -> list[int]:
    """Write models with their weights inside; return the bytes of each file."""
    for draft in drafts:
        layout.bring_inline(draft.graph, all_tensors=True)
    return _write(drafts)


def write_with_data(drafts: Sequence[Draft], layout: Layout) -> tuple[Path, list[int]]:
    """Write models of one folder and their one data file, named after the first.

    Args:
        drafts: The models.
        layout: Where their tensors lie in the data file.

    Returns:
        The data file, and the bytes of each model's own file.
    """
    for draft in drafts:
        layout.bring_inline(draft.graph, all_tensors=False)
    paths = [draft.path for draft in drafts]
    data_path = free_data_path(paths[0])
    temporary = fresh(data_path.with_name(f".{data_path.name}.tmp"))
    old = old_data(paths)
    placed = False
    try:
        write_data(layout, temporary)
        place(temporary, data_path)
        placed = True
        layout.refer_to(data_path)
        for draft in drafts[1:]:
            draft.graph.metadata_props[DATA] = data_path.name
        sizes = _write(drafts)
    except BaseException:
        if placed and not mentions(paths, data_path.name):
            data_path.unlink(missing_ok=True)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    for stale in old:
        for draft in drafts:
            _keep_mapped(draft.source, stale)
        with suppress(OSError):
            stale.unlink()
    return data_path, sizes


def _write(drafts: Sequence[Draft]) -> list[int]:
    staged: list[tuple[Path, Path]] = []
    try:
        sizes: list[int] = []
        for draft in drafts:
            data = _serialized(draft)
            temporary = fresh(draft.path.with_name(f".{draft.path.name}.tmp"))
            staged.append((temporary, draft.path))
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _check_written(temporary, draft.graph)
            sizes.append(len(data))
        replace_all(staged)
        sync_folder(drafts[0].path.parent)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
    return sizes


def _serialized(draft: Draft) -> bytes:
    try:
        with silenced("onnx_ir.serde"):
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


def _check_written(temporary: Path, graph: onnx_ir.Model) -> None:
    """Parse what was written, as any reader would, before it replaces anything."""
    try:
        again = from_onnx(temporary)
    except TieopsError as error:
        raise PostconditionError(
            "tieops wrote a model that it cannot read", {"reader": error}, "please report this"
        ) from error
    wanted, stored = stored_bytes(graph), stored_bytes(again.ir)
    if stored != wanted:
        raise PostconditionError(
            "tieops wrote another number of bytes than the model stores",
            {"model": wanted, "file": stored},
            "please report this",
        )


def _keep_mapped(model: TiedModel, stale: Path) -> None:
    """Map what the model still has in a file that goes away; the bytes stay readable."""
    for graph in all_graphs(model.ir):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, onnx_ir.ExternalTensor) and Path(tensor.path) == stale:
                value.const_value = onnx_ir.Tensor(
                    tensor.numpy(), dtype=tensor.dtype, name=tensor.name
                )
