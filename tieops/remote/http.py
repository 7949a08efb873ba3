"""HTTP ranges from untrusted servers: fsspec's file system, with checked answers.

fsspec reads whatever a server sends: a server without range support sends the whole file for each
range. Here a response is either the requested range or an error, and nothing beyond it is read.

fsspec's HTTP file system does not retry, unlike those for S3 and others, so one failed range of a
large model loses all of them. Here each request is retried a few times if the failure may be
temporary.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

__all__ = ["Call", "RangeError", "RangedHTTPFileSystem", "pause_s"]

T = TypeVar("T")

CONNECT_S = 30
SILENCE_S = 30
"""How long a server may send nothing."""
ANSWER_S = 300
"""How long one answer may take, which is some MB."""
WAITS_S = (0.5, 2.0)
"""Between a try and the next; after the last of these there is one more."""
MAX_WAIT_S = 10
"""No server makes us wait for longer than this, whatever it says."""
PATIENCE_S = 60
"""After this time nothing is tried again: a silent server has taken two tries until then."""
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)


class RangeError(Exception):
    """An answer that is not the range that was asked for; its text is for the user."""


@dataclass
class Call:
    """Ranges of one file that are asked for together, and are all wanted.

    Args:
        size: The file's bytes.
        etag: What the server called this state of it, if it said so.
        failure: What one of the ranges failed with. The others are not asked for any more.
    """

    size: int
    etag: str | None
    failure: Exception | None = None


class RangedHTTPFileSystem(HTTPFileSystem):
    """HTTP and HTTPS by ranges.

    Args:
        client_kwargs: As fsspec's; without a timeout, one that ends.
        kwargs: fsspec's other options.
    """

    def __init__(self, *, client_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        super().__init__(client_kwargs={"timeout": timeout, **(client_kwargs or {})}, **kwargs)

    async def _info(self, url: str, **kwargs: Any) -> dict[str, Any]:
        return await _tried(lambda: self._told(url), None)

    async def _told(self, url: str) -> dict[str, Any]:
        # Not a HEAD: addresses that are signed for reading refuse it, and others lie in it.
        async with await self._answer(url, 0, 1) as answer:
            ranged = answer.status in (206, 416)
            if answer.status == 206:
                size = _content_range(answer)[2]
            elif answer.status == 416 and "Content-Range" in answer.headers:
                size = 0
            else:
                answer.raise_for_status()
                length = answer.headers.get("Content-Length", "")
                size = int(length) if length.isdigit() else None
            stamps = {key: answer.headers[key] for key in ("ETag", "Last-Modified")
                      if key in answer.headers}  # fmt: skip
        return {"name": url, "size": size, "type": "file", "partial": ranged, **stamps}

    async def _cat_file(
        self,
        url: str,
        start: int | None = None,
        end: int | None = None,
        call: Call | None = None,
        **kwargs: Any,
    ) -> bytes:
        if start is None or end is None:
            return await super()._cat_file(url, start, end, **kwargs)
        return await _tried(lambda: self._range(url, start, end, call), call)

    async def _range(self, url: str, start: int, end: int, call: Call | None) -> bytes:
        async with await self._answer(url, start, end) as answer:
            if answer.status == 206:
                first, last, size = _content_range(answer)
                if (first, last) != (start, end - 1):
                    raise RangeError(f"asked for bytes {start}-{end - 1}, it sent another range")
                if call is not None:
                    _hold_to(call, size, answer.headers.get("ETag"))
            elif answer.status == 416:
                raise RangeError(f"it reports that there are no bytes {start}-{end - 1}")
            else:
                answer.raise_for_status()
                if start:
                    raise RangeError("it does not serve ranges, and would send the whole file")
            return await answer.content.readexactly(end - start)

    def new_call(self, size: int, info: Mapping[str, Any]) -> Call:
        """Return what the answers to one call have in common.

        Args:
            size: The file's bytes.
            info: What ``info`` said of it.
        """
        return Call(size, info.get("ETag"))

    async def _answer(self, url: str, start: int, end: int) -> aiohttp.ClientResponse:
        options = dict(self.kwargs)
        # Compressed, a range would be one of other bytes.
        asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **asked}
        session = await self.set_session()
        answer = await session.get(self.encode_url(url), **options)
        problem = ""
        if answer.url.scheme == "http" and url.lower().startswith("https:"):
            problem = "it leads from https to http"
        elif answer.headers.get("Content-Encoding", "identity") != "identity":
            problem = "it compresses what was asked for as it is"
        elif answer.status == 404:
            answer.close()
            raise FileNotFoundError(url)
        if problem:
            answer.close()
            raise RangeError(problem)
        return answer


def _content_range(answer: aiohttp.ClientResponse) -> tuple[int, int, int | None]:
    """Return the first byte, the last, and the size of the file if it is known."""
    text = answer.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", text.strip())
    if match is None:
        raise RangeError("it sent a range without saying which")
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def _hold_to(call: Call, size: int | None, etag: str | None) -> None:
    """Refuse an answer from another state of the file than the call's."""
    if size not in (None, call.size) or (call.etag is not None and etag not in (None, call.etag)):
        raise RangeError("the file changed while it was read")


async def _tried(ask: Callable[[], Awaitable[T]], call: Call | None) -> T:
    """Return an answer; asks again, a few times, where what went wrong may pass."""
    began, waits_s = time.monotonic(), iter(WAITS_S)
    while True:
        if call is not None and call.failure is not None:
            raise call.failure.with_traceback(None)  # one error for all ranges
        try:
            return await ask()
        except Exception as error:
            late = time.monotonic() - began > PATIENCE_S
            wait_s = None if late or not _may_pass(error) else next(waits_s, None)
            if wait_s is None:
                if call is not None:
                    call.failure = call.failure or error
                raise
            pause = pause_s(error, wait_s)
        await asyncio.sleep(pause)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in _PASSING_STATUS
    if isinstance(error, aiohttp.ClientConnectorError):
        # No such host, nobody who listens there, a wrong certificate: these stay.
        passing = (ConnectionResetError, ConnectionAbortedError, TimeoutError)
        return isinstance(error.os_error, passing)
    passing = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError,
               asyncio.IncompleteReadError)  # fmt: skip
    return isinstance(error, passing)


def pause_s(error: Exception, wait_s: float) -> float:
    """Return how long to wait before the next try, in seconds.

    Args:
        error: What went wrong. A server may say in it how long it wants to be left alone.
        wait_s: The least time. Up to half of it is added by chance, so that ranges that failed
            together are not asked for together.
    """
    said = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    asked = int(said) if re.fullmatch(r"\d{1,9}", said) else 0
    return min(max(wait_s, asked) + random.uniform(0, wait_s / 2), MAX_WAIT_S)
