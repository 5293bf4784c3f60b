"""Answering while the client is there: server-sent events, and stopping when it goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from llmos.lib.errors import Cancelled, LLMOSError
from llmos.servers.gateway import errors
from llmos.servers.gateway.trace import Trace

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; when the client goes away first, cancel it.

    The request's body must have been read. Raises Cancelled CLIENT_GONE.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Cancelled("CLIENT_GONE", "The client went away.")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


class EventStream:
    """An ASGI response of server-sent events that ends with [DONE], or with an error event."""

    def __init__(
        self, first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None], trace: Trace
    ) -> None:
        """Take the first event, which proved that the work began, and those to come."""
        self._first = first
        self._rest = rest
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; stop the work at once when the client goes away."""
        try:
            async with aclosing(self._rest):
                await unless_gone(receive, self._send_all(send))
        except Cancelled as exc:
            self._trace.failed = errors.row(exc).status

    async def _send_all(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the tokens back
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _body(send, event(self._first))
        try:
            async for data in self._rest:
                await _body(send, event(data))
            end = DONE
        except LLMOSError as exc:  # the status line is out; the error goes as an event
            self._trace.failed = errors.row(exc).status
            end = event(errors.body(exc))
        await _body(send, end)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
