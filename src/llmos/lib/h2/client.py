"""Connecting: a client's end of an HTTP/2 connection."""

from __future__ import annotations

import asyncio
import functools

from llmos.lib.errors import Unavailable
from llmos.lib.h2.address import host_port, unix_path
from llmos.lib.h2.connection import WINDOW, Connection

CONNECT_S = 5.0


async def connect(address: str, window: int = WINDOW) -> Connection:
    """Return a connection to a gRPC address, which takes `window` bytes of a stream unread.

    Raises Unavailable CONNECTION_FAILED.
    """
    loop = asyncio.get_running_loop()
    path = unix_path(address)
    make = functools.partial(Connection, window=window)
    try:
        async with asyncio.timeout(CONNECT_S):
            if path is not None:
                _, connection = await loop.create_unix_connection(make, path)
            else:
                host, port = host_port(address)
                _, connection = await loop.create_connection(make, host, port)
    except (OSError, ValueError) as exc:  # TimeoutError is an OSError
        why = getattr(exc, "strerror", None) or str(exc) or "it does not answer"
        raise Unavailable("CONNECTION_FAILED", f"Cannot connect to {address}: {why}.") from exc
    return connection
