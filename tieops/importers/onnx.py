"""From ONNX: files, bytes, protos and graphs; nothing in them is lost in silence."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import onnx
import onnx_ir
from google.protobuf.message import DecodeError

from tieops.errors import PreconditionError, UnsupportedModelError, UntrustedFileError
from tieops.importers.embedded import take_out
from tieops.importers.onnx_checks import check_external, check_graphs, check_model, put_in_order
from tieops.ir.collector import collector_paused
from tieops.ir.scopes import all_graphs, call_paths, is_constant
from tieops.tied_model import TiedModel

__all__ = ["from_onnx"]

MAX_PROTO_BYTES = 2**31 - 1
"""protobuf's own limit for one message."""
MAPPED_FROM = 1 << 20
"""Files from this size on are mapped; their large weights stay in the mapping."""


@collector_paused()
def from_onnx(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | onnx_ir.Model,
    *,
    base_dir: str | os.PathLike[str] | None = None,
) -> TiedModel:
    """Import an ONNX model. External data stays on disk, mapped when it is looked at.

    Args:
        source: A path, the bytes of a model, a ``ModelProto`` or an ``onnx_ir.Model``.
        base_dir: Where external data lies; by default the folder of the path. Needed for bytes and
            protos that have external data.

    Returns:
        The imported model; an ``onnx_ir.Model`` is cloned, so later edits of it do not show here.

    Raises:
        UntrustedFileError: If the file is not a regular file with an ONNX model in it, or its
            external data is missing, too short, or outside of its folder.
        UnsupportedModelError: If the model holds what ``onnx_ir`` would drop or read differently
            than others (sparse initializers, training info, two tensors of one name…), or
            functions that call each other in a circle.
        PreconditionError: If external data is there and nobody said where.

    Example:
        >>> from onnx import parser
        >>> proto = parser.parse_model('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) { y = Relu(x) }''')
        >>> from_onnx(proto)
        <TiedModel: 1 layer, 0 parameters, 0 ties, 0 B read, 0 B stored>
    """
    embedded = None
    if isinstance(source, onnx_ir.Model):
        try:
            model = source.clone()
        except RuntimeError as error:
            raise UnsupportedModelError(
                "the graph cannot be copied: it is not in order, or reads what nothing defines",
                {"onnx_ir says": innermost(error)},
                "sort it first: model.graph.sort()",
            ) from error
        if base_dir is not None:
            _own_tensors(model)
    else:
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            data = _read(path)
            base_dir = path.parent if base_dir is None else base_dir
            embedded = take_out(data) if isinstance(data, mmap.mmap) else None
            proto = _parse(data[:] if embedded is None else embedded.message, path.name)
        elif isinstance(source, bytes):
            proto = _parse(source, "the bytes")
        elif isinstance(source, onnx.ModelProto):  # pyright: ignore[reportUnnecessaryIsInstance]
            proto = source
        else:
            raise UnsupportedModelError(
                f"from_onnx cannot read a {type(source).__name__}",
                {"takes": "a path, bytes, onnx.ModelProto or onnx_ir.Model"},
                "use from_torch for PyTorch",
            )
        check_model(proto)
        try:
            model = onnx_ir.from_proto(proto)
        except (onnx_ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
            raise UnsupportedModelError(
                "the model is not valid ONNX",
                {"onnx_ir says": innermost(error)},
                "run onnx.checker.check_model on it",
            ) from error
        if embedded is not None:
            embedded.put_back(model)
    check_graphs(model)
    put_in_order(model)
    _take_metadata(model)
    _settle_external(model, base_dir, keep=isinstance(source, onnx_ir.Model))
    call_paths(model)
    return TiedModel(model)


def _read(path: Path) -> bytes | mmap.mmap:
    # Opened without blocking and looked at before it is read: a FIFO would never end.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise UntrustedFileError(
            f"cannot open {path}", {"the system says": error.strerror}, "check the path"
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UntrustedFileError(f"{path} is not a regular file", None, "pass an .onnx file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > MAX_PROTO_BYTES:
            raise UntrustedFileError(
                f"{path.name} is larger than one protobuf message can be",
                {"size": status.st_size, "limit": MAX_PROTO_BYTES},
                "save it with external data",
            )
        if status.st_size == 0:
            raise UntrustedFileError(f"{path.name} is empty", None, "write or copy it again")
        if status.st_size >= MAPPED_FROM:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return file.read()


_MAGIC = {
    b"PK\x03\x04": "a zip archive (a PyTorch file?): use from_torch",
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
    b"<!DOCTYPE": "an HTML page: the download went wrong",
    b"<html": "an HTML page: the download went wrong",
}


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise UntrustedFileError(f"no ONNX model in {name}, but {what}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise UntrustedFileError(
            f"no ONNX model in {name}, or a damaged one",
            {"size": len(data), "protobuf says": error},
            "copy or export it again",
        ) from error
    return proto


def innermost(error: BaseException) -> str:
    """Return the first line of what an error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _settle_external(
    model: onnx_ir.Model, base_dir: str | os.PathLike[str] | None, *, keep: bool
) -> None:
    """Point external tensors at their folder and check that what they say is there."""
    checked: dict[str, int] = {}
    for graph in all_graphs(model):
        tensors = [value.const_value for value in graph.initializers.values()]
        for node in graph:
            is_constant(node)  # notes the tensor on the output, for all that come later
            tensors += _attribute_tensors(node)
        for tensor in tensors:
            if not isinstance(tensor, onnx_ir.ExternalTensor):
                continue
            if not keep or base_dir is not None:
                if base_dir is None:
                    raise PreconditionError(
                        f"{tensor.name} is external data, and nobody said in which folder",
                        {"location": tensor.location},
                        "pass base_dir=",
                    )
                tensor.base_dir = os.path.abspath(base_dir)
            check_external(tensor, checked)


def _take_metadata(model: onnx_ir.Model) -> None:
    """Take what ``to_onnx`` left on initializers, in the file, to their values."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                for key, text in value.const_value.metadata_props.items():
                    value.metadata_props.setdefault(key, text)


def _own_tensors(model: onnx_ir.Model) -> None:
    """Give a clone external tensors of its own, so that setting their folder is nobody else's."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, onnx_ir.ExternalTensor):
                value.const_value = onnx_ir.ExternalTensor(
                    tensor.location,
                    tensor.offset,
                    tensor.length,
                    tensor.dtype,
                    shape=onnx_ir.Shape(tensor.shape.numpy()),
                    name=tensor.name or "",
                    base_dir=tensor.base_dir,
                )


def _attribute_tensors(node: onnx_ir.Node) -> list[onnx_ir.TensorProtocol | None]:
    tensors: list[onnx_ir.TensorProtocol | None] = []
    for attr in node.attributes.values():
        if attr.is_ref():
            continue
        if attr.type == onnx_ir.AttributeType.TENSOR:
            tensors.append(attr.as_tensor())
        elif attr.type == onnx_ir.AttributeType.TENSORS:
            tensors.extend(attr.as_tensors())
    return tensors
