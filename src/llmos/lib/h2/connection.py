"""One HTTP/2 connection: frames in, frames out, flow control, settings, the table of streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from llmos.lib.h2 import wire
from llmos.lib.h2.headers import HeaderBlocks, ProtocolError
from llmos.lib.h2.output import Output
from llmos.lib.h2.stream import Stream

log = logging.getLogger(__name__)

MAX_FRAME = 2 << 20  # largest frame taken, bytes
MAX_HEADERS = 96 << 10  # largest header list that a call may have, bytes
MAX_BLOCK = 2 << 20  # a larger header block ends the connection, not the call alone
WINDOW = 4 << 20  # bytes of one stream taken before its reader has seen them
CONNECTION_WINDOW = 1 << 30  # in all; the streams' windows are what bounds memory
MAX_STREAMS = 10_000
HIGH_WATER = 256 << 10  # unsent bytes from which streams wait, where they can be put in order
MAX_UNREAD = 16 << 20  # unsent bytes from which PINGs of one that does not read end it
BUFFER = 64 << 10  # bytes read at once, unless a larger frame is under way
_HEAD = wire.HEAD.unpack_from


class Connection(asyncio.BufferedProtocol):
    """Either end of a connection. `accept(stream)` is called for every call opened towards it."""

    def __init__(
        self,
        accept: Callable[[Stream], None] | None = None,
        on_lost: Callable[[Connection], None] | None = None,
        max_message: int = 64 << 20,
        window: int = WINDOW,
    ) -> None:
        """Make a server's end where `accept` is given, else a client's. window: see WINDOW."""
        self.server = accept is not None
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}  # streams with messages that wait for room
        self.room = wire.DEFAULT_WINDOW
        self.max_frame = wire.DEFAULT_FRAME
        self.max_message = max_message
        self.window = window
        self.paused = self.closing = self.closing_soon = False
        self.peer = ""
        self.write: Callable[[bytes | memoryview], None] = _discard
        self._accept = accept
        self._on_lost = on_lost
        self._transport: Any = None
        self.output: Output | None = None
        self._stream_room = wire.DEFAULT_WINDOW
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._need = len(wire.PREFACE) if self.server else 9
        self.greeted = not self.server
        self._last = 0  # newest stream of the other end
        self._next = 1
        self._consumed = 0
        self._blocks = HeaderBlocks(MAX_BLOCK)
        self._open_block: tuple[int, int, bytearray] | None = None
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            wire.HEADERS: self._on_headers,
            wire.RST_STREAM: self._on_reset,
            wire.SETTINGS: self._on_settings,
            wire.PING: self._on_ping,
            wire.GOAWAY: self._on_goaway,
            wire.WINDOW_UPDATE: self._on_window_update,
            wire.CONTINUATION: self._on_continuation,
        }

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface."""
        self._transport = transport
        cast(Any, transport).set_write_buffer_limits(high=HIGH_WATER)
        self.output = Output(transport)
        self.write = self.output.write
        hello = wire.settings(
            {
                wire.SET_MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                wire.SET_INITIAL_WINDOW: self.window,
                wire.SET_MAX_FRAME: MAX_FRAME,
                wire.SET_MAX_HEADER_LIST: MAX_HEADERS,
            }
        )
        hello += wire.window_update(0, CONNECTION_WINDOW - wire.DEFAULT_WINDOW)
        self.write(hello if self.server else wire.PREFACE + hello)
        address = transport.get_extra_info("peername")
        self.peer = "unix:"
        if isinstance(address, tuple):
            self.peer = f"ipv{6 if ':' in address[0] else 4}:{address[0]}:{address[1]}"

    def flush(self) -> None:
        """Send what was written now, not at the end of the loop's round."""
        if self.output is not None:
            self.output.flush()

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self.paused = True

    def resume_writing(self) -> None:
        """Let the streams go on."""
        self.paused = False
        for stream in list(self.streams.values()):
            stream.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """End every call."""
        self.closing = True
        self.write = _discard
        reason = f"The connection was lost ({exc or 'closed by the other end'})."
        for stream in list(self.streams.values()):
            stream.broken(reason)
        if self._on_lost is not None:
            self._on_lost(self)
        # Nothing large may wait for the cycle collector, which runs rarely.
        self._transport = None
        self._handlers.clear()
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: behind those that are not whole frames yet."""
        if self._need > len(self._buffer):
            grown = bytearray(self._need)
            grown[: self._filled] = self._view[: self._filled]
            self._buffer, self._view = grown, memoryview(grown)
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes."""
        self._filled += nbytes
        if self._filled < self._need or self.closing:
            return
        try:
            used = self._parse(self._buffer, self._filled)
        except ProtocolError as exc:
            self.abort(exc.code, str(exc))
            return
        left = self._filled - used
        if left and used:
            self._view[:left] = bytes(self._view[used : self._filled])
        self._filled = left

    def _parse(self, data: bytearray, size: int) -> int:
        """Handle the whole frames in data[:size]; return how many bytes they had."""
        pos = 0
        if not self.greeted:
            if data[: len(wire.PREFACE)] != wire.PREFACE:
                raise ProtocolError(wire.PROTOCOL_ERROR, "this is not HTTP/2")
            self.greeted, pos = True, len(wire.PREFACE)
        while size - pos >= 9:
            length, low, kind, flags, stream_id = _HEAD(data, pos)
            length = length << 8 | low
            if length > MAX_FRAME:
                raise ProtocolError(wire.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = pos + 9 + length
            if end > size:
                self._need = end - pos
                return pos
            stream_id &= 0x7FFF_FFFF
            if self._open_block is not None and kind != wire.CONTINUATION:
                raise ProtocolError(wire.PROTOCOL_ERROR, "a header block is not ended")
            if kind == wire.DATA:
                self._on_data(flags, stream_id, pos + 9, end)
            else:
                handler = self._handlers.get(kind)
                if handler is not None:  # unknown types are ignored (RFC 9113, 4.1)
                    handler(flags, stream_id, bytes(data[pos + 9 : end]))
                elif kind == wire.PUSH_PROMISE:
                    raise ProtocolError(wire.PROTOCOL_ERROR, "PUSH_PROMISE")
            pos = end
            if self.closing:
                return size
        self._need = 9
        return pos

    # Frames.

    def _on_data(self, flags: int, stream_id: int, start: int, end: int) -> None:
        self._consumed += end - start
        if self._consumed > CONNECTION_WINDOW // 2:
            self.write(wire.window_update(0, self._consumed))
            self._consumed = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or not self._seen(stream_id):
                raise ProtocolError(wire.PROTOCOL_ERROR, f"DATA for idle stream {stream_id}")
            return  # it ended here while the frame was on its way
        if flags & wire.PADDED:
            padding = self._buffer[start] if end > start else 0
            if start + 1 + padding > end:
                raise ProtocolError(wire.PROTOCOL_ERROR, "more padding than frame")
            start, end = start + 1, end - padding
        if end > start:
            stream.receive_data(self._view[start:end])
        if flags & wire.END_STREAM:
            stream.receive_end()

    def _seen(self, stream_id: int) -> bool:
        """Return whether a stream of this number was opened, by either end."""
        if (stream_id & 1) == self.server:
            return stream_id <= self._last
        return stream_id < self._next

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        start, end = 0, len(payload)
        if flags & wire.PADDED:
            start, end = 1, end - (payload[0] if payload else 0)
        if flags & wire.HAS_PRIORITY:
            start += 5
        if stream_id == 0 or start > end:
            raise ProtocolError(wire.PROTOCOL_ERROR, "a HEADERS frame that cannot be")
        self._open_block = (stream_id, flags, bytearray(payload[start:end]))
        if flags & wire.END_HEADERS:
            self._end_block()

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._open_block is None or self._open_block[0] != stream_id:
            raise ProtocolError(wire.PROTOCOL_ERROR, "CONTINUATION of nothing")
        block = self._open_block[2]
        block += payload
        if len(block) > MAX_BLOCK or not payload:
            raise ProtocolError(wire.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & wire.END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        assert self._open_block is not None
        stream_id, flags, raw = self._open_block
        self._open_block = None
        headers = self._blocks.decode(bytes(raw))  # always: the table must stay in step
        stream = self.streams.get(stream_id)
        end = bool(flags & wire.END_STREAM)
        try:
            if stream is None:
                stream = self._opened(stream_id, headers) if self.server else None
            elif not self.server:
                stream.receive_headers(headers, end)
                return
            elif not end:
                raise ProtocolError(wire.PROTOCOL_ERROR, "HEADERS amid a request")
        except ValueError as exc:
            raise ProtocolError(wire.PROTOCOL_ERROR, str(exc)) from exc
        if end and stream is not None:
            stream.receive_end()

    def _opened(self, stream_id: int, headers: list[tuple[str, str]]) -> Stream | None:
        if not stream_id & 1:
            raise ProtocolError(wire.PROTOCOL_ERROR, f"a client opened stream {stream_id}")
        if stream_id <= self._last:
            return None  # trailers of a call that ended here meanwhile
        self._last = stream_id
        if self.closing_soon or len(self.streams) >= MAX_STREAMS:
            error = wire.REFUSED_STREAM.to_bytes(4, "big")
            self.write(wire.frame(wire.RST_STREAM, 0, stream_id, error))
            return None
        stream = Stream(self, stream_id, self._stream_room)
        self.streams[stream_id] = stream
        size = sum(len(name) + len(value) for name, value in headers)
        if size > MAX_HEADERS:
            stream.refuse(8, f"The call's headers have {size} bytes; at most {MAX_HEADERS} may be.")
            return None
        try:
            stream.receive_headers(headers, False)
        except ValueError as exc:
            stream.refuse(13, f"A header cannot be read: {exc}.")
            return None
        assert self._accept is not None
        self._accept(stream)
        return stream

    def _on_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4 or not self._seen(stream_id) or stream_id == 0:
            raise ProtocolError(wire.PROTOCOL_ERROR, "RST_STREAM that cannot be")
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.receive_reset(int.from_bytes(payload, "big"))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & wire.ACK and payload):
            raise ProtocolError(wire.FRAME_SIZE_ERROR, "SETTINGS that cannot be")
        if flags & wire.ACK:
            return
        for i in range(0, len(payload), 6):
            key = int.from_bytes(payload[i : i + 2], "big")
            value = int.from_bytes(payload[i + 2 : i + 6], "big")
            if key == wire.SET_INITIAL_WINDOW:
                if value > wire.MAX_WINDOW:
                    raise ProtocolError(wire.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large")
                grown, self._stream_room = value - self._stream_room, value
                for stream in self.streams.values():
                    stream.room += grown
            elif key == wire.SET_MAX_FRAME:
                if not wire.DEFAULT_FRAME <= value < 1 << 24:
                    raise ProtocolError(wire.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")
                self.max_frame = value
        self._answer(wire.frame(wire.SETTINGS, wire.ACK, 0))
        self._pump()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8 or stream_id:
            raise ProtocolError(wire.FRAME_SIZE_ERROR, "PING that cannot be")
        if not flags & wire.ACK:
            self._answer(wire.frame(wire.PING, wire.ACK, 0, payload))

    def _answer(self, data: bytes) -> None:
        if self.output is not None and self.output.unsent() > MAX_UNREAD:
            raise ProtocolError(wire.ENHANCE_YOUR_CALM, "answers are not read")
        self.write(data)

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        self.closing_soon = True

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        count = int.from_bytes(payload, "big") & 0x7FFF_FFFF
        if len(payload) != 4 or count == 0:
            raise ProtocolError(wire.PROTOCOL_ERROR, "WINDOW_UPDATE that cannot be")
        if stream_id == 0:
            self.room += count
            if self.room > wire.MAX_WINDOW:
                raise ProtocolError(wire.FLOW_CONTROL_ERROR, "a window over 2^31-1")
            self._pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self._seen(stream_id):
                raise ProtocolError(wire.PROTOCOL_ERROR, f"WINDOW_UPDATE for idle {stream_id}")
            return
        stream.room += count
        if stream.room > wire.MAX_WINDOW:
            stream.reset(wire.FLOW_CONTROL_ERROR)
        elif stream_id in self.blocked:
            del self.blocked[stream_id]
            stream.pump()

    def _pump(self) -> None:
        blocked, self.blocked = self.blocked, {}
        for stream in blocked.values():
            stream.pump()

    # For the owner.

    def open(self, path: str, authority: str, metadata: wire.Metadata = ()) -> Stream:
        """Open a call from here."""
        stream = Stream(self, self._next, self._stream_room)
        self._next += 2
        self.streams[stream.id] = stream
        self.write_headers(stream.id, wire.request_block(path, authority, metadata), 0)
        return stream

    def write_headers(self, stream_id: int, block: bytes, flags: int) -> None:
        """Write a header block as one frame, or as several where the other end wants that."""
        limit = self.max_frame
        if len(block) <= limit:
            self.write(wire.frame(wire.HEADERS, flags | wire.END_HEADERS, stream_id, block))
            return
        self.write(wire.frame(wire.HEADERS, flags, stream_id, block[:limit]))
        for i in range(limit, len(block), limit):
            last = wire.END_HEADERS if i + limit >= len(block) else 0
            self.write(wire.frame(wire.CONTINUATION, last, stream_id, block[i : i + limit]))

    def go_away(self) -> None:
        """Take no more calls."""
        if not self.closing and not self.closing_soon:
            self.closing_soon = True
            self.write(wire.frame(wire.GOAWAY, 0, 0, self._last.to_bytes(4, "big") + b"\0\0\0\0"))

    def abort(self, code: int, why: str) -> None:
        """End the connection for a fault of the other end."""
        if self.closing:
            return
        log.warning("connection ended", extra={"peer": self.peer, "reason": why})
        head = self._last.to_bytes(4, "big") + code.to_bytes(4, "big")
        self.write(wire.frame(wire.GOAWAY, 0, 0, head + why.encode()[:200]))
        self.close()

    def kill(self) -> None:
        """Close now; what was not sent is lost."""
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close when everything written has left."""
        self.closing = True
        if self._transport is not None:
            self.flush()
            self._transport.close()


def _discard(data: bytes | memoryview) -> None:
    return
