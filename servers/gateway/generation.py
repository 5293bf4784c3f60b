"""Streams of generations: several as one, and measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import Internal

Stream = AsyncGenerator[pb.GenerateResponse, None]
Piece = tuple[int, pb.GenerateResponse]
Pieces = AsyncGenerator[Piece, None]
_AHEAD = 16  # pieces kept per stream before its producer has to wait for the client


class Meter(Protocol):
    """Who wants to know what generations took."""

    def first_token(self, model: str, seconds: float) -> None:
        """Take the time from the request to a generation's first token."""

    def stopped(self, model: str) -> None:
        """Take that a generation with a first token is over, however it ended."""

    def finished(
        self, model: str, piece: pb.GenerateResponse, first_s: float, whole_s: float
    ) -> None:
        """Take a generation's last piece, its time to the first token and to the end, seconds."""


async def merged(streams: Sequence[Stream]) -> Pieces:
    """Yield the pieces of all streams as they come, with the index of their stream.

    The first error ends all of them.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for piece in stream:
                yield 0, piece
        return
    queue: asyncio.Queue[Piece | None] = asyncio.Queue(_AHEAD * len(streams))

    async def pump(index: int, stream: Stream) -> None:
        async with aclosing(stream):
            async for piece in stream:
                await queue.put((index, piece))

    async def pump_all() -> None:
        # The task group needs a task of its own: a generator may be continued in another task
        # than the one it began in, which task groups do not survive.
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for index, stream in enumerate(streams):
                    group.create_task(pump(index, stream))
        except ExceptionGroup as failed:
            failure = failed.exceptions[0]
        await queue.put(None)
        if failure is not None:
            raise failure

    task = asyncio.create_task(pump_all())
    try:
        while (item := await queue.get()) is not None:
            yield item
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def measured(pieces: Pieces, count: int, meter: Meter) -> Pieces:
    """Yield the same pieces and tell `meter`.

    Raises Internal NO_END when not all `count` generations came to an end.
    """
    start = time.monotonic()
    first: dict[int, float] = {}
    running: dict[int, str] = {}
    models: dict[int, str] = {}
    ended = 0
    try:
        async with aclosing(pieces):
            async for index, piece in pieces:
                now = time.monotonic() - start
                model = models[index] = piece.model or models.get(index, "")
                if index not in first and (piece.token_ids or piece.text):
                    first[index], running[index] = now, model
                    meter.first_token(model, now)
                if piece.finish_reason:
                    ended += 1
                    meter.finished(model, piece, first.get(index, now), now)
                    if index in running:
                        meter.stopped(running.pop(index))
                yield index, piece
    finally:
        for model in running.values():
            meter.stopped(model)
    if ended < count:
        raise Internal("NO_END", "The generation broke off without an end; try again.")
