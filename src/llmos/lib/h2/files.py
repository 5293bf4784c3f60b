"""Sending parts of files on a stream without their bytes passing through this process's memory.

The kernel copies from the page cache into the socket (sendfile(2)), in a thread, as it may have to
wait for a disk. While the thread has the socket nothing else leaves on the connection: this is for
connections that are there for large reads.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Sequence
from typing import NamedTuple

from llmos.lib.h2 import wire
from llmos.lib.h2.stream import Stream

SEND_BUFFER = 4 << 20  # of a Unix socket, bytes: fewer wake-ups; the system may allow less
_POLL_MS = 500


class Part(NamedTuple):
    """A message: `head`, then `size` bytes of a file from `offset` on."""

    head: bytes
    offset: int
    size: int

    @property
    def length(self) -> int:
        """Return the payload bytes of the DATA frame that it fills."""
        return 5 + len(self.head) + self.size


class Broken(Exception):
    """The connection broke, or had to be ended in the middle of a message."""


class FileSender:
    """Sends messages that end with bytes of one file, on one stream of a server."""

    def __init__(self, stream: Stream, file: int) -> None:
        """Send from the descriptor `file` on `stream`, -1 = never; `close` when done."""
        self._stream = stream
        self._file = file
        self._socket: socket.socket | None = None
        output = stream.connection.output
        number = output.socket_number() if output is not None else None
        if number is not None and file >= 0:
            self._socket = socket.socket(fileno=os.dup(number))
            if self._socket.family == socket.AF_UNIX:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def close(self) -> None:
        """Give the socket back. Not while `send` runs."""
        if self._socket is not None:
            self._socket.close()

    async def send(self, parts: Sequence[Part]) -> int:
        """Send the first of the parts, as many as there is room for; return how many.

        0 when none can be sent like this now: other bytes wait, or the other end takes only
        smaller frames. Raises Broken, also where the file is shorter than said. A cancellation
        takes effect after the parts.
        """
        stream, connection = self._stream, self._stream.connection
        output = connection.output
        if self._socket is None or output is None or not stream.writable:
            return 0
        stream.send_headers()
        output.flush()
        taken = []
        if not output.unsent() and not connection.closing and not stream.closed_here:
            for part in parts:
                if part.length > min(stream.room, connection.room, connection.max_frame):
                    break
                stream.room -= part.length
                connection.room -= part.length
                taken.append(part)
        if not taken:
            return 0
        work = asyncio.ensure_future(asyncio.to_thread(self._send, taken))
        output.lend()
        try:
            await asyncio.wait([work])
        finally:
            if not work.done():  # half a message must not be followed by another
                await asyncio.wait([work])
            if work.exception() is not None:
                connection.kill()
            output.take_back()
        work.result()
        return len(taken)

    def _send(self, parts: Sequence[Part]) -> None:
        assert self._socket is not None
        try:
            self._send_all(self._socket, parts)
        except OSError as exc:
            raise Broken(str(exc)) from exc

    def _send_all(self, out: socket.socket, parts: Sequence[Part]) -> None:
        number = out.fileno()
        for part in parts:
            head = wire.message_head(self._stream.id, len(part.head) + part.size) + part.head
            while head:
                try:
                    head = head[out.send(head, socket.MSG_MORE) :]
                except BlockingIOError:
                    self._wait(number)
            offset, end = part.offset, part.offset + part.size
            while offset < end:
                try:
                    done = os.sendfile(number, self._file, offset, end - offset)
                except BlockingIOError:
                    self._wait(number)
                    continue
                if not done:
                    raise Broken(f"the file ends at {offset} and not at {end}")
                offset += done

    def _wait(self, number: int) -> None:
        """Return when the socket takes more. Raises Broken."""
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        while not poll.poll(_POLL_MS):
            if self._stream.connection.closing:
                raise Broken("the connection was closed")
