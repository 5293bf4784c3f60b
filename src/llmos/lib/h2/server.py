"""Listening: a server's end of HTTP/2 connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from weakref import ref

from llmos.lib.h2.address import bound_socket
from llmos.lib.h2.connection import Connection
from llmos.lib.h2.stream import Stream

BACKLOG = 1024
QUIET_S = 20.0  # a connection on which no call was opened for so long is closed
_FLUSH_S = 0.5


class Server:
    """Takes connections; `accept(stream)` is called for every call, in the loop's thread."""

    def __init__(self, accept: Callable[[Stream], None], max_message: int) -> None:
        """Prepare. max_message: bytes of a request message that are taken."""
        self._accept = accept
        self._max_message = max_message
        self._connections: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._bound: list[socket.socket] = []

    def bind(self, address: str, setting: str) -> None:
        """Take an address; see `bound_socket`. Raises FailedPrecondition ADDRESS_IN_USE."""
        self._bound.append(bound_socket(address, setting))

    async def start(self) -> None:
        """Listen on the addresses bound."""
        loop = asyncio.get_running_loop()
        for sock in self._bound:
            if sock.family == socket.AF_UNIX:
                made = await loop.create_unix_server(self._connection, sock=sock, backlog=BACKLOG)
            else:
                made = await loop.create_server(self._connection, sock=sock, backlog=BACKLOG)
            self._listeners.append(made)
        self._bound.clear()

    def _connection(self) -> Connection:
        connection = Connection(self._accept, self._connections.discard, self._max_message)
        self._connections.add(connection)
        # The timer must not keep what has ended: a connection takes kilobytes.
        asyncio.get_running_loop().call_later(QUIET_S, self._end_if_quiet, ref(connection))
        return connection

    def _end_if_quiet(self, which: ref[Connection]) -> None:
        # Only before the first call: clients keep idle connections for later calls.
        connection = which()
        if connection is not None and not connection.greeted and not connection.closing:
            connection.abort(0, "no HTTP/2 preface came")

    def stop_listening(self) -> None:
        """Take no more connections and no more calls."""
        for sock in self._bound:
            sock.close()
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.go_away()

    async def close(self) -> None:
        """Close every connection once what was written has left."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.close()
        deadline = asyncio.get_running_loop().time() + _FLUSH_S
        while self._connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        for connection in list(self._connections):
            connection.kill()
