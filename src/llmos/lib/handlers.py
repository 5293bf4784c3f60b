"""Running generated servicers' handlers for calls that arrive over a port."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib import log as logs
from llmos.lib import methods, rpc, served
from llmos.lib.answers import Answers, Outcome
from llmos.lib.errors import Cancelled, LLMOSError, Unimplemented
from llmos.lib.session import Session, metadata_from_wire
from llmos.lib.status import make_status, metadata_to_wire
from llmos.lib.stream import ServerStream

log = logging.getLogger(__name__)

# The call that the current task serves; calls made meanwhile over the same session become its
# children, which inherit tenant, class, deadline and cancellation.
current: contextvars.ContextVar[ServerStream | None] = contextvars.ContextVar(
    "llmos_current", default=None
)


class PortContext(grpc.aio.ServicerContext[Any, Any]):
    """The servicer context of a call over a port; also answers for `llmos.lib.call`."""

    def __init__(self, stream: ServerStream, deserialize: Any, serialize: Any) -> None:
        """Wrap the server's side of a call."""
        self._stream = stream
        self._deserialize = deserialize
        self._serialize = serialize
        self.llmos_open = stream.open
        self.llmos_resume = stream.resume
        self._pending_resume = b""
        timeout = stream.open.timeout_us
        self._deadline = time.monotonic() + timeout / 1e6 if timeout else None
        self._code: int = 0
        self._details = ""
        self._trailers: list[tuple[str, str | bytes]] | None = None
        self._callbacks: list[Callable[[Any], None]] | None = None
        self._headers_sent = False
        self.first_reply = 0.0  # when the first message of a stream was sent

    def llmos_append_resume(self, delta: bytes) -> None:
        """See llmos.lib.call.append_resume_log."""
        self._pending_resume += delta

    def llmos_progress(self) -> None:
        """See llmos.lib.call.progress."""
        self._stream.session.progress()

    async def read(self) -> Any:
        """Return the next request, or grpc.aio.EOF."""
        message = await self._stream.receive()
        return grpc.aio.EOF if message is None else rpc.decode(self._deserialize, message)

    async def write(self, message: Any) -> None:
        """Send a reply of a stream."""
        cookie, self._pending_resume = self._pending_resume, b""
        if not self.first_reply:
            self.first_reply = time.monotonic()
        await self._stream.send(self._serialize(message), cookie=cookie)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send response headers, once."""
        if not self._headers_sent:
            self._headers_sent = True
            headers = pb.Headers(metadata=metadata_to_wire(initial_metadata))
            envelope = pb.Envelope(call=self._stream.id, kind=pb.KIND_HEADERS, headers=headers)
            self._stream.session.emit(envelope)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """End the call with a status (raises)."""
        self._code = code.value[0]
        self._details = details
        if trailing_metadata:
            self._trailers = list(trailing_metadata)
        raise grpc.aio.AbortError()

    async def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with a grpc.Status (raises)."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def status(self) -> pb.Status | None:
        """Return the status to end with; None for OK without trailers."""
        if not self._code and not self._trailers:
            return None
        return pb.Status(
            code=self._code, message=self._details, trailers=metadata_to_wire(self._trailers or ())
        )

    def end(self) -> None:
        """Run the done callbacks."""
        for callback in self._callbacks or ():
            callback(self)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the metadata that travels with the status."""
        self._trailers = list(trailing_metadata)

    def invocation_metadata(self) -> Any:
        """Return the request's metadata."""
        return metadata_from_wire(self._stream.open.metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status code."""
        self._code = code.value[0]

    def set_details(self, details: str) -> None:
        """Set the status message."""
        self._details = details

    def code(self) -> Any:
        """Return the status code set so far."""
        return rpc.CODES[self._code]

    def details(self) -> str:
        """Return the status message set so far."""
        return self._details

    def trailing_metadata(self) -> Any:
        """Return the trailing metadata set so far."""
        return tuple(self._trailers or ())

    def set_compression(self, compression: grpc.Compression) -> None:
        """Ignore: a port does not compress."""

    def disable_next_message_compression(self) -> None:
        """Ignore: a port does not compress."""

    def peer(self) -> str:
        """Return who calls."""
        return f"llmos:{self._stream.open.caller}"

    def peer_identities(self) -> Any:
        """Return None: identity is the tenant, see llmos.lib.call."""
        return None

    def peer_identity_key(self) -> Any:
        """Return None."""
        return None

    def auth_context(self) -> Any:
        """Return an empty context."""
        return {}

    def time_remaining(self) -> Any:
        """Return seconds to the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back when the call has ended."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Return whether the call ended before its handler."""
        return self._stream.ended

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self._stream.ended


def _plain(message: Any) -> Any:
    return message


class Handlers:
    """The services that a session serves: full method path to RpcMethodHandler."""

    def __init__(self) -> None:
        """Start with none."""
        self._methods: dict[str, Any] = {}
        self.running: set[asyncio.Task[None]] = set()
        self.answers = Answers()

    def add(self, service: str, handlers: dict[str, Any]) -> None:
        """Serve the methods (by bare name) of a service."""
        self._methods.update({f"/{service}/{name}": h for name, h in handlers.items()})

    def start(self, stream: ServerStream) -> None:
        """Run the handler of a call in a task; `Session(serve=...)` wants this."""
        task = stream.session.loop().create_task(self._run(stream))
        stream.task = task
        self.running.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self.running.discard(task)
            # The task's context holds the stream: together they would be a cycle for every call,
            # kept until the collector comes, by when nothing of it is in the CPU's cache.
            stream.task = None
            if not stream.ended:  # cancelled before its first step
                stream.finish()
                end = pb.Envelope(call=stream.id, kind=pb.KIND_END, status=pb.Status(code=1))
                stream.session.emit(end)

        task.add_done_callback(done)

    async def _run(self, stream: ServerStream) -> None:
        handler = self._methods.get(stream.open.method)
        serialize = getattr(handler, "response_serializer", None) or _plain
        context = PortContext(stream, getattr(handler, "request_deserializer", None), serialize)
        current.set(stream)
        opened = stream.open
        logs.call_id.set(opened.trace)
        began = time.monotonic()
        if opened.request_id and _once(handler, opened.method):
            outcome = await self._run_once(handler, context, stream, serialize)
        else:
            outcome = await self._outcome(handler, context, stream, serialize)
        await _reply(stream, *outcome)
        served.note(opened, began, context.first_reply, outcome[1])

    async def _run_once(
        self, handler: Any, context: PortContext, stream: ServerStream, serialize: Any
    ) -> Outcome:
        opened = stream.open
        asks = not stream.inbox and stream.remote_closed
        try:
            return await self.answers.once(
                (opened.tenant, opened.method, opened.request_id),
                None if asks else lambda: self._outcome(handler, context, stream, serialize),
                lambda: stream.ended,  # without a CANCEL: the kernel is gone
            )
        except asyncio.CancelledError:
            return None, make_status(Cancelled("CANCELLED", "The call was cancelled."))
        except LLMOSError as err:
            return None, make_status(err)

    async def _outcome(
        self, handler: Any, context: PortContext, stream: ServerStream, serialize: Any
    ) -> Outcome:
        reply: bytes | None = None
        try:
            if handler is None:
                raise Unimplemented("NO_SUCH_METHOD", f"{stream.open.method} is not served here.")
            reply = await self._invoke(handler, context, stream, serialize)
            status = context.status()
        except grpc.aio.AbortError:
            status = context.status() or pb.Status(code=2)
        except asyncio.CancelledError:
            status = make_status(Cancelled("CANCELLED", "The call was cancelled."))
        except Exception as exc:  # the one place where a handler's exceptions become status
            status = make_status(rpc.from_exception(exc))
        finally:
            context.end()
        return reply, status

    async def _invoke(
        self, handler: Any, context: PortContext, stream: ServerStream, serialize: Any
    ) -> bytes | None:
        if handler.request_streaming:
            request: Any = _requests(context)
        else:
            message = stream.inbox.popleft() if stream.inbox else await stream.receive()
            if message is None:
                raise Cancelled("NO_REQUEST", "The call ended before its request came.")
            request = rpc.decode(handler.request_deserializer, message)
        if not handler.response_streaming:
            behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
            reply = behaviour(request, context)
            if inspect.isawaitable(reply):
                reply = await reply
            return bytes(serialize(reply))
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        replies = behaviour(request, context)
        if inspect.isawaitable(replies):
            await replies  # a handler that writes by context.write
            return None
        try:
            async for reply in replies:
                await context.write(reply)
        finally:
            if hasattr(replies, "aclose"):
                await replies.aclose()
        return None


async def _reply(stream: ServerStream, reply: bytes | None, status: pb.Status | None) -> None:
    try:
        await stream.reply(reply, status)
    except Cancelled:
        log.debug("call ended before its reply was sent")


def _once(handler: Any, path: str) -> bool:
    """Return whether the method is unary and not idempotent."""
    unary = handler is not None and not (handler.request_streaming or handler.response_streaming)
    return unary and not methods.lookup(path).idempotent


async def _requests(context: PortContext) -> AsyncIterator[Any]:
    while (request := await context.read()) is not grpc.aio.EOF:
        yield request


def parent_of(session: Session) -> int:
    """Return the id of the call that the current task serves over `session`; 0 for none."""
    stream = current.get()
    if stream is None or stream.session is not session or stream.ended:
        return 0
    return stream.id
