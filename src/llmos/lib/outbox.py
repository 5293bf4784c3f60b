"""Envelopes on their way out: what queues up until the loop comes round leaves as one frame."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.cargo import LARGE, Cargo, varint
from llmos.lib.h2.stream import Stream

FRAME_BYTES = 256 << 10  # a frame is filled up to this; with one more chunk it stays < 1 MiB
BATCH = 16  # so many leave at once, so that the other end works on them while more are made
HIGH_WATER = 2 << 20  # bytes queued from which on senders of large messages wait


_ENVELOPES = bytes((pb.Frame.ENVELOPES_FIELD_NUMBER << 3 | 2,))
# Tag and length of one `Frame.envelopes` entry. Joining encoded envelopes takes two thirds of the
# time of filling a Frame message with them.
_HEADS = [_ENVELOPES + varint(size) for size in range(4096)]


class Queued(NamedTuple):
    """An envelope that waits to be sent."""

    call: int
    kind: int
    head: bytes  # what comes before `data` in a Frame
    data: bytes | memoryview
    size: int  # of both, bytes


_new = tuple.__new__  # half the time of the class's own


def _queued(envelope: pb.Envelope) -> Queued:
    if isinstance(envelope, Cargo):
        inner = envelope.head()
        payload = envelope.payload
        head = _ENVELOPES + varint(len(inner) + len(payload)) + inner
        return Queued(envelope.call, envelope.kind, head, payload, len(head) + len(payload))
    data = envelope.SerializeToString()
    size = len(data)
    head = _HEADS[size] if size < 4096 else _ENVELOPES + varint(size)
    return _new(Queued, (envelope.call, envelope.kind, head, data, size + len(head)))


class Outbox:
    """A queue of envelopes with one writer.

    Pieces of large messages but the first wait apart, with whatever follows them in their calls,
    and every frame takes the others first and then a piece: a call is in order, calls are opened
    in order, and no small one waits for the later pieces of others that came before it.
    """

    def __init__(self) -> None:
        """Start empty and held: nothing is sent before `start`."""
        self._queue: deque[Queued] = deque()
        self._bulk: deque[Queued] = deque()
        self._bulky: dict[int, int] = {}  # calls with something in `_bulk`: how much
        self._bytes = 0
        self._stream: Stream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = False  # `_flush` will be called
        self._full = False
        self.on_full: Callable[[bool], None] | None = None

    def start(self, stream: Stream) -> None:
        """Send what is queued, and what will be, over a stream."""
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        stream.on_room = self._flush
        self._flush()

    def stop(self) -> None:
        """Send no more; what comes is kept."""
        self._stream = None

    def put(self, envelope: pb.Envelope) -> None:
        """Queue an envelope. It may be changed afterwards: it is encoded here."""
        self.put_again(_queued(envelope))

    def put_again(self, queued: Queued) -> None:
        """Queue what `restart` returned."""
        self._add(queued)
        self._bytes += queued.size
        if len(self._queue) >= BATCH:
            self._flush()
        elif not self._due and self._stream is not None:
            self._schedule()
        if self._bytes > HIGH_WATER and not self._full:
            self._set_full(True)

    def put_all(self, envelopes: Iterable[pb.Envelope]) -> int:
        """Queue envelopes in order; return how many bytes are queued now."""
        size = 0
        for envelope in envelopes:
            queued = _queued(envelope)
            self._add(queued)
            size += queued.size
        self._bytes += size
        if len(self._queue) >= BATCH:
            self._flush()
        elif not self._due and self._stream is not None:
            self._schedule()
        return self._bytes

    def _add(self, queued: Queued) -> None:
        call = queued.call
        # What opens a call keeps its place, however large: the ids of calls only grow.
        small = queued.size < LARGE or queued.kind == pb.KIND_OPEN
        if small and call not in self._bulky:
            self._queue.append(queued)
        elif call:
            self._bulk.append(queued)
            self._bulky[call] = self._bulky.get(call, 0) + 1
        else:  # about the port itself
            self._queue.append(queued)

    def _schedule(self) -> None:
        # After everything that is ready now has run, so that its envelopes go out together.
        assert self._loop is not None
        self._due = True
        self._loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._due = False
        self._flush()

    def _flush(self) -> None:
        stream = self._stream
        while (self._queue or self._bulk) and stream is not None and stream.writable:
            stream.send_parts(*self.take())
            stream.connection.flush()

    def _set_full(self, full: bool) -> None:
        self._full = full
        if self.on_full is not None:
            self.on_full(full)

    def holds(self, call: int) -> bool:
        """Return whether the OPEN of a call is still here, so that nobody has seen it."""
        return any(q.call == call and q.kind == pb.KIND_OPEN for q in self._all())

    def _all(self) -> list[Queued]:
        return [*self._queue, *self._bulk]

    def hold(self) -> None:
        """Forget what means nothing to another kernel; keep calls that were not opened yet."""
        unseen = {q.call for q in self._all() if q.kind == pb.KIND_OPEN}
        for queued in self.restart():
            if queued.call in unseen and queued.kind not in (pb.KIND_EXPORT, pb.KIND_DRAIN):
                self._add(queued)
                self._bytes += queued.size
        self._relieve()

    def restart(self) -> list[Queued]:
        """Empty the queue and return what was in it."""
        waiting = self._all()
        self._queue.clear()
        self._bulk.clear()
        self._bulky.clear()
        self._bytes = 0
        self._relieve()
        return waiting

    def _relieve(self) -> None:
        if self._full and self._bytes <= HIGH_WATER // 2:
            self._set_full(False)

    async def flushed(self) -> None:
        """Return when everything queued has been sent."""
        while self._bytes or (self._stream is not None and not self._stream.writable):
            await asyncio.sleep(0.001)

    def take(self) -> tuple[list[bytes | memoryview], int]:
        """Return the next frame's bytes, in parts, and their number."""
        queue, bulk = self._queue, self._bulk
        parts: list[bytes | memoryview] = []
        size = 0
        while queue and size < FRAME_BYTES:
            _, _, head, data, length = queue.popleft()
            parts.append(head)
            parts.append(data)
            size += length
        if bulk and size <= FRAME_BYTES + FRAME_BYTES // 2:  # not after an OPEN with a chunk
            call, _, head, data, length = bulk.popleft()
            left = self._bulky.pop(call) - 1
            if left:
                self._bulky[call] = left
            parts.append(head)
            parts.append(data)
            size += length
        self._bytes -= size
        self._relieve()
        return parts, size
