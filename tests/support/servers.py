"""A web server for tests: it serves ranges of a folder's files, counts bytes, and misbehaves."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

__all__ = ["Server", "serving"]


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    served: Server
    request_queue_size = 128  # many ask at once; who is turned away tries again a second later

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up: that is what they do to a server that misbehaves."""


class Server:
    """What is served, how, and what was asked for.

    Attributes:
        url: The folder's URL, with a slash at its end.
        sent: Bytes of all bodies.
        asked: The path of every request, with its query.
        fault: How it misbehaves: "no ranges", "long" (says that files are 1000 bytes longer),
            "truncates", "redirects", "slow", "forbids", "other range", "endless", "resets" (the
            connection), or a status such as "503".
        passing: Whether the fault meets each request only when it is made for the first time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent = 0
        self.asked: list[str] = []
        self.fault = ""
        self.passing = False
        self._met: set[tuple[str, str]] = set()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self.http = _Http(("127.0.0.1", 0), _Handler)
        self.http.served = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"

    def count(self, nbytes: int) -> None:
        with self._lock:
            self.sent += nbytes

    def fault_of(self, request: tuple[str, str]) -> str:
        """Return the fault that a request, told by its path and range, meets."""
        with self._lock:
            met = request in self._met
            self._met.add(request)
        return "" if self.passing and met else self.fault


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client; what it misbehaves in is asked of the server, anew each time."""

    protocol_version = "HTTP/1.1"
    server: _Http

    @property
    def served(self) -> Server:
        return self.server.served

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.served.asked.append(self.path)
        self.fault = self.served.fault_of((self.path, self.headers.get("Range", "")))
        if self.fault.isdigit():
            self.send_error(int(self.fault))
        elif self.fault == "redirects" and not self.path.startswith("/moved/"):
            self._redirect()
        elif refuse := self._REFUSALS.get(self.fault):
            refuse(self)
        else:
            self._serve(self.served.folder / unquote(urlsplit(self.path).path).lstrip("/"))

    # -- faults in place of an answer --

    def _forbid(self) -> None:
        self.send_error(403)

    def _reset(self) -> None:
        # Closed without waiting for what was not sent: the other side is told so.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def _wait(self) -> None:
        self.served.stopped.wait(20)
        self.close_connection = True

    def _redirect(self) -> None:
        self._head(302, {"Location": "/moved" + self.path, "Content-Length": "0"})

    _REFUSALS: ClassVar[dict[str, Callable[[_Handler], None]]] = {
        "forbids": _forbid,
        "resets": _reset,
        "slow": _wait,
    }

    # -- answers --

    def _serve(self, path: Path) -> None:
        if self.fault == "redirects":
            path = self.served.folder / path.relative_to(self.served.folder / "moved")
        if path.is_dir():
            self._send(200, self._listing(path), {"Content-Type": "text/html"})
        elif path.is_file():
            self._send_file(path)
        else:
            self.send_error(404)

    def _send_file(self, path: Path) -> None:
        size = path.stat().st_size + 1000 * (self.fault == "long")
        tag = {"ETag": f'"{path.stat().st_mtime_ns}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or self.fault == "no ranges":
            self._stream(path, size, tag)
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
        if start >= size:
            self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        at = start + (self.fault == "other range")
        self._send(206, data, {"Content-Range": f"bytes {at}-{stop - 1}/{size}", **tag})

    def _listing(self, path: Path) -> bytes:
        names = sorted(each.name + "/" * each.is_dir() for each in path.iterdir())
        return "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()

    def _stream(self, path: Path, size: int, headers: dict[str, str]) -> None:
        self._head(200, {"Content-Length": str(size)} | headers)
        with path.open("rb") as file:
            while (block := file.read(1 << 16)) and self._write(block):
                self.served.count(len(block))

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self._head(status, {"Content-Length": str(len(data))} | headers)
        if self.fault == "truncates" and len(data) > 1:
            data = data[: len(data) // 2]
            self.close_connection = True
        if self.fault == "endless" and len(data) > 1:
            data += bytes(50_000_000)
        self._write(data)
        self.served.count(len(data))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _write(self, data: bytes) -> bool:
        """Write, and return whether the client still hears it."""
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True
            return False
        return True


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder on a free port of this machine."""
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()
