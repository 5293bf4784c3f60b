"""Server-sent events of calls that may say nothing for long: logs, news, states."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from llmos.lib.errors import Cancelled, LLMOSError
from llmos.servers.gateway import errors, trace
from llmos.servers.gateway.stream import event, unless_gone

Json = dict[str, Any]
_OPENING_S = 0.3  # a call that fails at once fails by then, and gets a status of its own
_Wait = asyncio.Task[Json | None]  # None: there is no more
_BREATH_S = 15.0  # between two comments that show proxies and browsers that the stream lives


class Feed:
    """An ASGI response that ends with `event: end`, or with `event: error` and the error."""

    def __init__(self, first: _Wait, rest: AsyncGenerator[Json, None]) -> None:
        """Take the wait for the first value, and the values after it."""
        self._next = first
        self._rest = rest

    @classmethod
    async def open(cls, receive: Receive, values: AsyncGenerator[Json, None]) -> Feed:
        """Return the response once the call has begun. Raises what it fails with at once."""
        first = asyncio.ensure_future(_following(values))
        try:
            await unless_gone(receive, _opening(first))
        except LLMOSError:
            await _ended(first)
            await values.aclose()
            raise
        return cls(first, values)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; stop the call at once when the client goes away."""
        try:
            async with aclosing(self._rest):
                try:
                    await unless_gone(receive, self._send_all(scope, send))
                finally:
                    await _ended(self._next)
        except Cancelled as exc:
            trace.of(scope).failed = errors.row(exc).status

    async def _send_all(self, scope: Scope, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _part(send, b": open\n\n")
        end = b"event: end\ndata: {}\n\n"
        while True:
            done, _ = await asyncio.wait({self._next}, timeout=_BREATH_S)
            if not done:
                await _part(send, b": still here\n\n")
                continue
            try:
                value = self._next.result()
            except LLMOSError as exc:  # the status line is out
                trace.of(scope).failed = errors.row(exc).status
                end = b"event: error\n" + event(errors.body(exc))
                break
            if value is None:
                break
            self._next = asyncio.ensure_future(_following(self._rest))
            await _part(send, event(value))
        await _part(send, end)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _following(values: AsyncGenerator[Json, None]) -> Json | None:
    return await anext(values, None)


async def _opening(first: _Wait) -> None:
    done, _ = await asyncio.wait({first}, timeout=_OPENING_S)
    if done and isinstance(error := first.exception(), LLMOSError):
        raise error


async def _ended(task: _Wait) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, LLMOSError):
        await task


async def _part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
