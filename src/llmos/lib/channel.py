"""A port as a `grpc.aio.Channel`: generated stubs work over it unchanged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, cast

import grpc

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib import methods
from llmos.lib.errors import Cancelled, DeadlineExceeded
from llmos.lib.handlers import parent_of
from llmos.lib.metadata import apply_metadata
from llmos.lib.rpc import CODES
from llmos.lib.session import Session, metadata_from_wire
from llmos.lib.status import make_status
from llmos.lib.stream import ClientStream


class PortCall(grpc.aio.Call):
    """One call; the common part of the four arities."""

    def __init__(self, kind: _Kind, timeout: float | None, metadata: Any) -> None:
        """Open the call with what is known before the first message."""
        self._serialize = kind.serialize
        self._deserialize = kind.deserialize
        session = kind.channel.session
        self._deadline = None if timeout is None else time.monotonic() + timeout
        opened = pb.Open(method=kind.path)
        if parent := parent_of(session):
            opened.parent = parent
        if timeout is not None:
            opened.timeout_us = max(1, int(timeout * 1e6))
        if metadata:
            apply_metadata(opened, metadata)
        self._stream: ClientStream = session.call(opened, kind.idempotent, kind.once)
        if timeout is not None:
            # The kernel ends the call at its deadline; this is for when the kernel is away.
            timer = session.loop().call_later(timeout + 0.05, self._expire)
            self._stream.on_end(timer.cancel)

    def _expire(self) -> None:
        late = DeadlineExceeded("DEADLINE", "The deadline passed before the call ended.")
        self._stream.cancel(make_status(late))

    def _decode(self, message: bytes) -> Any:
        return message if self._deserialize is None else self._deserialize(message)

    def _encode(self, request: Any) -> bytes:
        return cast(bytes, request if self._serialize is None else self._serialize(request))

    def error(self) -> grpc.aio.AioRpcError | None:
        """Return the error that ended the call; None when it ended well."""
        status = self._stream.status
        if status is None or status.code == 0:
            return None
        return grpc.aio.AioRpcError(
            CODES.get(status.code, grpc.StatusCode.UNKNOWN),
            grpc.aio.Metadata(*self._headers()),
            grpc.aio.Metadata(*metadata_from_wire(status.trailers)),
            status.message,
        )

    def _headers(self) -> Any:
        headers = self._stream.headers
        return metadata_from_wire(headers.metadata) if headers is not None else ()

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return the response headers; waits for the first message or the end."""
        await self._started()
        return grpc.aio.Metadata(*self._headers())

    async def _started(self) -> None:
        while not (self._stream.ended or self._stream.inbox or self._stream.headers):
            await asyncio.sleep(0.001)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return the trailing metadata; waits for the end."""
        await self._stream.wait()
        status = self._stream.status
        return grpc.aio.Metadata(*metadata_from_wire(status.trailers if status else ()))

    async def code(self) -> grpc.StatusCode:
        """Return the status code; waits for the end."""
        await self._stream.wait()
        status = self._stream.status
        return CODES.get(status.code if status else 0, grpc.StatusCode.UNKNOWN)

    async def details(self) -> str:
        """Return the status message; waits for the end."""
        await self._stream.wait()
        return self._stream.status.message if self._stream.status else ""

    async def wait_for_connection(self) -> None:
        """Return at once: a port reconnects by itself."""

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        status = self._stream.status
        return self._stream.ended and status is not None and status.code == 1

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self._stream.ended

    def time_remaining(self) -> float | None:
        """Return seconds to the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def cancel(self, msg: Any = None) -> bool:
        """Give the call up: the work is stopped."""
        gone = Cancelled("CANCELLED", "The caller cancelled the call.")
        return self._stream.cancel(make_status(gone))

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back with this call when it has ended."""
        self._stream.on_end(lambda: callback(self))

    async def _send(self) -> None:
        """Send what `__init__` could not."""


class _UnaryReply(PortCall):
    def __await__(self) -> Any:
        return self._result().__await__()

    async def _result(self) -> Any:
        stream = self._stream
        try:
            await self._send()
            await stream.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if stream.status is not None and (error := self.error()) is not None:
            raise error
        message = stream.inbox.popleft() if stream.inbox else None
        if message is None:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                "The server ended the call with OK and without its reply.",
            )
        return self._decode(message)


class _StreamReply(PortCall):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self._replies()

    async def _replies(self) -> AsyncIterator[Any]:
        while (reply := await self.read()) is not grpc.aio.EOF:
            yield reply

    async def read(self) -> Any:
        """Return the next reply, or grpc.aio.EOF; raises the error that ended the call."""
        try:
            await self._send()
            message = await self._stream.receive()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if message is not None:
            return self._decode(message)
        await self._stream.wait()
        if (error := self.error()) is not None:
            raise error
        return grpc.aio.EOF


class _UnaryRequest(PortCall):
    _rest: tuple[bytes, int] | None = None

    def first(self, request: Any) -> None:
        """Send the one request, or as much of it as fits now."""
        message = self._encode(request)
        sent = self._stream.start(message, half_close=True)
        if sent < len(message):
            self._rest = (message, sent)

    async def _send(self) -> None:
        if self._rest is not None:
            (message, offset), self._rest = self._rest, None
            await _quietly(self._stream.send_rest(message, offset, half_close=True))


class _StreamRequest(PortCall):
    _feeding: asyncio.Task[None] | None = None

    def feed(self, requests: Any) -> None:
        """Open the call and, when there is an iterator, send what it yields."""
        self._stream.start(None, half_close=False)
        if requests is not None:
            self._feeding = asyncio.get_running_loop().create_task(self._feed(requests))
            feeding = self._feeding
            self._stream.on_end(lambda: _cancel(feeding))

    async def _feed(self, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
        try:
            if isinstance(requests, AsyncIterable):
                async for request in requests:
                    await self.write(request)
            else:
                for request in requests:
                    await self.write(request)
        except Cancelled:
            return
        except Exception:  # the caller's iterator may raise anything: the server is to hear of it
            self.cancel()
            raise
        self._stream.half_close()

    async def write(self, request: Any) -> None:
        """Send one request."""
        await self._stream.send(self._encode(request))

    async def done_writing(self) -> None:
        """Say that no more requests come."""
        self._stream.half_close()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _quietly(sending: Any) -> None:
    try:
        await sending
    except Cancelled:
        return  # the call has ended; its status says why


class UnaryUnaryCall(_UnaryRequest, _UnaryReply):
    """One request, one reply."""


class UnaryStreamCall(_UnaryRequest, _StreamReply):
    """One request, a stream of replies."""


class StreamUnaryCall(_StreamRequest, _UnaryReply):
    """A stream of requests, one reply."""


class StreamStreamCall(_StreamRequest, _StreamReply):
    """Streams both ways."""


class _Kind:
    """A multi-callable: what the stub's attributes are."""

    def __init__(
        self, channel: PortChannel, path: str, call: type[Any], serialize: Any, deserialize: Any
    ) -> None:
        self.channel = channel
        self.path = path
        known = methods.lookup(path)
        self.idempotent = known.idempotent
        unary = call is UnaryUnaryCall
        self.once = unary and known is not methods.UNKNOWN and not known.idempotent
        self._call = call
        self._unary = issubclass(call, _UnaryRequest)
        self.serialize = serialize
        self.deserialize = deserialize

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
        request_iterator: Any = None,
    ) -> Any:
        call = self._call(self, timeout, metadata)
        try:
            if self._unary:
                call.first(request)
            else:
                call.feed(request if request is not None else request_iterator)
        except BaseException:  # it does not serialize
            call.cancel()
            raise
        return call


class PortChannel(grpc.aio.Channel):
    """The channel of a port. Closing it does nothing: the port owns the connection."""

    def __init__(self, session: Session) -> None:
        """Make calls over `session`."""
        self.session = session

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        """Return the callable of a method."""
        return _Kind(self, method, UnaryUnaryCall, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        """Return the callable of a method."""
        return _Kind(self, method, UnaryStreamCall, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        """Return the callable of a method."""
        return _Kind(self, method, StreamUnaryCall, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        """Return the callable of a method."""
        return _Kind(self, method, StreamStreamCall, request_serializer, response_deserializer)

    async def __aenter__(self) -> PortChannel:
        """Return itself."""
        return self

    async def __aexit__(self, *_: Any) -> None:
        """Do nothing."""

    async def close(self, grace: float | None = None) -> None:
        """Do nothing."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return READY: a port reconnects by itself."""
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Never return: the state does not change."""
        await asyncio.get_running_loop().create_future()

    async def channel_ready(self) -> None:
        """Return at once."""
