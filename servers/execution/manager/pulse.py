"""Whether the zygote answers: one that is stopped or stuck is killed, so that a new one comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable

from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.lib.call import background
from llmos.servers.execution.manager.process import Process
from llmos.servers.execution.manager.seams import ZygoteLost

PING_S = 2.0
SILENCE_S = 10.0
_CREDENTIALS = struct.Struct("3i")  # of unix(7): pid, uid, gid

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def watched(
    writer: asyncio.StreamWriter, send: Callable[[pb.ZygoteCommand], None]
) -> AsyncIterator[Callable[[], None]]:
    """Ping the process at the other end of a Unix socket; kill it when it is silent for too long.

    Yields what is to be called whenever something was heard of it.
    """
    last = time.monotonic()

    def heard() -> None:
        nonlocal last
        last = time.monotonic()

    async def ping() -> None:
        nonlocal last
        while time.monotonic() - last < SILENCE_S:
            with contextlib.suppress(ZygoteLost):  # the reader sees the end of it
                send(pb.ZygoteCommand(ping=pb.PingZygote()))
            asleep = time.monotonic()
            await asyncio.sleep(PING_S)
            if time.monotonic() - asleep > 2 * PING_S:  # we were stopped ourselves
                heard()
        log.error("the zygote does not answer: killing it", extra={"silent_s": SILENCE_S})
        await _kill(writer)

    pinging = background(ping())
    try:
        yield heard
    finally:
        pinging.cancel()


async def _kill(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    with contextlib.suppress(ProcessLookupError):
        await Process(_CREDENTIALS.unpack(raw)[0]).kill()
