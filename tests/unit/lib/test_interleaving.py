"""Large messages are cut, and small ones go between the pieces: by order alone, without a clock."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import grpc

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.channel import PortChannel
from llmos.lib.handlers import Handlers
from llmos.lib.outbox import Outbox
from llmos.lib.session import Session
from llmos.lib.stream import CHUNK

WINDOW = 1 << 20
MOST_FRAME = 1 << 20


class Wire:
    """One direction: an outbox whose frames are carried one at a time, when the test says so."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.envelopes: list[pb.Envelope] = []  # all that passed
        self.frames: list[int] = []  # their sizes

    def carry(self, receive: Callable[[pb.Envelope], None]) -> bool:
        """Take one frame to the other end; return whether there was one."""
        if not self.outbox._bytes:
            return False
        parts, _ = self.outbox.take()
        data = b"".join(parts)
        self.frames.append(len(data))
        for envelope in pb.Frame.FromString(data).envelopes:
            self.envelopes.append(envelope)
            receive(envelope)
        return True


class Ends:
    """A client's and a server's session, back to back."""

    def __init__(self) -> None:
        self.there, self.back = Wire(), Wire()
        self.handlers = Handlers()
        self.client = Session(self.there.outbox.put, window=WINDOW)
        self.server = Session(self.back.outbox.put, window=WINDOW, serve=self._serve)
        self.there.outbox.on_full = self.client.set_full
        self.back.outbox.on_full = self.server.set_full
        echo: Any = grpc.unary_unary_rpc_method_handler(self._echo)
        self.handlers.add("x.Y", {"Echo": echo})
        self.call: Any = PortChannel(self.client).unary_unary("/x.Y/Echo")
        self.served: list[int] = []  # sizes, in the order of arrival

    def _serve(self, stream: Any) -> None:
        self.handlers.start(stream)

    async def _echo(self, request: bytes, context: Any) -> bytes:
        self.served.append(len(request))
        return request

    async def run(self, *calls: Any) -> list[bytes]:
        """Carry frames until all calls are answered."""
        waiting = asyncio.gather(*calls)
        while not waiting.done():
            self.there.carry(self.server.receive)
            self.back.carry(self.client.receive)
            await asyncio.sleep(0)
        return list(await waiting)


async def test_a_small_call_overtakes_a_large_one() -> None:
    ends = Ends()
    large, small = os.urandom(8 << 20), b"small"
    first = asyncio.ensure_future(ends.call(large)._result())
    for _ in range(3):
        await asyncio.sleep(0)  # it is under way
    assert await ends.run(first, ends.call(small)._result()) == [large, small]
    assert ends.served == [5, 8 << 20]
    for wire in (ends.there, ends.back):
        assert max(len(e.payload) for e in wire.envelopes) <= CHUNK
        assert max(wire.frames) < MOST_FRAME
    pieces = [e.call for e in ends.there.envelopes if e.payload]
    assert 0 < pieces.index(3) < len(pieces) - 1  # between pieces of call 1


async def test_large_ones_take_turns() -> None:
    ends = Ends()
    messages = [os.urandom(4 << 20) for _ in range(3)]
    calls = [ends.call(message)._result() for message in messages]
    assert await ends.run(*calls) == messages
    order = [e.call for e in ends.there.envelopes if e.payload]
    halves = order[: len(order) // 2]
    assert {halves.count(call) > 0 for call in (1, 3, 5)} == {True}


async def test_no_more_than_a_window_is_under_way() -> None:
    ends = Ends()
    call = asyncio.ensure_future(ends.call(os.urandom(16 << 20))._result())
    for _ in range(200):
        ends.there.carry(lambda _: None)  # nobody takes it in, so nothing is granted
        await asyncio.sleep(0)
    assert sum(len(e.payload) for e in ends.there.envelopes) <= WINDOW + CHUNK
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
