"""Reads of blobs at the speed of the disk: `Blobs/ReadBlob` on an address of its own.

What a read costs is copying, in Python's gRPC several times on each side. Here the kernel sends
plain files from its page cache (lib.h2.files), and `llmos.lib.bulk` takes them without a copy. It
is plain gRPC all the same: any client may call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.lib.bulk import READ_BLOB
from llmos.lib.errors import Cancelled, InvalidArgument, Unimplemented
from llmos.lib.h2.address import unix_path
from llmos.lib.h2.files import Broken, FileSender, Part
from llmos.lib.h2.server import Server
from llmos.lib.h2.stream import Stream
from llmos.lib.rpc import from_exception
from llmos.lib.status import to_wire
from llmos.servers.storage import names
from llmos.servers.storage.blobs import Blobs
from llmos.servers.storage.blobs.reader import Bytes
from llmos.servers.storage.config import StorageConfig

PIECE = 1 << 20  # bytes of one message: the least work per byte, and any client takes it
_AT_ONCE = 4  # messages for which the other end has room; see WINDOW in h2.connection
_MAX_REQUEST = 64 << 10
_LAST_S = 1.0  # for what has been begun when the server stops
log = logging.getLogger(__name__)


def address_of(config: StorageConfig) -> str:
    """Return where to listen; "" = nowhere, as where the server's own address is not of Unix."""
    if config.direct:
        return "" if config.direct == "none" else config.direct
    own = config.listen or config.socket("storage")
    return config.socket("blobs") if own.startswith("unix:") else ""


def reachable(address: str, here: bool) -> str:
    """Return the address under which a caller reaches a listener, "" when it cannot.

    here: the caller is on this host.
    """
    if not address:
        return ""
    if address.startswith("unix:"):
        return address if here else ""
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "[::]", ""):
        return f"{'127.0.0.1' if here else _own_name()}:{port}"
    return address if here or not host.startswith(("127.", "localhost", "[::1]")) else ""


@functools.cache
def _own_name() -> str:
    """Return this host's name, for which the resolver may have to be asked: once."""
    return socket.getfqdn()


@contextlib.asynccontextmanager
async def direct_reads(blobs: Blobs, address: str) -> AsyncIterator[None]:
    """Serve reads on `address` while inside; "" = do not. Raises ADDRESS_IN_USE."""
    if not address:
        yield
        return
    reads = DirectReads(blobs, address)
    await reads.start()
    try:
        yield
    finally:
        await reads.close()


class DirectReads:
    """Listens on one address."""

    def __init__(self, blobs: Blobs, address: str) -> None:
        """Prepare to read from `blobs`. Raises FailedPrecondition ADDRESS_IN_USE."""
        self._blobs, self._address = blobs, address
        self._server = Server(self._accept, _MAX_REQUEST)
        self.calls: set[asyncio.Task[None]] = set()
        self._server.bind(address, "--direct (none = do not listen)")

    async def start(self) -> None:
        """Listen."""
        await self._server.start()

    async def close(self) -> None:
        """End the calls, then the connections."""
        self._server.stop_listening()
        for call in self.calls:
            call.cancel()
        if self.calls:  # a cancelled one first sends what it has begun
            await asyncio.wait(self.calls, timeout=_LAST_S)
        await self._server.close()  # which ends also those to clients that do not read
        await asyncio.gather(*self.calls, return_exceptions=True)
        if (path := unix_path(self._address)) is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _accept(self, stream: Stream) -> None:
        if stream.path != READ_BLOB:
            why = f"{stream.path} is not served here, only {READ_BLOB}; ask the server's address."
            stream.finish(*to_wire(Unimplemented("NO_SUCH_METHOD", why)))
            return
        stream.on_message = lambda message: self._begin(stream, message)
        stream.on_half_close = lambda: self._no_request(stream)

    def _no_request(self, stream: Stream) -> None:
        error = Cancelled("NO_REQUEST", "The call ended before its request came.")
        stream.finish(*to_wire(error))

    def _begin(self, stream: Stream, message: bytes) -> None:
        call = asyncio.get_running_loop().create_task(self._run(stream, message))
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        stream.on_message = lambda _: None
        stream.on_half_close = lambda: None

        def ended(*_: object) -> None:
            call.cancel()

        stream.on_end = ended

    async def _run(self, stream: Stream, message: bytes) -> None:
        try:
            async with asyncio.timeout(stream.timeout_s):
                await self._read(stream, message)
        except asyncio.CancelledError:
            stream.reset()
        except Broken as exc:
            log.warning("a read ended early", extra={"cause": str(exc)})
        except Exception as exc:  # the one place where what went wrong becomes a status
            stream.drop_pending()
            stream.finish(*to_wire(from_exception(exc)))
        else:
            stream.finish()

    async def _read(self, stream: Stream, message: bytes) -> None:
        try:
            request = pb.ReadBlobRequest.FromString(message)
        except DecodeError as exc:
            raise InvalidArgument("BAD_MESSAGE", f"The request does not parse: {exc}") from exc
        names.check_digest(request.sha256)
        blob, end = await asyncio.to_thread(
            self._blobs.open_range, request.sha256, request.offset, request.length
        )
        room = asyncio.Event()
        stream.on_room = room.set
        sending = FileSender(stream, blob.descriptor)
        with blob, contextlib.closing(sending) as sender:
            at = request.offset
            while at < end:
                at = await self._step(stream, blob, sender, at, end)
                while not stream.writable:
                    room.clear()
                    await room.wait()

    async def _step(
        self, stream: Stream, blob: Bytes, sender: FileSender, at: int, end: int
    ) -> int:
        """Send the next bytes; return where they end."""
        starts = range(at, end, PIECE)[:_AT_ONCE]
        parts = [Part(field(min(PIECE, end - s)), s, min(PIECE, end - s)) for s in starts]
        if sent := await sender.send(parts):
            return parts[sent - 1].offset + parts[sent - 1].size
        data = await asyncio.to_thread(blob.read, at, parts[0].size)
        stream.send_parts([parts[0].head, data], len(parts[0].head) + len(data))
        stream.connection.flush()
        return at + len(data)


def field(size: int) -> bytes:
    """Return what comes before `size` bytes of data in a ReadBlobResponse."""
    head = bytearray((pb.ReadBlobResponse.DATA_FIELD_NUMBER << 3 | 2,))
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)
