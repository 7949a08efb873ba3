"""Tell URLs from paths without loading fsspec."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from tieops.errors import UntrustedFileError, printable

__all__ = ["is_url", "local_path", "shown"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(://|::)")


def is_url(source: object) -> bool:
    """Tell a URL from a path.

    Example:
        >>> is_url("s3://models/bert.onnx"), is_url("models/bert.onnx"), is_url("C:/bert.onnx")
        (True, False, False)
    """
    return isinstance(source, str) and _URL.match(source) is not None


def shown(url: str) -> str:
    """Return a URL for messages: without passwords and signatures, safe for a terminal.

    Example:
        >>> shown("https://me:secret@host/m.onnx?signature=abc")
        'https://host/m.onnx'
    """
    bare = url if "::" in url else url.partition("?")[0].partition("#")[0]
    return printable(re.sub(r"//[^/@]*@", "//", bare))


def local_path(url: str) -> Path | None:
    """Return the path that a ``file://`` URL stands for, or None for any other.

    Raises:
        UntrustedFileError: If it names another machine.

    Example:
        >>> local_path("file:///data/a%20b.onnx").as_posix(), local_path("s3://models/b.onnx")
        ('/data/a b.onnx', None)
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() not in ("file", "local") or "::" in url:
        return None
    if parts.netloc not in ("", "localhost"):
        raise UntrustedFileError(
            f"{shown(url)} lies on another machine",
            {"machine": printable(parts.netloc)},
            "write file:/// and the path, or mount its folder",
        )
    from urllib.request import url2pathname  # late: it loads what talks HTTP

    return Path(url2pathname(parts.path))
