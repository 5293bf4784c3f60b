"""Ports whose calls make no progress, over a real kernel: who is called hung and who is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmos.api.kernel.v1 import admin_pb2
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.kernel.core.events import PortChange
from llmos.kernel.transport.server import KernelServer
from llmos.lib import call
from llmos.lib.config import ServerConfig
from llmos.lib.port import Port
from llmos.lib.serve import Server

STALL_S = 0.4


class Worker(registry_pb2_grpc.BlobsServicer):
    """StatBlobs works for as long as it is told, or hangs; the blobs are zeros."""

    def __init__(self) -> None:
        self.works_s = 0.0
        self.says_so = True

    async def StatBlobs(self, request: Any, context: Any) -> pb.StatBlobsResponse:
        until = time.monotonic() + self.works_s
        while time.monotonic() < until:
            await asyncio.sleep(0.01)
            if self.says_so:
                call.progress(context)
        return pb.StatBlobsResponse()

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        for _ in range(64):
            yield pb.ReadBlobResponse(data=bytes(100_000))

    async def WriteBlob(self, request_iterator: Any, context: Any) -> pb.WriteBlobResponse:
        size = 0
        async for piece in request_iterator:
            size += len(piece.data)
        return pb.WriteBlobResponse(size=size)


class World:
    """A kernel, a server with a short stall time, and a client."""

    def __init__(self, folder: Path) -> None:
        address = f"unix:{folder}/k.sock"
        self.address, self.kernel, self.worker = address, KernelServer(), Worker()
        config = ServerConfig(state_dir=folder, kernel=address)
        self.server = Server("blobs", config, listen=False)
        self.server.add(
            registry_pb2_grpc.add_BlobsServicer_to_server,
            self.worker,
            stall_ms=int(STALL_S * 1000),
        )
        self.client = Port(address, "client")
        self._stalls = asyncio.Event()
        self.kernel.hub.watchers.add(self._watch)

    async def start(self) -> None:
        await self.kernel.start([self.address])
        await self.server.start()
        await self.client.start()

    async def stop(self) -> None:
        await self.client.stop(0)
        await self.server.stop(0)
        await self.kernel.stop(0)

    @property
    def stub(self) -> registry_pb2_grpc.BlobsAsyncStub:
        return registry_pb2_grpc.BlobsStub(self.client.channel)

    async def stalled(self, seconds: float) -> bool:
        """Return whether the kernel calls the server hung within so many seconds.

        As an event: the port is trusted again as soon as it has stopped the calls taken from it.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._stalls.wait()
        except TimeoutError:
            return False
        return True

    def _watch(self, change: PortChange) -> None:
        if change.what == admin_pb2.WatchPortsResponse.EVENT_STALLED:
            assert change.port.name == "blobs"
            self._stalls.set()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_a_long_call_that_says_it_makes_progress(world: World) -> None:
    world.worker.works_s = 4 * STALL_S
    asking = asyncio.ensure_future(world.stub.StatBlobs(pb.StatBlobsRequest()))
    assert not await world.stalled(3 * STALL_S)
    await asking


async def test_a_long_call_that_does_not(world: World) -> None:
    world.worker.works_s, world.worker.says_so = 60, False
    asking = asyncio.ensure_future(world.stub.StatBlobs(pb.StatBlobsRequest()))
    assert await world.stalled(4 * STALL_S)
    world.worker.works_s = 0
    asking.cancel()


async def test_a_client_that_does_not_read(world: World) -> None:
    """The window is full: the server can do nothing about it."""
    reading = world.stub.ReadBlob(pb.ReadBlobRequest())
    await anext(aiter(reading))
    assert not await world.stalled(4 * STALL_S)
    assert sum([len(piece.data) async for piece in reading]) == 63 * 100_000


async def test_a_client_that_does_not_go_on_writing(world: World) -> None:
    async def pieces() -> AsyncIterator[pb.WriteBlobRequest]:
        yield pb.WriteBlobRequest(data=b"a")
        await asyncio.sleep(4 * STALL_S)
        yield pb.WriteBlobRequest(data=b"b")

    writing = asyncio.ensure_future(world.stub.WriteBlob(pieces()))
    assert not await world.stalled(3 * STALL_S)
    assert (await writing).size == 2


async def test_a_slow_client_hides_no_call_that_hangs(world: World) -> None:
    reading = world.stub.ReadBlob(pb.ReadBlobRequest())
    await anext(aiter(reading))
    world.worker.works_s, world.worker.says_so = 60, False
    asking = asyncio.ensure_future(world.stub.StatBlobs(pb.StatBlobsRequest()))
    assert await world.stalled(4 * STALL_S)
    asking.cancel()
    reading.cancel()


async def test_the_kernel_hears_of_progress_ten_times_a_second_at_most(world: World) -> None:
    world.worker.works_s = 1.0
    before = world.kernel.core.stats.envelopes
    await world.stub.StatBlobs(pb.StatBlobsRequest())
    assert world.kernel.core.stats.envelopes - before < 20
