"""`Port/Attach`: one gRPC stream per attached process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.events import Received
from llmos.kernel.transport.hub import Hub, Sink
from llmos.lib import rpc
from llmos.lib.errors import InvalidArgument, LLMOSError, ResourceExhausted
from llmos.lib.outbox import Outbox

_MAX_UNREAD = 256 << 20  # bytes kept for a peer that does not read
_LAST_WRITE_S = 2.0  # a peer that does not even read gets no status


class Attachment:
    """The transport's side of one port."""

    def __init__(self, hub: Hub) -> None:
        """Prepare; `run` attaches."""
        self._hub = hub
        self._outbox = Outbox()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _send(self, envelopes: Sequence[pb.Envelope]) -> None:
        if self._outbox.put_all(envelopes) > _MAX_UNREAD:
            self._close(
                ResourceExhausted("NOT_READING", "The process has not read what was sent to it.")
            )

    def _close(self, err: LLMOSError) -> None:
        if not self._closed.done():
            self._closed.set_exception(err)

    async def run(self, frames: AsyncIterator[bytes], context: Any) -> None:
        """Carry frames until either side ends the stream."""
        port = self._hub.attach(Sink(self._send, self._close))
        loop = asyncio.get_running_loop()
        reader = loop.create_task(self._read(port, frames))
        writer = loop.create_task(self._outbox.run(context.write))
        error: LLMOSError | None = None
        try:
            await asyncio.wait({reader, writer, self._closed}, return_when=asyncio.FIRST_COMPLETED)
            for future in (self._closed, reader):
                if future.done():
                    future.result()
        except LLMOSError as err:
            error = err
        finally:
            self._hub.detach(port)  # first: who sees the status may count on the port being gone
            self._closed.cancel()
            reader.cancel()
            if error is not None:
                # gRPC takes no status while a write is in flight.
                self._outbox.close()
                await asyncio.wait({writer}, timeout=_LAST_WRITE_S)
            written = writer.done()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        if error is not None and written:
            await rpc.abort(context, error)

    async def _read(self, port: int, frames: AsyncIterator[bytes]) -> None:
        limit = self._hub.core.limits.max_frame_bytes
        feed = self._hub.feed
        async for data in frames:
            if len(data) > limit:
                raise ResourceExhausted(
                    "FRAME_TOO_LARGE",
                    f"A frame of {len(data)} bytes; at most {limit} are allowed: split messages.",
                )
            try:
                frame = pb.Frame.FromString(data)
            except DecodeError:
                raise InvalidArgument("BAD_FRAME", "A frame does not parse.") from None
            feed(Received(port, frame.envelopes))
