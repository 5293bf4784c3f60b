"""`Port/Attach`: one gRPC stream per attached process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.events import Received
from llmos.kernel.transport.hub import Hub, Sink
from llmos.lib.cargo import unpack
from llmos.lib.errors import InvalidArgument, LLMOSError, ResourceExhausted
from llmos.lib.h2.stream import Stream
from llmos.lib.outbox import BATCH, Outbox
from llmos.lib.status import to_wire

_LAST_WRITE_S = 2.0  # a peer that does not even read gets no status
_MAX_UNREAD = 64 << 20  # bytes kept for a process that does not read


class Attachment:
    """The transport's side of one port."""

    def __init__(self, hub: Hub, stream: Stream) -> None:
        """Attach; frames are carried until either side ends the stream."""
        self._hub = hub
        self._stream = stream
        self._outbox = Outbox()
        self._over = False
        stream.max_message = hub.core.limits.max_frame_bytes
        stream.on_view = self._receive
        stream.on_half_close = self._ended
        stream.on_end = self._ended
        stream.on_fault = self._fault
        self._port = hub.attach(Sink(self._send, self._close))
        self._outbox.start(stream)

    def _receive(self, data: memoryview) -> None:
        try:
            envelopes = unpack(data)
        except DecodeError:
            self._close(InvalidArgument("BAD_FRAME", "A frame does not parse."))
        else:
            for i in range(0, len(envelopes), BATCH):
                self._hub.feed(Received(self._port, envelopes[i : i + BATCH]))
                if self._over:
                    break

    def _send(self, envelopes: Sequence[pb.Envelope]) -> None:
        if self._outbox.put_all(envelopes) > _MAX_UNREAD:
            self._close(
                ResourceExhausted("NOT_READING", "The process has not read what was sent to it.")
            )

    def _fault(self, code: int, message: str) -> None:
        if code == ResourceExhausted.code:
            self._close(ResourceExhausted("FRAME_TOO_LARGE", f"{message} Split messages."))
        else:
            self._close(InvalidArgument("BAD_FRAME", message))

    def _ended(self, *_: object) -> None:
        if not self._over:
            self._over = True
            self._outbox.stop()
            self._hub.detach(self._port)
            self._stream.finish()

    def _close(self, err: LLMOSError) -> None:
        """End the stream with a status. The core may be handling an event at this moment."""
        if not self._over:
            self._over = True
            self._outbox.stop()
            asyncio.get_running_loop().call_soon(self._thrown_out, err)

    def _thrown_out(self, err: LLMOSError) -> None:
        self._hub.detach(self._port)  # first: who sees the status may count on the port being gone
        self._stream.drop_pending()
        self._stream.finish(*to_wire(err))
        asyncio.get_running_loop().call_later(_LAST_WRITE_S, self._stream.reset)
