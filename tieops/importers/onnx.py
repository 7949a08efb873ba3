"""Import from ONNX: files, bytes, protos and graphs; what cannot be kept is refused."""

from __future__ import annotations

import math
import mmap
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
from google.protobuf.message import DecodeError, EncodeError

from tieops.arguments import described
from tieops.errors import PreconditionError, TieopsError, UnsupportedModelError, UntrustedFileError
from tieops.ir.edit import snapshot
from tieops.ir.functions.calls import call_paths
from tieops.ir.storage.byte_ranges import LISTED_WEIGHTS, OVERRIDABLE_FROM
from tieops.ir.walk import all_graphs, replace_tensors
from tieops.model import TiedModel
from tieops.remote.remote_files import open_remote, read_graph, settle_remote
from tieops.remote.urls import is_url, local_path
from tieops.system.gc_paused import gc_paused
from tieops.system.library_logs import suppress_logging
from tieops.untrusted.embedded import Embedded, take_out
from tieops.untrusted.external_data import DataFolder
from tieops.untrusted.limits import Limits
from tieops.untrusted.onnx_checks import (
    check_branches,
    check_graphs,
    check_model,
    check_stored,
    put_in_order,
)
from tieops.untrusted.onnx_file import (
    MAPPED_FROM,
    ModelFile,
    check_size,
    read_file,
    refuse_other_formats,
)
from tieops.untrusted.onnx_tensors import shown
from tieops.untrusted.onnx_types import settle_declarations
from tieops.untrusted.wire import check_wire, damaged

__all__ = ["Message", "from_onnx", "innermost", "read_message"]

MOST_ELEMENTS = 1 << 24
"""Of a ModelProto in memory that is written out to look at its wire format."""
WHOLE_BYTES = 1 << 20
"""A remote graph up to this size is read in one go."""
FORMAT_BYTES = 512
"""The beginning of a remote file, which tells other formats."""


@gc_paused()
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
    if isinstance(source, onnx_ir.Model):
        with _named_errors(None):
            model = _cloned(source, limits)
            return _settled(model, DataFolder(base_dir, None, limits, keep=True))
    return read_message(source, base_dir=base_dir, limits=limits).model()


@dataclass(eq=False)
class Message:
    """A model that was read, parsed and checked, and what its tensors lie in.

    Whoever needs both the graph and the message (``verify`` opens a session and plans inputs) reads
    this, and hands it on: nothing is parsed or checked twice.

    Args:
        proto: The message. A large tensor inside is external data there, at ``embedded.location``.
        name: What errors call it; None for a proto, which has no name.
        folder: Checks its external data.
        limits: What it may hold.
        data: The file or the bytes that it was parsed from; None for a proto.
        embedded: Its large tensors, if they were left where they are.
    """

    proto: onnx.ModelProto
    name: str | None
    folder: DataFolder
    limits: Limits
    data: bytes | mmap.mmap | None = None
    embedded: Embedded | None = None

    @property
    def inside(self) -> str:
        """The location of large tensors that lie in the model itself; empty if there are none."""
        return self.embedded.location if self.embedded is not None else ""

    def whole(self) -> onnx.ModelProto:
        """Return the message with all its tensors; parsed again if some were left out."""
        if self.embedded is None or not self.embedded.count or self.data is None:
            return self.proto
        return _parse(self.data[:], self.name or "the model")

    @gc_paused()
    def model(self) -> TiedModel:
        """Return the graph, which shares nothing with the message.

        Raises:
            UnsupportedModelError: As `from_onnx`, for what only a graph shows.
        """
        with _named_errors(self.name):
            model = _graph_of(self.proto)
            if self.embedded is not None:
                self.embedded.restore_tensors(model)
            snapshot(model)
            return _settled(model, self.folder)


@gc_paused()
def read_message(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    limits: Limits,
    operators: bool = True,
) -> Message:
    """Read, parse and check a model, each once.

    Args:
        source: A path, the bytes of a model or a ``ModelProto``.
        base_dir: Where external data lies; by default the folder of the path.
        limits: What it may ask for.
        operators: Whether nodes are held to ONNX's schemas. A session leaves them to its runtime.

    Raises:
        UntrustedFileError: As `from_onnx`.
        UnsupportedModelError: As `from_onnx`, but for what only a graph shows.
    """
    file: ModelFile | None = None
    embedded = data = None
    name = None
    if isinstance(source, str | os.PathLike):
        name = shown(Path(source).name)
        base_dir = Path(source).parent if base_dir is None else base_dir
    with _named_errors(name):
        if isinstance(source, str | os.PathLike):
            file = read_file(Path(source), limits)
            data = file.data
        elif isinstance(source, bytes):
            data = source
        elif not isinstance(source, onnx.ModelProto):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnsupportedModelError(
                f"from_onnx cannot read {described(source)}",
                {"takes": "a path, bytes, onnx.ModelProto or onnx_ir.Model"},
                "use from_torch for PyTorch",
            )
        if isinstance(source, onnx.ModelProto):
            proto = source
            _check_in_memory(proto, limits)
        else:
            assert data is not None
            called = name or "the bytes"
            _check_format(data, called, limits)
            embedded = take_out(data, called, limits) if len(data) >= MAPPED_FROM else None
            proto = _parse(data[:] if embedded is None else embedded.message, called)
        check_model(proto, limits, operators=operators)
    folder = DataFolder(base_dir, file, limits)
    return Message(proto, name, folder, limits, data, embedded)


def _from_url(url: str, base_dir: object, options: Mapping[str, Any], limits: Limits) -> TiedModel:
    if base_dir is not None:
        raise PreconditionError(
            "base_dir cannot be combined with a URL, whose data is read from beside it",
            {"base_dir": base_dir},
            "leave base_dir out",
        )
    remote = open_remote(url, options)
    with _named_errors(remote.name):
        check_size(remote.size, remote.name, limits)
        if remote.size <= WHOLE_BYTES:
            (data,) = remote.read([(0, remote.size)])
        else:
            refuse_other_formats(remote.read([(0, FORMAT_BYTES)])[0], remote.name)
            data = read_graph(remote, remote.location, limits)
        _check_format(data, remote.name, limits)
        proto = _parse(data, remote.name)
        check_model(proto, limits)
        model = _graph_of(proto)
        _put_in_form(model)
        settle_remote(model, remote)
        call_paths(model)
    return TiedModel(model)


@contextmanager
def _named_errors(name: str | None) -> Generator[None]:
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


def _check_format(data: bytes | mmap.mmap, name: str, limits: Limits) -> None:
    refuse_other_formats(data, name)
    check_wire(data, name, limits)


def _parse(data: bytes, name: str) -> onnx.ModelProto:
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


def _graph_of(proto: onnx.ModelProto) -> onnx_ir.Model:
    try:
        with warnings.catch_warnings(), suppress_logging("onnx_ir.serde"):
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


def _settled(model: onnx_ir.Model, folder: DataFolder) -> TiedModel:
    _put_in_form(model)
    replace_tensors(model, folder.checked)
    call_paths(model)
    return TiedModel(model)


def _put_in_form(model: onnx_ir.Model) -> None:
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
