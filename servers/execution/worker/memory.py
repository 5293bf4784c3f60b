"""The worker's use of shared memory: tensors come and go as buffers of the memory server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import grpc

from llmos.api.execution.v1 import predict_pb2 as pb
from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.bufferkey import key_of
from llmos.lib.buffers import BufferClient, Mapping
from llmos.lib.call import background
from llmos.lib.errors import FailedPrecondition, OutOfRange

_GIVEN_S = 5.0  # how long a buffer that we gave away waits for its reader to open it
_IDLE_S = 30.0  # how long a mapping that is used again and again is kept


class SharedMemory:
    """Opens and makes buffers. For one event loop."""

    def __init__(self, channel: grpc.aio.Channel | None) -> None:
        """Reach the memory server over `channel`; None when there is no kernel to reach it by."""
        self._buffers = BufferClient(channel) if channel is not None else None
        self._kept: dict[tuple[str, bool], tuple[Mapping, float]] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._giving: set[asyncio.Task[None]] = set()

    async def open(self, handle: BufferHandle, *, write: bool = False) -> Mapping:
        """Map a buffer, and keep it mapped while it is used now and then.

        Raises as BufferClient.open; FailedPrecondition NO_MEMORY without a kernel.
        """
        key = (key_of(handle), write)
        found = self._kept.get(key)
        mapping = found[0] if found is not None and not found[0].lost else None
        if mapping is None:
            mapping = await self._client().open(handle, write=write)
        self._kept[key] = (mapping, time.monotonic())
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = background(self._sweep())
        return mapping

    async def once(self, range: pb.BufferRange) -> memoryview:
        """Return a part of a buffer that is opened for this one use; its memory goes with the view.

        Raises as `open`; OutOfRange BAD_RANGE.
        """
        mapping = await self._client().open(range.handle)
        try:
            return part(mapping, range.offset, range.size)
        finally:
            self.free_soon(mapping)

    async def lend(self, data: bytes) -> Mapping:
        """Return a new buffer with `data`, to be freed by `free_soon`. Raises as BufferClient."""
        client = self._client()
        mapping = await client.create(len(data), "a pipeline's tensor")
        mapping.view[:] = data
        return mapping

    def free_soon(self, mapping: Mapping) -> None:
        """Free a buffer without waiting for it."""
        self._in_background(self._client().free(mapping))

    async def give(self, data: bytes) -> pb.BufferRange:
        """Return a new buffer with `data`, which its reader must open within seconds."""
        client = self._client()
        mapping = await client.create(len(data), "a worker's answer")
        mapping.view[:] = data
        await client.seal(mapping)
        self._in_background(self._let_go(mapping))
        return pb.BufferRange(handle=mapping.handle, offset=0, size=len(data))

    async def close(self) -> None:
        """Let go of everything."""
        for task in [*self._giving, *([self._sweeping] if self._sweeping else [])]:
            task.cancel()
        if self._buffers is not None:
            await self._buffers.close()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = background(work)
        self._giving.add(task)
        task.add_done_callback(self._giving.discard)

    def _client(self) -> BufferClient:
        if self._buffers is None:
            raise FailedPrecondition(
                "NO_MEMORY",
                "There is no kernel here by which the memory server could be reached; send the "
                "elements in the message.",
            )
        return self._buffers

    async def _let_go(self, mapping: Mapping) -> None:
        await asyncio.sleep(_GIVEN_S)
        await self._client().free(mapping)

    async def _sweep(self) -> None:
        while self._kept:
            await asyncio.sleep(_IDLE_S / 4)
            old = time.monotonic() - _IDLE_S
            for key in [k for k, (_, used) in self._kept.items() if used < old]:
                mapping, _ = self._kept.pop(key)
                await self._client().free(mapping)


def part(mapping: Mapping, offset: int, size: int) -> memoryview:
    """Return a part of a mapping. Raises OutOfRange BAD_RANGE."""
    if offset + size > mapping.handle.size:
        raise OutOfRange(
            "BAD_RANGE",
            f"{size:,} bytes from byte {offset:,} do not fit in the buffer's "
            f"{mapping.handle.size:,} bytes.",
        )
    return mapping.view[offset : offset + size]
