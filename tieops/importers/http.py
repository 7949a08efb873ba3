"""HTTP for ranges of untrusted servers: fsspec's file system, with answers held to what was asked.

fsspec reads whatever a server sends: a server that does not know ranges sends the whole file for
each. Here an answer is the range that was asked for, or an error, and no more of it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

__all__ = ["RangeError", "RangedHTTPFileSystem"]

CONNECT_S = 30
SILENCE_S = 30
"""How long a server may send nothing."""
ANSWER_S = 300
"""How long one answer may take, which is some MB."""


class RangeError(Exception):
    """An answer that is not the range that was asked for; its text is for the user."""


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
        expected: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> bytes:
        if start is None or end is None:
            return await super()._cat_file(url, start, end, **kwargs)
        async with await self._answer(url, start, end) as answer:
            if answer.status == 206:
                got = _content_range(answer)
                if got[:2] != (start, end - 1):
                    raise RangeError(f"asked for bytes {start}-{end - 1}, it sent another range")
                now = {"size": got[2], "ETag": answer.headers.get("ETag")}
                if any(now[key] not in (None, was) for key, was in (expected or {}).items()):
                    raise RangeError("the file changed while it was read")
            elif answer.status == 416:
                raise RangeError(f"it says that there are no bytes {start}-{end - 1}")
            else:
                answer.raise_for_status()
                if start:
                    raise RangeError("it does not serve ranges, and would send the whole file")
            return await answer.content.readexactly(end - start)

    def holds_to(self, size: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the answers about one file have in common.

        Args:
            size: Its bytes.
            info: What ``info`` said of it.
        """
        return {"size": size} | {key: info[key] for key in ("ETag",) if key in info}

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
        raise RangeError("it sends a range without saying which")
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
