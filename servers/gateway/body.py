"""Reading a request's body within bounds."""

from __future__ import annotations

import asyncio
import zlib

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from llmos.lib.errors import Cancelled, InvalidArgument


async def read(request: Request, limit: int, timeout_s: float) -> bytes:
    """Return the body.

    What is too large is read to its end and thrown away, because a client that is answered while
    it still sends may never see the answer; one that sends `Expect` waits for it.

    Raises HTTPException 413 over `limit` bytes, 408 after `timeout_s`, Cancelled CLIENT_GONE,
    InvalidArgument BAD_ENCODING.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit and "expect" in request.headers:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    chunks.clear()
                else:
                    chunks.append(chunk)
    except TimeoutError:
        if size <= limit:
            raise HTTPException(
                408,
                f"The body did not arrive within {timeout_s:g} s; send it faster.",
                headers={"connection": "close"},
            ) from None
    except ClientDisconnect:
        raise Cancelled("CLIENT_GONE", "The client went away.") from None
    if size > limit:
        raise _too_large(limit)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    whole = b"".join(chunks)
    return whole if coding == "identity" else _expanded(whole, coding, limit)


def _expanded(body: bytes, coding: str, limit: int) -> bytes:
    """Return a compressed body as it was; no more of it is expanded than is allowed."""
    if coding not in ("gzip", "deflate"):
        raise InvalidArgument(
            "BAD_ENCODING", f"content-encoding {coding[:20]!r} is not known; use gzip or deflate."
        )
    expander = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip's or zlib's header, as it comes
    try:
        whole = expander.decompress(body, limit + 1)
    except zlib.error as exc:
        raise InvalidArgument("BAD_ENCODING", f"The body is no {coding} ({exc}).") from exc
    if len(whole) > limit:
        raise _too_large(limit)
    if not expander.eof:
        raise InvalidArgument("BAD_ENCODING", f"The body is {coding} cut short; send all of it.")
    return whole


def _too_large(limit: int) -> HTTPException:
    return HTTPException(
        413, f"The body is over {limit} bytes; send less.", headers={"connection": "close"}
    )
