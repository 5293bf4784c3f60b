"""Envelopes on their way out: what queues up while a write is in flight leaves as one frame."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from llmos.api.kernel.v1 import port_pb2 as pb

FRAME_BYTES = 512 << 10  # payload a frame is filled up to; with one more chunk it stays < 1 MiB
HIGH_WATER = 2 << 20  # payload bytes queued from which on senders of large messages wait
OVERHEAD = 64  # bytes counted per envelope besides its payload
SMALL_BYTES = 32 << 10  # above it, building a Frame costs more than joining its envelopes


def _head(size: int) -> bytes:
    """Return tag and length of one `Frame.envelopes` entry.

    Encoding: https://protobuf.dev/programming-guides/encoding/. Putting a large envelope into a
    Frame message copies its payload into fresh memory, which costs 20 times the joining of bytes.
    """
    head = bytearray((_ENVELOPES,))
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)


_ENVELOPES = pb.Frame.ENVELOPES_FIELD_NUMBER << 3 | 2


class Outbox:
    """A queue of envelopes with one writer."""

    def __init__(self) -> None:
        """Start empty and held: nothing is written before `run`."""
        self._queue: deque[pb.Envelope] = deque()
        self._bytes = 0
        self._sleeper: asyncio.Future[None] | None = None  # `run`, while the queue is empty
        self._busy = False  # a write is in flight
        self._full = False
        self._closed = False
        self.on_full: Callable[[bool], None] | None = None

    def put(self, envelope: pb.Envelope) -> None:
        """Queue an envelope."""
        self._queue.append(envelope)
        self._bytes += len(envelope.payload) + OVERHEAD
        if self._sleeper is not None:
            self._wake()
        if self._bytes > HIGH_WATER and not self._full:
            self._set_full(True)

    def put_all(self, envelopes: Iterable[pb.Envelope]) -> int:
        """Queue envelopes in order; return how many bytes are queued now."""
        queue = self._queue
        size = 0
        for envelope in envelopes:
            queue.append(envelope)
            size += len(envelope.payload) + OVERHEAD
        self._bytes += size
        if self._sleeper is not None:
            self._wake()
        if self._bytes > HIGH_WATER and not self._full:
            self._set_full(True)
        return self._bytes

    def _set_full(self, full: bool) -> None:
        self._full = full
        if self.on_full is not None:
            self.on_full(full)

    def holds(self, call: int) -> bool:
        """Return whether the OPEN of a call is still here, so that nobody has seen it."""
        return any(e.call == call and e.kind == pb.KIND_OPEN for e in self._queue)

    def hold(self) -> None:
        """Forget what means nothing to another kernel; keep calls that were not opened yet."""
        unseen = {e.call for e in self._queue if e.kind == pb.KIND_OPEN}
        self._queue = deque(
            e
            for e in self._queue
            if e.call in unseen and e.kind not in (pb.KIND_EXPORT, pb.KIND_DRAIN)
        )
        self._recount()

    def restart(self) -> list[pb.Envelope]:
        """Empty the queue and return what was in it."""
        waiting = list(self._queue)
        self._queue.clear()
        self._recount()
        return waiting

    def _recount(self) -> None:
        self._bytes = sum(len(e.payload) + OVERHEAD for e in self._queue)
        if self._full and self._bytes <= HIGH_WATER // 2:
            self._set_full(False)

    async def flushed(self) -> None:
        """Return when everything queued has been written."""
        while self._queue or self._busy:
            await asyncio.sleep(0.001)

    def take(self) -> bytes | None:
        """Return the next frame's bytes; None when the queue is empty."""
        queue = self._queue
        if not queue:
            return None
        if self._bytes <= SMALL_BYTES:
            data: bytes = pb.Frame(envelopes=queue).SerializeToString()
            queue.clear()
            self._bytes = 0
            return data
        size = 0
        pieces: list[bytes] = []
        while queue and size < FRAME_BYTES:
            envelope = queue.popleft()
            size += len(envelope.payload) + OVERHEAD
            encoded = envelope.SerializeToString()
            pieces.append(_head(len(encoded)))
            pieces.append(encoded)
        self._bytes -= size
        if self._full and self._bytes <= HIGH_WATER // 2:
            self._set_full(False)
        return b"".join(pieces)

    async def run(self, write: Callable[[bytes], Awaitable[object]]) -> None:
        """Write frames as they come, until `close` or for ever."""
        loop = asyncio.get_running_loop()
        try:
            while not self._closed:
                if not self._queue:
                    self._sleeper = loop.create_future()
                    await self._sleeper
                while not self._closed and (data := self.take()) is not None:
                    self._busy = True
                    await write(data)
                    self._busy = False
        finally:
            self._sleeper, self._busy = None, False

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    def close(self) -> None:
        """Let `run` return as soon as the write in flight, if any, is done."""
        self._closed = True
        if self._sleeper is not None:
            self._wake()
