"""One gRPC call over an HTTP/2 connection, as one end sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmos.lib.h2 import wire

if TYPE_CHECKING:
    from llmos.lib.h2.connection import Connection

_PREFIX = b"\x00"  # not compressed; the message's length follows, 4 bytes
_SMALL = 16 << 10  # joining less costs less than another write


class Stream:
    """Sends and receives the messages of one call. All methods are for the loop's thread.

    The owner sets the callbacks in the same step in which it gets the stream:
    `on_message(message)`, or `on_view(view)`, good during that call only, which spares a copy;
    `on_half_close()`: the other end sends no more messages; `on_end(code,
    message, trailers)`: the call is over, by the other end or because the connection broke;
    `on_room()`: after `writable` was False, there is room again; `on_fault(code, message)`: what
    the other end sent cannot be taken, and the owner of a server's stream must `finish` it. A
    server's stream has the request in `path`, `metadata` and `timeout_s`.
    """

    __slots__ = (
        "_consumed",
        "_encoding",
        "_headers_sent",
        "_partial",
        "_pending",
        "_trailers",
        "closed_here",
        "closed_there",
        "connection",
        "held",
        "id",
        "max_message",
        "metadata",
        "on_end",
        "on_fault",
        "on_half_close",
        "on_headers",
        "on_message",
        "on_room",
        "on_view",
        "path",
        "room",
        "timeout_s",
    )

    def __init__(self, connection: Connection, stream_id: int, room: int) -> None:
        """Start; `room`: bytes that the other end takes now."""
        self.connection = connection
        self.id = stream_id
        self.room = room
        self.path = ""
        self.metadata: list[tuple[str, str | bytes]] = []
        self.timeout_s: float | None = None
        self.max_message = connection.max_message
        self.held = False
        self.closed_here = False
        self.closed_there = False
        self.on_message: Callable[[bytes], None] = _ignore
        self.on_view: Callable[[memoryview], None] | None = None
        self.on_half_close: Callable[[], None] = _nothing
        self.on_headers: Callable[[list[tuple[str, str | bytes]]], None] = _ignore
        self.on_end: Callable[[int, str, list[tuple[str, str | bytes]]], None] = _ignore_end
        self.on_room: Callable[[], None] | None = None
        self.on_fault: Callable[[int, str], None] | None = None
        self._headers_sent = not connection.server
        self._encoding = "identity"
        self._partial = bytearray()
        self._pending: deque[memoryview] = deque()
        self._trailers: bytes | None = None
        self._consumed = 0

    # Outbound.

    @property
    def writable(self) -> bool:
        """Whether what is sent now leaves at once."""
        return not self._pending and not self.connection.paused

    def send_headers(self, metadata: wire.Metadata = ()) -> None:
        """Send the response headers, once."""
        if not self._headers_sent and not self.closed_here:
            self._headers_sent = True
            self.connection.write_headers(self.id, wire.RESPONSE + wire.metadata_block(metadata), 0)

    def send(self, message: bytes) -> None:
        """Send a message, or keep it until the other end has room for it."""
        self.send_parts([message], len(message))

    def send_parts(self, parts: Sequence[bytes | memoryview], size: int) -> None:
        """Send a message of `size` bytes that lies in parts."""
        if self.closed_here:
            return
        connection = self.connection
        if not self._headers_sent:
            self._headers_sent = True
            connection.write_headers(self.id, wire.RESPONSE, 0)
        prefix = _PREFIX + size.to_bytes(4, "big")
        size += 5
        if (
            size <= self.room
            and size <= connection.room
            and size <= connection.max_frame
            and not self._pending
        ):
            self.room -= size
            connection.room -= size
            head = wire.frame_head(size, wire.DATA, 0, self.id) + prefix
            if size < _SMALL:
                connection.write(head + b"".join(parts))
            else:
                connection.write(head)
                for part in parts:
                    connection.write(part)
        else:
            self._pending.append(memoryview(prefix))
            self._pending.extend(map(memoryview, parts))
            self._send_pending()

    def finish(self, code: int = 0, message: str = "", metadata: wire.Metadata = ()) -> None:
        """End the call of a server with a status, after what was sent."""
        if not self.closed_here and self._trailers is None:
            self._trailers = wire.trailers_block(code, message, metadata)
            self._send_pending()

    def half_close(self) -> None:
        """Say that no more messages come from this client."""
        if not self.closed_here and self._trailers is None:
            self._trailers = b""
            self._send_pending()

    def drop_pending(self) -> None:
        """Forget what was not sent yet, also the rest of a message that was begun."""
        self._pending.clear()

    def reset(self, error: int = wire.CANCEL) -> None:
        """Give the call up."""
        if not (self.closed_here and self.closed_there):
            self.connection.write(wire.frame(wire.RST_STREAM, 0, self.id, error.to_bytes(4, "big")))
        self._drop()

    def pump(self) -> None:
        """Send what waits, as far as there is room; tell the owner when there is more room."""
        self._send_pending()
        if self.on_room is not None and self.writable:
            self.on_room()

    def _send_pending(self) -> None:
        connection = self.connection
        while self._pending:
            piece = self._pending[0]
            room = min(self.room, connection.room, connection.max_frame)
            if len(piece) and room <= 0:
                connection.blocked[self.id] = self
                return
            part = piece[:room]
            self.room -= len(part)
            connection.room -= len(part)
            connection.write(wire.frame_head(len(part), wire.DATA, 0, self.id))
            connection.write(part)
            if len(part) < len(piece):
                self._pending[0] = piece[len(part) :]
            else:
                self._pending.popleft()
        if self._trailers is not None and not self.closed_here:
            self._end_here(self._trailers)

    def _end_here(self, trailers: bytes) -> None:
        connection = self.connection
        self.closed_here = True
        if not connection.server:
            connection.write(wire.frame_head(0, wire.DATA, wire.END_STREAM, self.id))
        else:
            if not self._headers_sent:  # trailers only: an error without a message
                trailers = wire.RESPONSE + trailers
                self._headers_sent = True
            connection.write_headers(self.id, trailers, wire.END_STREAM)
            if not self.closed_there:  # RFC 9113, 8.1: the rest of the request is not wanted
                connection.write(
                    wire.frame(wire.RST_STREAM, 0, self.id, wire.NO_ERROR.to_bytes(4, "big"))
                )
            self._drop()
        if self.closed_there:
            self._drop()

    def _drop(self) -> None:
        self.closed_here = self.closed_there = True
        self._pending.clear()
        self._partial.clear()
        self.connection.streams.pop(self.id, None)
        self.connection.blocked.pop(self.id, None)
        self.on_message, self.on_view, self.on_half_close = _ignore, None, _nothing
        self.on_end, self.on_headers, self.on_room = _ignore_end, _ignore, None
        self.on_fault = None  # whatever leads back to its owner would wait for the cycle collector

    # Inbound.

    def hold(self, held: bool) -> None:
        """Hold the other end back once its window is used up, or let it go on."""
        self.held = held
        if not held:
            self._grant()

    def _grant(self) -> None:
        if self._consumed * 2 >= self.connection.window and not self.closed_there:
            self.connection.write(wire.window_update(self.id, self._consumed))
            self._consumed = 0

    def receive_data(self, data: memoryview) -> None:
        """Take the payload of a DATA frame; `data` is good during this call only."""
        size = len(data)
        if self.closed_there:
            return
        self._consumed += size
        if not self.held:
            self._grant()
        partial = self._partial
        if (
            not partial
            and size >= 5
            and not data[0]
            and int.from_bytes(data[1:5], "big") == size - 5 <= self.max_message
        ):
            if self.on_view is not None:
                self.on_view(data[5:])
            else:
                self.on_message(bytes(data[5:]))
            return
        partial += data
        self._parse()

    def _parse(self) -> None:
        partial = self._partial
        while len(partial) >= 5:
            size = int.from_bytes(partial[1:5], "big")
            if size > self.max_message:
                self.refuse(
                    8, f"A message of {size} bytes; at most {self.max_message} are allowed here."
                )
                return
            if len(partial) < size + 5:
                return
            compressed = partial[0]
            message = bytes(memoryview(partial)[5 : size + 5])
            del partial[: size + 5]
            if compressed:
                plain = self._inflate(message)
                if plain is None:
                    return
                message = plain
            if self.on_view is not None:
                self.on_view(memoryview(message))
            else:
                self.on_message(message)

    def _inflate(self, message: bytes) -> bytes | None:
        try:
            plain = wire.decompress(message, self._encoding, self.max_message)
        except ValueError as exc:
            self.refuse(13, f"A compressed message cannot be read: {exc}.")
            return None
        if plain is None:
            self.refuse(8, f"A compressed message has over {self.max_message} bytes.")
        return plain

    def refuse(self, code: int, message: str) -> None:
        """End the call for a fault of the other end: a gRPC code and what the fault is."""
        on_end, on_fault = self.on_end, self.on_fault
        self._partial.clear()
        self.on_message, self.on_view, self.on_half_close = _ignore, None, _nothing
        if on_fault is not None:
            on_fault(code, message)
        elif self.connection.server:
            self.finish(code, message)
        else:
            self.reset()
            on_end(code, message, [])

    def receive_headers(self, headers: list[tuple[str, str]], end_stream: bool) -> None:
        """Take a header block: the request, the response's head, or the trailers."""
        if self.closed_there:
            return
        fields = dict(headers)
        if "grpc-encoding" in fields:
            self._encoding = fields["grpc-encoding"]
        if self.connection.server:
            self._request(headers, fields)
        elif end_stream:
            self._response_end(headers, fields)
            return
        elif fields.get(":status") != "200":
            self.reset()
            return self.on_end(14, f"HTTP status {fields.get(':status')}.", [])
        else:
            self.on_headers(wire.metadata_of(headers))

    def _request(self, headers: list[tuple[str, str]], fields: dict[str, str]) -> None:
        self.path = fields.get(":path", "")
        self.metadata = wire.metadata_of(headers)
        if "grpc-timeout" in fields:
            self.timeout_s = wire.timeout_s(fields["grpc-timeout"])

    def _response_end(self, headers: list[tuple[str, str]], fields: dict[str, str]) -> None:
        on_end = self.on_end
        status = fields.get("grpc-status", "")
        code = int(status) if status.isascii() and status.isdigit() else 2
        message = wire.status_message(fields.get("grpc-message", ""))
        if not status:
            message = f"The answer has no gRPC status (HTTP {fields.get(':status', '?')})."
        if not self.closed_here:
            self.closed_there = True
            self.connection.write(
                wire.frame(wire.RST_STREAM, 0, self.id, wire.NO_ERROR.to_bytes(4, "big"))
            )
        self._drop()
        on_end(code, message, wire.metadata_of(headers))

    def receive_end(self) -> None:
        """Take END_STREAM of a DATA or request HEADERS frame."""
        if self.closed_there:
            return
        self.closed_there = True
        if self.connection.server:
            if self._partial:
                self.closed_there = False
                return self.refuse(13, "The request ends in the middle of a message.")
            self.on_half_close()
        else:
            on_end = self.on_end
            self._drop()
            on_end(14, "The stream ended without a status.", [])

    def receive_reset(self, error: int) -> None:
        """Take RST_STREAM."""
        on_end = self.on_end
        self._drop()
        if error == wire.CANCEL or self.connection.server:
            on_end(1, "The other end cancelled the call.", [])
        else:
            on_end(14, f"The other end reset the stream (HTTP/2 error {error}).", [])

    def broken(self, reason: str) -> None:
        """The connection is gone."""
        on_end = self.on_end
        self._drop()
        on_end(14, reason, [])


def _ignore(_: object) -> None:
    return


def _nothing() -> None:
    return


def _ignore_end(*_: object) -> None:
    return
