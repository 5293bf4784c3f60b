"""The wire of a connection, bounded: heads that are large or slow, and clients that do not read."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 32 << 10  # bytes of a request's first line and headers
HEAD_S = 15.0  # how long they may take once a connection is open or their first byte is there
UNREAD_S = 60.0  # how long a client may leave what it asked for unread
_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds that it has none for."""

    _head = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, self._refuse, _SLOW)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of heads."""
        if self._in_head:
            self._head += len(data)
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_S, self._refuse, _SLOW)
        super().data_received(data)
        if self._in_head and self._head > MAX_HEAD:
            self._refuse(_LARGE)

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End it. One that came whole in one read may be large, too."""
        self._in_head, self._head = False, 0
        self._stop_timers()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD:
            self._refuse(_LARGE)
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next head, whose time begins with its first byte."""
        self._in_head = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_timers()
        if self._read_timer is not None:
            self._read_timer.cancel()
        super().connection_lost(exc)

    def _stop_timers(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()
