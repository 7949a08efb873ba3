"""Import from ONNX: files, bytes, protos and graphs; what cannot be kept is refused."""

from __future__ import annotations

import math
import mmap
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
from google.protobuf.message import DecodeError, EncodeError

from tieops.arguments import described
from tieops.errors import PreconditionError, TieopsError, UnsupportedModelError, UntrustedFileError
from tieops.importers.embedded_mapped import Embedded, take_out
from tieops.ir.edit import snapshot
from tieops.ir.functions.calls import call_paths
from tieops.ir.storage.byte_ranges import LISTED_WEIGHTS, OVERRIDABLE_FROM
from tieops.ir.walk import all_graphs
from tieops.model import TiedModel
from tieops.remote.embedded_remote import read_graph
from tieops.remote.remote_files import open_remote, settle_remote
from tieops.remote.urls import is_url, local_path
from tieops.system.gc_paused import collector_paused
from tieops.system.library_logs import silenced
from tieops.untrusted.external_data import DataFolder, settle_external
from tieops.untrusted.limits import Limits
from tieops.untrusted.onnx_checks import (
    check_branches,
    check_graphs,
    check_model,
    check_stored,
    put_in_order,
)
from tieops.untrusted.onnx_file import MAPPED_FROM, check_size, read_file, refuse_other_formats
from tieops.untrusted.onnx_tensors import shown
from tieops.untrusted.onnx_types import settle_declarations
from tieops.untrusted.onnx_wire import check_wire, damaged

__all__ = ["from_onnx", "innermost", "read_proto", "read_structure"]

MOST_ELEMENTS = 1 << 24
"""Of a ModelProto in memory that is written out to look at its wire format."""
WHOLE_BYTES = 1 << 20
"""A remote graph up to this size is read in one go."""
FORMAT_BYTES = 512
"""The beginning of a remote file, which tells other formats."""


@collector_paused()
def from_onnx(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | onnx_ir.Model,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> TiedModel:
    """Import an ONNX model. External data stays on disk, mapped when it is looked at.

    Of a model behind a URL (https, s3, any that fsspec knows) the graph is read, by ranges, and of
    the weights what is looked at.

    Args:
        source: A path, a URL, the bytes of a model, a ``ModelProto`` or an ``onnx_ir.Model``.
        base_dir: Where external data lies; by default the folder of the path. Needed for bytes and
            protos that have external data.
        limits: What a file may ask for: sizes, counts, nesting, hard links.
        storage_options: What the URL's file system needs (keys, timeouts), for fsspec.

    Returns:
        The imported model. Later edits of a proto or of an ``onnx_ir.Model`` do not show in it; of
        their weights it shares what nobody can write to (read-only arrays, bytes, data files).

    Raises:
        UntrustedFileError: If the file is not a regular file with an ONNX model in it, or its
            external data is missing, too short, or outside of its folder.
        UnsupportedModelError: If the model holds what ``onnx_ir`` would drop or read differently
            than others (sparse initializers, training info, two tensors of one name…), functions
            that call each other in a circle, or more of anything than a limit.
        PreconditionError: If external data is there and nobody said where; if an option is given
            that this source has no use for.
        MissingDependencyError: If reading the URL needs a package that is not installed.

    Example:
        >>> from onnx import parser
        >>> proto = parser.parse_model('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) { y = Relu(x) }''')
        >>> from_onnx(proto)
        <TiedModel: 1 layer, 0 parameters, 0 ties, 0 B read, 0 B stored>
    """
    limits = Limits() if limits is None else limits
    if isinstance(source, str) and is_url(source):
        local = local_path(source)
        if local is None:
            return _from_url(source, base_dir, storage_options or {}, limits)
        source = local
    elif storage_options is not None:
        raise PreconditionError("storage_options apply only to URLs", None, "leave them out")
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    with _told_by_name(None if path is None else shown(path.name)):
        file = None if path is None else read_file(path, limits)
        if path is not None and base_dir is None:
            base_dir = path.parent
        if isinstance(source, onnx_ir.Model):
            model = _cloned(source, limits)
        else:
            embedded = None
            if file is not None and path is not None:
                proto, embedded = _parse_file(file.data, shown(path.name), limits)
            elif isinstance(source, bytes):
                proto, embedded = _parse_file(source, "the bytes", limits)
            elif isinstance(source, onnx.ModelProto):
                proto = source
                _check_in_memory(proto, limits)
            else:
                raise UnsupportedModelError(
                    f"from_onnx cannot read {described(source)}",
                    {"takes": "a path, bytes, onnx.ModelProto or onnx_ir.Model"},
                    "use from_torch for PyTorch",
                )
            model = _converted(proto, limits)
            if embedded is not None:
                embedded.put_back(model)
            snapshot(model)
        _settle(model)
        keep = isinstance(source, onnx_ir.Model)
        settle_external(model, base_dir, file, limits, keep=keep)
        call_paths(model)
    return TiedModel(model)


def _from_url(url: str, base_dir: object, options: Mapping[str, Any], limits: Limits) -> TiedModel:
    if base_dir is not None:
        raise PreconditionError(
            "base_dir cannot be combined with a URL, whose data is read from beside it",
            {"base_dir": base_dir},
            "leave base_dir out",
        )
    remote = open_remote(url, options)
    with _told_by_name(remote.name):
        check_size(remote.size, remote.name, limits)
        if remote.size <= WHOLE_BYTES:
            (data,) = remote.read([(0, remote.size)])
        else:
            refuse_other_formats(remote.read([(0, FORMAT_BYTES)])[0], remote.name)
            data = read_graph(remote, remote.location, limits)
        model = _converted(_parse(data, remote.name, limits), limits)
        _settle(model)
        settle_remote(model, remote)
        call_paths(model)
    return TiedModel(model)


def read_proto(path: Path, limits: Limits) -> tuple[onnx.ModelProto, DataFolder]:
    """Read and check a file's message alone, for a session: operators are left to its runtime.

    Args:
        path: The file.
        limits: What it may ask for.

    Returns:
        The message, and the folder that checks its external data.

    Raises:
        UntrustedFileError: As `from_onnx`.
        UnsupportedModelError: As `from_onnx`, but for what only a graph shows.
    """
    with _told_by_name(shown(path.name)):
        file = read_file(path, limits)
        proto = _parse(file.data, shown(path.name), limits)
        check_model(proto, limits, operators=False)
    return proto, DataFolder(path.parent, file, limits)


def read_structure(source: Path | bytes, limits: Limits) -> onnx.ModelProto:
    """Read and check a message without its large tensors, which are neither read nor copied.

    Args:
        source: A file, or the bytes of a model.
        limits: What it may ask for.

    Returns:
        The message; each large tensor that is inside says that it lies in a file that is not there.

    Raises:
        UntrustedFileError: As `from_onnx`.
        UnsupportedModelError: As `from_onnx`, but for what only a graph shows.
    """
    name = "the bytes" if isinstance(source, bytes) else shown(source.name)
    with _told_by_name(name):
        data = source if isinstance(source, bytes) else read_file(source, limits).data
        proto, _ = _parse_file(data, name, limits)
        check_model(proto, limits, operators=False)
    return proto


@contextmanager
def _told_by_name(name: str | None) -> Generator[None]:
    """Name the file in errors about what is in it, and turn what a file can cause into an error."""
    try:
        yield
    except TieopsError as error:
        if name is not None and name not in str(error):
            error.facts["in"] = name
        raise
    except MemoryError as error:
        raise UnsupportedModelError(
            f"there is not enough memory to read {name or 'the model'}",
            None,
            "store large tensors as external data, or use a larger machine",
        ) from error
    except RecursionError as error:
        raise UnsupportedModelError(
            f"{name or 'the model'} nests too deeply for the recursion depth left here",
            None,
            "call from_onnx from fewer nested calls, or simplify the model",
        ) from error
    except UnicodeDecodeError as error:
        raise UntrustedFileError(
            f"{name or 'the model'} holds a string that is not valid UTF-8",
            {"byte": error.start},
            "copy or export it again",
        ) from error


def _cloned(source: onnx_ir.Model, limits: Limits) -> onnx_ir.Model:
    try:
        model = source.clone()
    except RuntimeError as error:
        raise UnsupportedModelError(
            "the graph cannot be copied: its nodes are not sorted, or one reads an undefined value",
            {"onnx_ir says": innermost(error)},
            "sort it first: model.graph.sort()",
        ) from error
    check_graphs(model)
    check_stored(model, limits)
    try:
        snapshot(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            "the graph holds a tensor whose values cannot be read",
            {"it says": innermost(error)},
            "load its weights first",
        ) from error
    return model


def _parse(data: bytes | mmap.mmap, name: str, limits: Limits) -> onnx.ModelProto:
    refuse_other_formats(data, name)
    check_wire(data, name, limits)
    return _message(data[:], name)


def _parse_file(
    data: bytes | mmap.mmap, name: str, limits: Limits
) -> tuple[onnx.ModelProto, Embedded | None]:
    """Return a message, and its large weights apart where they can be left where they are."""
    refuse_other_formats(data, name)
    check_wire(data, name, limits)
    embedded = take_out(data, name, limits) if len(data) >= MAPPED_FROM else None
    return _message(data[:] if embedded is None else embedded.message, name), embedded


def _message(data: bytes, name: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise damaged(data, name, error) from error
    return proto


def _check_in_memory(proto: onnx.ModelProto, limits: Limits) -> None:
    """Look at the wire format of a model that somebody else has parsed, but for a large one."""
    stored = sum(math.prod(each.dims) for each in proto.graph.initializer)
    if stored <= MOST_ELEMENTS:
        with suppress(EncodeError):  # nested too deep for a file: the other checks tell
            check_wire(proto.SerializeToString(), "the model", limits)


def _converted(proto: onnx.ModelProto, limits: Limits) -> onnx_ir.Model:
    check_model(proto, limits)
    try:
        with warnings.catch_warnings(), silenced("onnx_ir.serde"):
            # The packed copies that ONNX Runtime keeps beside a weight are not needed.
            warnings.filterwarnings("ignore", "Ignoring unknown external data key")
            return onnx_ir.from_proto(proto)
    except (onnx_ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise UnsupportedModelError(
            "the model is not valid ONNX",
            {"onnx_ir says": innermost(error)},
            "run onnx.checker.check_model on it",
        ) from error


def innermost(error: BaseException) -> str:
    """Return the first line of what an error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _settle(model: onnx_ir.Model) -> None:
    """Put nodes in order, and take to values what stored tensors say about themselves."""
    put_in_order(model)
    check_branches(model)
    model.metadata_props.pop(LISTED_WEIGHTS, None)
    if model.ir_version < OVERRIDABLE_FROM:
        # Weights had to be listed as inputs then; ONNX Runtime takes them for constants.
        weights = set(model.graph.initializers.values())
        inputs = [each for each in model.graph.inputs if each not in weights]
        if len(inputs) + len(weights) == len(model.graph.inputs):
            model.metadata_props[LISTED_WEIGHTS] = str(model.ir_version)
        model.graph.inputs[:] = inputs
        model.ir_version = OVERRIDABLE_FROM
    for graph in all_graphs(model):
        settle_declarations(graph)
        for value in graph.initializers.values():
            if value.const_value is not None:
                for key, text in value.const_value.metadata_props.items():
                    value.metadata_props.setdefault(key, text)
