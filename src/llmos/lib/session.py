"""Many calls over one sequence of envelopes: the end of a port, whoever carries the envelopes.

The port library has one over its gRPC stream; the kernel has one in its own process for plain
gRPC clients and for its own services. All methods are for the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.errors import Internal, InvalidArgument, LLMOSError
from llmos.lib.host import new_instance
from llmos.lib.status import make_status
from llmos.lib.stream import ClientStream, ServerStream

log = logging.getLogger(__name__)

ALIVE_S = 0.1  # at most one ALIVE in so many seconds
HIGH_WATER = 4 << 20  # queued payload bytes from which on senders of large messages wait
Emit = Callable[[pb.Envelope], None]


def metadata_from_wire(items: object) -> tuple[tuple[str, str | bytes], ...]:
    """Return the wire's metadata as gRPC metadata (pairs)."""
    return tuple(
        (m.key, m.value if m.key.endswith("-bin") else m.value.decode("utf-8", "replace"))
        for m in items  # type: ignore[attr-defined]
    )


class Session:
    """Multiplexes the calls of one attachment."""

    def __init__(
        self,
        carry: Emit,
        *,
        window: int = 1 << 20,
        serve: Callable[[ServerStream], None] | None = None,
    ) -> None:
        """Send through `carry`; hand calls that are opened towards us to `serve`."""
        self.emit = carry
        self.window = window
        self.streams: dict[int, ClientStream | ServerStream] = {}
        self.full = False
        self._serve = serve
        self._next_id = 1
        self._nonce = new_instance()
        self._waiting: list[asyncio.Future[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alive_at = 0.0

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop it runs on. Kept: asking asyncio each time costs a getpid(2)."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    # Calls from here.

    def call(self, opened: pb.Open, idempotent: bool, once: bool = False) -> ClientStream:
        """Prepare a call; `ClientStream.start` sends it.

        once: it gets a request id, by which another kernel's server is asked what became of it.
        """
        stream = ClientStream(self, self.next_id(), opened, idempotent or once)
        if once:
            stream.once = True
            opened.request_id = opened.request_id or f"{self._nonce}-{stream.id}"
        self.streams[stream.id] = stream
        return stream

    def next_id(self) -> int:
        """Return the id of a call that is opened now."""
        self._next_id += 2
        return self._next_id - 2

    def renumber(self, stream: ClientStream) -> None:
        """Give a call that is opened again a new id."""
        self.streams.pop(stream.id, None)
        stream.id = self.next_id()
        self.streams[stream.id] = stream

    def forget(self, call_id: int) -> None:
        """Drop an ended call."""
        self.streams.pop(call_id, None)

    def clients(self) -> list[ClientStream]:
        """Return the calls opened from here that go on, oldest first."""
        return [s for s in self.streams.values() if isinstance(s, ClientStream)]

    def servers(self) -> list[ServerStream]:
        """Return the calls served here that go on, oldest first."""
        return [s for s in self.streams.values() if isinstance(s, ServerStream)]

    def progress(self) -> None:
        """Tell the kernel that the calls served here make progress; as often as one likes."""
        now = time.monotonic()
        if now - self._alive_at >= ALIVE_S:
            self._alive_at = now
            self.emit(pb.Envelope(kind=pb.KIND_ALIVE))

    # Back-pressure of what carries the envelopes.

    def set_full(self, full: bool) -> None:
        """Tell whether senders of large messages should wait."""
        self.full = full
        if not full and self._waiting:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
            self._waiting.clear()

    async def writable(self) -> None:
        """Wait while what carries the envelopes is full."""
        while self.full:
            future = self.loop().create_future()
            self._waiting.append(future)
            await future

    # Envelopes from the other end.

    def receive(self, envelope: pb.Envelope) -> None:
        """Take one envelope about a call. Raises InvalidArgument BAD_FRAME."""
        kind = envelope.kind
        stream = self.streams.get(envelope.call)
        if kind == pb.KIND_OPEN:
            if stream is not None or self._serve is None:
                raise InvalidArgument("BAD_FRAME", "OPEN for a call that is open, or not wanted.")
            server = ServerStream(self, envelope)
            self.streams[envelope.call] = server
            if self._taken(server, envelope):
                self._serve(server)
        elif stream is None:
            return  # it ended here while the envelope was on its way
        elif isinstance(stream, ClientStream):
            self._receive_client(stream, kind, envelope)
        elif kind == pb.KIND_DATA:
            self._taken(stream, envelope)
        elif kind == pb.KIND_WINDOW:
            stream.granted(envelope.window)
        elif kind == pb.KIND_CANCEL:
            self._cancel_server(stream)

    def _receive_client(self, stream: ClientStream, kind: int, envelope: pb.Envelope) -> None:
        if kind == pb.KIND_END:
            try:
                stream.end(envelope)
            except LLMOSError as err:
                stream.fail(make_status(err))
        elif kind == pb.KIND_DATA:
            try:
                stream.deliver(envelope)
            except LLMOSError as err:
                stream.cancel(make_status(err))
        elif kind == pb.KIND_WINDOW:
            stream.granted(envelope.window)
        elif kind == pb.KIND_HEADERS:
            stream.begin(envelope.headers)

    def _taken(self, stream: ServerStream, envelope: pb.Envelope) -> bool:
        try:
            stream.take(envelope)
        except LLMOSError as err:
            if stream.task is not None:
                stream.task.cancel()
            stream.finish()
            self.emit(pb.Envelope(call=stream.id, kind=pb.KIND_END, status=make_status(err)))
            return False
        return True

    def _cancel_server(self, stream: ServerStream) -> None:
        if stream.task is not None:
            stream.task.cancel()  # the task answers END when the work has stopped
        else:
            stream.finish()
            self.emit(pb.Envelope(call=stream.id, kind=pb.KIND_END, status=pb.Status(code=1)))

    def close(self, err: LLMOSError | None = None) -> None:
        """End every call here: those from here fail with `err`, those served here are cancelled."""
        err = err or Internal("SESSION_CLOSED", "The connection to the kernel was closed.")
        for stream in list(self.streams.values()):
            if isinstance(stream, ClientStream):
                stream.fail(make_status(err))
            else:
                self.abandon(stream)

    def abandon(self, stream: ServerStream) -> None:
        """Stop serving a call whose other end is gone."""
        stream.finish()
        if stream.task is not None:
            stream.task.cancel()
