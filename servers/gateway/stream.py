"""Answering while the client is there: server-sent events, and stopping when it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from llmos.lib.errors import Cancelled, LLMOSError
from llmos.servers.gateway import errors
from llmos.servers.gateway.trace import Trace

T = TypeVar("T")
Events = list[dict[str, Any]]
DONE = b"data: [DONE]\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; when the client goes away first, cancel it.

    The request's body must have been read. Raises Cancelled CLIENT_GONE.
    """
    # The work stays in this task: one of its own would begin, and be taken up again, only after
    # everything else that is ready, which is much when a model's tokens come for many clients.
    worker = asyncio.current_task()
    assert worker is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        await _gone(receive)
        gone = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not gone or worker.uncancel() > 0:  # somebody else wants it to end
            raise
        raise Cancelled("CLIENT_GONE", "The client went away.") from None
    finally:
        watcher.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: %b\n\n" % to_json(data, inf_nan_mode="null")


class EventStream:
    """An ASGI response of server-sent events that ends with [DONE], or with an error event."""

    def __init__(self, events: AsyncGenerator[Events, None], trace: Trace) -> None:
        """Take the events to come."""
        self._events = events
        self._trace = trace
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; stop the work at once when the client goes away.

        Raises what comes instead of the first events, before anything is sent.
        """
        try:
            async with aclosing(self._events):
                await unless_gone(receive, self._send_all(send))
        except Cancelled as exc:
            if not self._started:
                raise
            self._trace.failed = errors.row(exc).status

    async def _send_all(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the tokens back
        ]
        # They decide between a stream and an error with its own status.
        first = await anext(self._events)
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(_body(first))
        try:
            async for events in self._events:
                await send(_body(events))
            end = DONE
        except LLMOSError as exc:  # the status line is out; the error goes as an event
            self._trace.failed = errors.row(exc).status
            end = event(errors.body(exc))
        await send({"type": "http.response.body", "body": end, "more_body": False})


def _body(events: Events) -> Message:
    # One message is one write(2), which costs more than all that is done here.
    body = event(events[0]) if len(events) == 1 else b"".join(map(event, events))
    return {"type": "http.response.body", "body": body, "more_body": True}
