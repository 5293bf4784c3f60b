"""The bytes of a connection on their way out."""

from __future__ import annotations

import asyncio
import os
from typing import Any

_IOV = 512  # buffers in one writev; the limit of Linux is 1024


class Output:
    """Collects what is written in one round of the loop, and sends it with one system call.

    uvloop sends what its transports are given only when the round is over. Whoever has made a
    batch big enough to be worth its system call calls `flush`, so that the other end works on it
    while this one goes on. What the socket does not take is the transport's to send.
    """

    def __init__(self, transport: Any) -> None:
        """Write to `transport`."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes | memoryview] = []
        self._due = False  # `_round_over` will be called
        self._lent = False
        self._handed = False  # the transport has bytes that it has not sent, as far as we know
        # The socket's buffer stays as it is: with twice the room 4 MiB go through a fifth faster,
        # and small calls beside them wait three times as long.
        plain = transport.get_extra_info("sslcontext") is None
        self._socket: int | None = transport.get_extra_info("socket").fileno() if plain else None

    def write(self, data: bytes | memoryview) -> None:
        """Send in this round."""
        self._parts.append(data)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._round_over)

    def _round_over(self) -> None:
        self._due = False
        if self._handed and not self._transport.get_write_buffer_size():
            self._handed = False
        self.flush()

    def flush(self) -> None:
        """Send what was written."""
        if self._lent:
            return
        parts, self._parts = self._parts, []
        if self._transport.is_closing():
            return  # its socket's number may be somebody else's already
        if self._socket is not None and not self._handed and parts:
            try:
                sent = os.writev(self._socket, parts[:_IOV])
            except OSError:  # full; or broken, which the transport will find, too
                sent = 0
            parts = _rest(parts, sent)
        if parts:
            self._handed = True
            self._transport.writelines(parts)
            if not self._due:
                self._due = True
                self._loop.call_soon(self._round_over)

    def socket_number(self) -> int | None:
        """Return the descriptor of a socket that takes plain bytes; None where there is none."""
        return None if self._transport.is_closing() else self._socket

    def lend(self) -> None:
        """Keep what is written from now on: somebody else sends on the socket."""
        self._lent = True

    def take_back(self) -> None:
        """Send again, first what was kept."""
        self._lent = False
        self.flush()

    def unsent(self) -> int:
        """Return how many bytes the other end has not taken, about."""
        size: int = self._transport.get_write_buffer_size()
        return size + sum(map(len, self._parts))


def _rest(parts: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:] if sent else part, *parts[index + 1 :]]
        sent -= len(part)
    return []
