"""Models behind URLs: read ranges of files on any file system that fsspec supports.

Only the graph is read. A large tensor inside becomes external data in the model's own file, so that
one kind of tensor serves both cases.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import onnx_ir

from tieops.errors import (
    MissingDependencyError,
    PreconditionError,
    TieopsError,
    UntrustedFileError,
)
from tieops.ir.notation import printable
from tieops.ir.storage.ranged_tensors import RangedTensor, Ranges, prefetch_operands
from tieops.ir.walk import replace_tensors, stored_values
from tieops.remote.urls import shown
from tieops.system.file_names import leads_out, steps_back
from tieops.untrusted.embedded import Lifted, lift
from tieops.untrusted.external_data import check_range
from tieops.untrusted.limits import Limits

__all__ = ["SOURCE", "RemoteFile", "list_remote", "open_remote", "read_graph", "settle_remote"]

T = TypeVar("T")

SOURCE = "tieops.source"
"""Under this key a graph's ``meta`` has the file that it was read from."""
NEAR_BYTES = 4 << 10
"""Ranges this near are read as one: a page between them takes less time than a request."""
MAX_JOINED_BYTES = 1 << 20
REQUESTS_AT_ONCE = 32


class RemoteFile:
    """A file on any file system of fsspec, read by ranges.

    Args:
        system: fsspec's file system.
        path: The file there.

    Attributes:
        url: Its URL, with all that opens it.
        name: What messages call it.
        size: Bytes.
        stamp: What changes when the file does, as far as its file system tells.
        read_bytes: How much was read so far.
    """

    def __init__(self, system: Any, path: str) -> None:
        self._system = system
        self._path = path
        self.url = str(system.unstrip_protocol(path))
        self.name = shown(self.url)
        info = _asked(self.name, lambda: system.info(path))
        if info.get("type") == "directory":
            raise UntrustedFileError(f"{self.name} is a folder", None, "name an .onnx file in it")
        if not isinstance(info.get("size"), int):
            raise UntrustedFileError(
                f"the size of {self.name} is unknown", None, "download it, and open the file"
            )
        self.size = int(info["size"])
        self._info = info
        self._by_ranges = info.get("partial", True)
        marks = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "md5", "created")
        self.stamp = " ".join(str(info[mark]) for mark in marks if info.get(mark) is not None)
        self.read_bytes = 0

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each range ``(start, stop)``.

        Raises:
            UntrustedFileError: If the server does not give them.
        """
        found: dict[tuple[int, int], bytes] = {}
        joined = _joined(ranges)
        if joined and joined[-1][0] and not self._by_ranges:
            raise UntrustedFileError(
                f"cannot read parts of {self.name}",
                {"its server": "does not support byte ranges"},
                "download it, and open the file",
            )
        for some in (joined[at : at + 1024] for at in range(0, len(joined), 1024)):
            answers = _asked(self.name, lambda some=some: self._fetch(some))
            for (start, stop, inside), data in zip(some, answers, strict=True):
                if isinstance(data, Exception):
                    raise _error_of(self.name, data) from data
                if len(data) != stop - start:
                    raise UntrustedFileError(
                        f"{self.name} is shorter than its server announced",
                        {"size": self.size, f"bytes {start}-{stop - 1}": f"{len(data)} came"},
                        "it changed, or its server is broken: try again",
                    )
                found |= {(a, b): data[a - start : b - start] for a, b in inside}
                self.read_bytes += len(data)
        return [found[each] for each in ranges]

    def _fetch(self, ranges: Sequence[_Joined]) -> list[Any]:
        options: dict[str, Any] = {}
        if self._system.async_impl:
            options["batch_size"] = REQUESTS_AT_ONCE
        if hasattr(self._system, "new_call"):
            options["call"] = self._system.new_call(self.size, self._info)
        starts, stops = [start for start, _, _ in ranges], [stop for _, stop, _ in ranges]
        return self._system.cat_ranges([self._path] * len(ranges), starts, stops, **options)

    @property
    def location(self) -> str:
        """What the file is called in its folder."""
        path = urllib.parse.unquote(_bare(self._path)) if _is_http(self._system) else self._path
        return path.rpartition("/")[2] or "model.onnx"

    def sibling(self, location: str, name: str) -> RemoteFile:
        """Return the file at a location that a model names, in the model's own folder.

        Args:
            location: What the model says.
            name: The tensor that says it.

        Raises:
            UntrustedFileError: If the location leads out of the folder, or nothing is there.
        """
        parts = location.split("/")
        if leads_out(location) or steps_back(location) or "" in parts:
            raise UntrustedFileError(
                f"{printable(name)} lies outside of the model's folder",
                {"location": printable(location), "model": self.name},
                "put the data beside the model",
            )
        location = "/".join(part for part in parts if part != ".")
        if location == self.location:
            return self
        bare, query = self._path, ""
        if _is_http(self._system):
            # The folder is of the path alone, and a name may hold what means something in a URL.
            bare, query = _bare(self._path), self._path.partition("#")[0].partition("?")[2]
            location = urllib.parse.quote(location) + ("?" + query if query else "")
        folder, slash, _ = bare.rpartition("/")
        return RemoteFile(self._system, folder + slash + location)


def _is_http(system: Any) -> bool:
    return "http" in system.protocol


def _bare(url: str) -> str:
    return url.partition("#")[0].partition("?")[0]


_Joined = tuple[int, int, list[tuple[int, int]]]


def _joined(ranges: Sequence[tuple[int, int]]) -> list[_Joined]:
    """Return ranges to read, in file order, each with those of the given ones that lie in it."""
    joined: list[_Joined] = []
    for start, stop in sorted(set(ranges)):
        if joined:
            first, last, inside = joined[-1]
            if start - last <= NEAR_BYTES and stop - first <= MAX_JOINED_BYTES:
                joined[-1] = first, max(last, stop), [*inside, (start, stop)]
                continue
        joined.append((start, stop, [(start, stop)]))
    return joined


def open_remote(url: str, options: Mapping[str, Any]) -> RemoteFile:
    """Open the file behind a URL.

    Args:
        url: The URL; not a ``file://`` one.
        options: What its file system needs, as fsspec's ``storage_options``.

    Raises:
        MissingDependencyError: If fsspec, or what it needs for this kind of URL, is not installed.
        PreconditionError: If there is no such kind of URL.
        UntrustedFileError: If there is no such file, or its server does not answer.
    """
    return RemoteFile(*_system(url, options))


def list_remote(url: str, options: Mapping[str, Any]) -> list[str]:
    """Return the URLs of the .onnx files in a folder and those below, in the order of their names.

    Args:
        url: The folder's URL; of a web server that lists its folders, for http.
        options: What its file system needs, as fsspec's ``storage_options``.

    Raises:
        UntrustedFileError: If the folder is not there, or its server does not list it.
        MissingDependencyError: As ``open_remote``.
        PreconditionError: As ``open_remote``.
    """
    system, path = _system(url, options)
    found = _asked(shown(url), lambda: list(system.find(path)))
    return sorted(system.unstrip_protocol(each) for each in found if each.endswith(".onnx"))


def _system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path there.

    Raises:
        MissingDependencyError: If what this kind of URL needs is not installed.
        PreconditionError: If there is no such kind, or it is a file of this machine.
    """
    try:
        if re.match("https?://", url, re.IGNORECASE) and "::" not in url:
            http = importlib.import_module("tieops.remote.http")
            return http.RangedHTTPFileSystem(**options), url
        core = importlib.import_module("fsspec.core")
        system, path = _asked(shown(url), lambda: core.url_to_fs(url, **options))
    except ImportError as error:
        if isinstance(error, TieopsError):
            raise
        raise MissingDependencyError(
            f"reading {shown(url)} needs a package that is not installed",
            {"Python says": error},
            'pip install "tieops[remote]"; for s3:// add s3fs, for gs:// gcsfs, for abfs:// adlfs',
        ) from error
    if "file" in system.protocol:
        raise PreconditionError(
            f"expected a remote URL, got the local file {shown(url)}", None, "pass its path"
        )
    return system, path


def _asked(name: str, ask: Callable[[], T]) -> T:
    """Return what a file system answers; whatever it raises is one error of tieops."""
    try:
        return ask()
    except (TieopsError, ImportError):
        raise
    except Exception as error:
        raise _error_of(name, error) from error


def _error_of(name: str, error: Exception) -> TieopsError:
    if isinstance(error, ValueError) and "rotocol not known" in str(error):
        known = "http, https, s3, gs, abfs, memory and all others that fsspec has"
        return PreconditionError(f"fsspec does not support the URL {name}", {"known": known})
    status, kind = getattr(error, "status", None), type(error).__name__
    what = "its server says"
    if isinstance(error, FileNotFoundError):
        return UntrustedFileError(f"there is no file {name}", None, "check the URL")
    if isinstance(error, TimeoutError):
        said, fix = "nothing in time", "try again, or pass a longer timeout in storage_options"
    elif isinstance(error, asyncio.IncompleteReadError) or kind == "ClientPayloadError":
        said, fix = "less than it announced", "try again"
    elif isinstance(status, int) and status:
        passes = status == 429 or status >= 500
        fix = "try again later" if passes else "check the URL and who may read it"
        said = f"HTTP status {status}"
    else:
        # The text may hold the whole URL.
        text = re.sub(r"//[^/@\s]*@", "//", re.sub(r"\?[^\s'\"]*", "", str(error)))
        text = text if kind == "RangeError" else f"{kind}: {text}"
        said = printable(text.split("\n")[0])[:200]
        fix = "download it, and open the file"
        if isinstance(error, OSError):  # nobody answered
            what, fix = "the connection failed", "check the URL and the network"
    return UntrustedFileError(f"cannot read {name}", {what: said}, fix)


def settle_remote(model: onnx_ir.Model, file: RemoteFile) -> None:
    """Make external tensors of a model ranges of the files beside it, and check that they fit.

    Args:
        model: The model; changed in place.
        file: Where it was read from.

    Raises:
        UntrustedFileError: If data is missing, too short, or outside of the model's folder.
    """
    replace_tensors(model, _Settling(file).ranged)
    prefetch_operands(filter(None, (value.const_value for value in stored_values(model))))
    model.meta[SOURCE] = file


class _Settling:
    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._files: dict[str, RemoteFile] = {}

    def ranged(self, tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            return tensor
        location = str(tensor.location)
        if location not in self._files:
            found = self._file.sibling(location, tensor.name or "a tensor")
            # Two ways to write one place are one file, and tensors of one range one tensor.
            same = (each for each in self._files.values() if each.name == found.name)
            self._files[location] = next(same, found)
        file = self._files[location]
        tensor.base_dir = file.name.rpartition("/")[0]
        check_range(tensor, printable(tensor.name or "a tensor"), file.name, file.size)
        return RangedTensor(
            file,
            tensor.offset or 0,
            tensor.dtype,
            [int(size) for size in tensor.shape.numpy()],
            name=tensor.name,
            metadata_props=dict(tensor.metadata_props),
        )


MIN_SKIPPED_BYTES = 16 << 10
"""Smaller data is read along: a request of its own would cost as much."""
FIRST_READ_BYTES = 4 << 10
MAX_READ_BYTES = 1 << 20


def read_graph(source: Ranges, location: str, limits: Limits) -> bytes:
    """Return a model in which large tensors are external data that lies in the model's own file.

    Args:
        source: The .onnx file.
        location: What those tensors say their file is called.
        limits: What the file may hold.

    Raises:
        UntrustedFileError: If it is damaged, or a tensor has its values in two places.
        UnsupportedModelError: If it has more fields than the limit.
    """

    def refer(lifted: Lifted) -> bytes:
        if lifted.is_ambiguous:
            raise UntrustedFileError(
                f"{printable(lifted.tensor.name) or 'a tensor'} has its values in two places, "
                "which may differ",
                {"file": source.name},
            )
        return lifted.referring(location)

    return lift(_Steps(source), MIN_SKIPPED_BYTES, refer, limits)


class _Steps:
    """Windows that grow while a walk goes on, and begin small again behind what it stepped over."""

    def __init__(self, source: Ranges) -> None:
        self.name = source.name
        self.size = source.size
        self._source = source
        self._end = 0
        self._step = FIRST_READ_BYTES

    def window(self, start: int, stop: int) -> bytes:
        near = start == self._end
        self._step = min(self._step * 2, MAX_READ_BYTES) if near else FIRST_READ_BYTES
        self._end = min(max(stop, start + self._step), self.size)
        (data,) = self._source.read([(start, self._end)])
        return data
