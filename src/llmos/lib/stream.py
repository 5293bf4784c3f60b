"""One call as one side sees it: messages cut into envelopes, put together again, flow control.

The sender of a direction may have `window` payload bytes that the receiver has not granted. The
receiver grants what it takes in as long as its inbox is below a window, so a slow reader holds
back its own sender and nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib import cargo
from llmos.lib.errors import Cancelled, ResourceExhausted

if TYPE_CHECKING:
    from llmos.lib.session import Session

CHUNK = 512 << 10
FIRST = 4 << 10  # of a longer message, with the OPEN: enough to find the key in
MAX_MESSAGE = 64 << 20

DATA, OPEN, END = pb.KIND_DATA, pb.KIND_OPEN, pb.KIND_END
CANCEL, WINDOW, HEADERS = pb.KIND_CANCEL, pb.KIND_WINDOW, pb.KIND_HEADERS
MESSAGE, MORE, HALF_CLOSE = pb.FLAG_MESSAGE, pb.FLAG_MORE, pb.FLAG_HALF_CLOSE


class Stream:
    """The part that the opener's and the server's side of a call have in common."""

    __slots__ = (
        "_partial",
        "_partial_bytes",
        "_queued",
        "_readable",
        "_ungranted",
        "_writable",
        "ended",
        "id",
        "inbox",
        "remote_closed",
        "session",
        "window",
    )

    def __init__(self, session: Session, call_id: int) -> None:
        """Start with an empty inbox and a full window."""
        self.session = session
        self.id = call_id
        self.inbox: deque[bytes] = deque()
        self.remote_closed = False  # the other side sends no more messages
        self.ended = False  # the call is over in both directions
        self.window = session.window
        self._partial: list[bytes | memoryview] = []
        self._partial_bytes = 0
        self._queued = 0
        self._ungranted = 0
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    # Inbound.

    def take(self, envelope: pb.Envelope) -> None:
        """Take the payload and the flags of an envelope.

        Raises ResourceExhausted MESSAGE_TOO_LARGE.
        """
        flags = envelope.flags
        if flags & MESSAGE:
            payload = envelope.payload
            self._ungranted += len(payload)
            if flags & MORE or self._partial:
                self._partial.append(payload)
                self._partial_bytes += len(payload)
                if self._partial_bytes > MAX_MESSAGE:
                    self._partial.clear()
                    raise ResourceExhausted(
                        "MESSAGE_TOO_LARGE",
                        f"A message is over {MAX_MESSAGE >> 20} MiB; send it in pieces, or as a "
                        "buffer handle.",
                    )
                if not flags & MORE:
                    self._accept(b"".join(self._partial))
                    self._partial = []
                    self._partial_bytes = 0
            else:
                self._accept(bytes(payload))
            self._grant()
        if flags & HALF_CLOSE:
            self.remote_closed = True
        if self._readable is not None:
            self._wake_reader()

    def _accept(self, message: bytes) -> None:
        self.inbox.append(message)
        self._queued += len(message)

    def _grant(self) -> None:
        window = self.session.window
        if self._ungranted * 2 >= window and self._queued < window and not self.ended:
            self.session.emit(pb.Envelope(call=self.id, kind=WINDOW, window=self._ungranted))
            self._ungranted = 0

    def _wake_reader(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)
        self._readable = None

    async def receive(self) -> bytes | None:
        """Return the next message; None when the other side sends no more."""
        while not self.inbox:
            if self.remote_closed or self.ended:
                return None
            if self._readable is None:
                self._readable = self.session.loop().create_future()
            await self._readable
        message = self.inbox.popleft()
        self._queued -= len(message)
        self._grant()
        return message

    # Outbound.

    def granted(self, count: int) -> None:
        """Take a WINDOW of the other side."""
        self.window += count
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def put(self, envelope: pb.Envelope, size: int = 0) -> None:
        """Send an envelope of this call as it is. size: bytes of its payload."""
        # protobuf copies a payload at every look at it, so nobody asks the envelope for its size.
        self.window -= size
        self.session.emit(envelope)

    async def send(self, message: bytes, flags: int = 0, cookie: bytes = b"") -> None:
        """Send a message; `flags` may hold HALF_CLOSE. Waits while the window is used up.

        Raises Cancelled when the call has ended meanwhile.
        """
        size = len(message)
        if size <= CHUNK and size <= self.window and not self.ended:
            flags |= MESSAGE
            self.put(
                pb.Envelope(call=self.id, kind=DATA, payload=message, flags=flags, cookie=cookie),
                size,
            )
            if self.session.full:
                await self.session.writable()
            return
        await self.send_view(memoryview(message), flags, cookie)

    async def send_view(self, message: memoryview, flags: int, cookie: bytes = b"") -> None:
        """Send a message, or the rest of one, in pieces."""
        offset = 0
        while True:
            room = await self._room()
            piece = message[offset : offset + min(room, CHUNK)]
            offset += len(piece)
            last = offset >= len(message)
            self.put(
                cargo.data(
                    self.id,
                    piece,
                    MESSAGE | (flags if last else MORE),
                    cookie if last else b"",
                ),
                len(piece),
            )
            if last:
                return
            await self.session.writable()

    async def _room(self) -> int:
        while self.window <= 0 and not self.ended:
            if self._writable is None:
                self._writable = self.session.loop().create_future()
            await self._writable
        if self.ended:
            raise Cancelled("CALL_ENDED", "The call ended before all of its messages were sent.")
        return self.window

    def finish(self) -> None:
        """Mark the call ended and wake whoever waits."""
        self.ended = True
        self.session.forget(self.id)
        self._wake_reader()
        self._wake_writer()


class ClientStream(Stream):
    """The opener's side. `open` is kept so that the call can be opened again at another kernel."""

    __slots__ = (
        "_callbacks",
        "_waiters",
        "begun",
        "cookie",
        "delivered",
        "headers",
        "kept",
        "kept_bytes",
        "once",
        "open",
        "replayable",
        "status",
    )

    KEEP = 16 << 20  # request bytes kept for opening the call again

    def __init__(self, session: Session, call_id: int, opened: pb.Open, idempotent: bool) -> None:
        """Prepare a call; nothing is sent."""
        super().__init__(session, call_id)
        self.open = opened
        self.replayable = idempotent
        self.begun = False  # OPEN was sent
        self.once = False  # it must not run twice: see Open.request_id
        self.kept: list[pb.Envelope] = []
        self.kept_bytes = 0
        self.delivered = False
        self.cookie = bytearray()
        self.headers: pb.Headers | None = None
        self.status: pb.Status | None = None
        self._waiters: list[asyncio.Future[None]] | None = None
        self._callbacks: list[Callable[[], None]] | None = None

    def start(self, message: bytes | None, half_close: bool) -> int:
        """Send OPEN with the first message where it fits; return how much of it was sent."""
        flags, payload = 0, b""
        if message is not None:
            if len(message) <= CHUNK:
                flags, payload = MESSAGE, message
            else:
                flags, payload = MESSAGE | MORE, message[:FIRST]
        if half_close and not flags & MORE:
            flags |= HALF_CLOSE
        self.begun = True
        size = len(payload)
        envelope = pb.Envelope(
            call=self.id, kind=OPEN, payload=payload, flags=flags, open=self.open
        )
        self.put(envelope, size)
        return size

    async def send_rest(self, message: bytes, offset: int, half_close: bool) -> None:
        """Send what `start` left of the first message."""
        await self.send_view(memoryview(message)[offset:], HALF_CLOSE if half_close else 0)

    def put(self, envelope: pb.Envelope, size: int = 0) -> None:
        """Send, and keep what a replay would need."""
        if self.replayable:
            self.kept_bytes += size
            if self.kept_bytes > self.KEEP:
                self.replayable = False
                self.kept.clear()
            else:
                self.kept.append(envelope)
        super().put(envelope, size)

    def half_close(self) -> None:
        """Say that no more messages come."""
        if not self.ended:
            self.put(pb.Envelope(call=self.id, kind=DATA, flags=HALF_CLOSE))

    def deliver(self, envelope: pb.Envelope) -> None:
        """Take DATA from the server."""
        self.delivered = True
        if envelope.cookie:
            self.cookie += envelope.cookie
        self.take(envelope)

    def begin(self, headers: pb.Headers) -> None:
        """Take HEADERS from the server."""
        self.headers = headers
        self._wake_reader()

    async def started(self) -> None:
        """Return when HEADERS or the first message came, or the end; for the one who receives."""
        while not (self.inbox or self.headers is not None or self.remote_closed or self.ended):
            if self._readable is None:
                self._readable = asyncio.get_running_loop().create_future()
            await self._readable

    def end(self, envelope: pb.Envelope) -> None:
        """Take END from the server."""
        if envelope.HasField("status"):
            self.status = envelope.status
        if envelope.flags & MESSAGE:
            if self._partial:
                self.take(envelope)
            else:
                self.inbox.append(envelope.payload)
        self.remote_closed = True
        self._conclude()

    def fail(self, status: pb.Status) -> None:
        """End the call from this side with a status made here."""
        self.status = status
        self.remote_closed = True
        self._conclude()

    def _conclude(self) -> None:
        self.ended = True
        self.session.streams.pop(self.id, None)
        if self._readable is not None:
            self._wake_reader()
        if self._writable is not None:
            self._wake_writer()
        if self.kept:
            self.kept = []
        if self._waiters is not None:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters = None
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                callback()

    def cancel(self, status: pb.Status) -> bool:
        """Give the call up; returns whether it was still going on."""
        if self.ended:
            return False
        if self.begun:
            self.session.emit(pb.Envelope(call=self.id, kind=CANCEL))
        self.fail(status)
        return True

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back when the call has ended, at once when it has."""
        if self.ended:
            callback()
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    async def wait(self) -> None:
        """Return when the call has ended."""
        if self.ended:
            return
        # A future for each who waits: one that is cancelled must not cancel the others'.
        waiter = self.session.loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        await waiter

    def resumable(self) -> bool:
        """Return whether the call may be opened again without the caller seeing it."""
        return self.replayable and (not self.delivered or bool(self.cookie))


class ServerStream(Stream):
    """The server's side."""

    __slots__ = ("open", "resume", "task")

    def __init__(self, session: Session, envelope: pb.Envelope) -> None:
        """Take a call that was opened towards us."""
        super().__init__(session, envelope.call)
        self.open = envelope.open
        self.resume = envelope.cookie
        self.task: asyncio.Task[None] | None = None

    def service(self) -> str:
        """Return the full name of the service called."""
        return self.open.method[1:].partition("/")[0]

    def waits_for_client(self) -> bool:
        """Return whether the handler waits for a message, or for room to send one."""
        return self._readable is not None or self._writable is not None

    async def reply(self, message: bytes | None, status: pb.Status | None) -> None:
        """End the call, with the last (or only) reply message if there is one."""
        if self.ended:
            return
        flags, payload = 0, b""
        if message is not None:
            if len(message) <= CHUNK:
                flags, payload = MESSAGE, message
            else:
                await self.send(message)
        if self.ended:
            return
        self.finish()
        self.session.emit(
            pb.Envelope(call=self.id, kind=END, payload=payload, flags=flags, status=status)
        )
