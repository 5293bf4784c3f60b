"""A real kernel process under attack, with a bystander whose calls must all be answered."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from blob_echo import BlobEcho
from kernel_process import KernelProcess

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.api.kernel.v1 import port_pb2 as wire
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib import rpc
from llmos.lib.config import ServerConfig
from llmos.lib.errors import LLMOSError
from llmos.lib.port import ATTACH, Port
from llmos.lib.serve import OPTIONS, Server

BYSTANDERS = 4  # the kernel's two ports of its own, a server and a client
LEAK_BYTES = 48 << 20  # allocators keep some of what a flood took


@dataclass(frozen=True)
class Counts:
    """What a kernel holds."""

    ports: int
    calls: int
    files: int


def hello(instance: str, name: str = "liar") -> wire.Envelope:
    """Return a HELLO that the kernel takes."""
    told = wire.Hello(protocol=1, name=name, instance=f"instance-{instance}")
    return wire.Envelope(kind=wire.KIND_HELLO, hello=told)


class Siege:
    """The kernel, the bystander's server and client, and means of attack."""

    def __init__(self, kernel: KernelProcess) -> None:
        self.kernel = kernel
        self.address = kernel.address
        self.echo = BlobEcho()
        self.served = 0
        config = ServerConfig(state_dir=kernel.state_dir, kernel=kernel.address)
        self.server = Server("storage", config, listen=False)
        self.server.add(registry_pb2_grpc.add_BlobsServicer_to_server, self.echo)
        self.client = Port(kernel.address, "bystander")
        self._process = psutil.Process(kernel.pid)

    async def _bystand(self) -> None:
        stub = registry_pb2_grpc.BlobsStub(self.client.channel)
        while True:
            reply = await stub.StatBlobs(pb.StatBlobsRequest(sha256=["ab"]), timeout=30)
            assert list(reply.sizes) == [2]
            self.served += 1
            await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def bystander(self) -> AsyncIterator[None]:
        """Ask all the while; all must be answered, and the kernel be as before afterwards."""
        await self.server.start()
        await self.client.start()
        asking = asyncio.create_task(self._bystand())
        try:
            await self.more()
            counts, memory = await self._settled(), self._process.memory_info().rss
            yield
            await self.more()
            assert not asking.done(), asking
            gc.collect()  # grpc keeps the connection of a stream that is in a cycle
            now, until = await self.counts(), time.monotonic() + 15
            while now != counts and time.monotonic() < until:
                await asyncio.sleep(0.05)
                now = await self.counts()
            assert now == counts, f"{counts} became {now}; {self.kernel.log.read_text()[-2000:]}"
            assert self._process.memory_info().rss - memory < LEAK_BYTES
            assert "Traceback" not in self.kernel.log.read_text()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await self.client.stop(0)
            await self.server.stop(0)

    async def more(self, count: int = 5) -> None:
        """Wait until the bystander was served so often again."""
        wanted = self.served + count
        async with asyncio.timeout(30):
            while self.served < wanted:
                await asyncio.sleep(0.005)

    async def _settled(self) -> Counts:
        """Return what it holds when everybody of an earlier siege has gone."""
        async with asyncio.timeout(15):
            before, now = None, await self.counts()
            while now != before or now.ports != BYSTANDERS:
                await asyncio.sleep(0.1)
                before, now = now, await self.counts()
        return now

    async def counts(self) -> Counts:
        """Ask the kernel what it holds, without the bystander's and this very call."""
        admin = admin_pb2_grpc.AdminStub(self.client.channel)
        ports = (await admin.ListPorts(admin_pb2.ListPortsRequest())).ports
        calls = (await admin.ListCalls(admin_pb2.ListCallsRequest())).calls
        others = [c for c in calls if c.caller != "bystander"]
        return Counts(len(ports), len(others), self._process.num_fds())

    @contextlib.asynccontextmanager
    async def attached(self) -> AsyncIterator[RawPort]:
        """Attach a port that says what it likes; closed afterwards."""
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            stream: Any = channel.stream_stream(ATTACH)()
            port = RawPort(stream)
            try:
                yield port
            finally:
                await port.close()


class RawPort:
    """A stream to Port/Attach without the library's manners."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._arrived: asyncio.Queue[wire.Envelope] = asyncio.Queue()
        self._reading: asyncio.Task[LLMOSError] | None = None

    async def send(self, *frames: bytes) -> None:
        """Write frames; those after the kernel hung up are lost."""
        for data in frames:
            try:
                await self._stream.write(data)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def say(self, *envelopes: wire.Envelope) -> None:
        """Write one frame."""
        await self.send(wire.Frame(envelopes=envelopes).SerializeToString())

    def read(self) -> asyncio.Task[LLMOSError]:
        """Read from now on; the task's result is how the kernel ended the stream."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> LLMOSError:
        try:
            while (data := await self._stream.read()) is not grpc.aio.EOF:
                for envelope in wire.Frame.FromString(data).envelopes:
                    self._arrived.put_nowait(envelope)
        except grpc.aio.AioRpcError as exc:
            return rpc.from_rpc_error(exc)
        raise AssertionError(f"the kernel ended the stream with {await self._stream.code()}")

    async def next(self, kind: int) -> wire.Envelope:
        """Return the next envelope of a kind; others are skipped."""
        self.read()
        async with asyncio.timeout(20):
            while (envelope := await self._arrived.get()).kind != kind:
                pass
        return envelope

    async def ends(self) -> LLMOSError:
        """Return the error with which the kernel ends the stream."""
        async with asyncio.timeout(20):
            return await self.read()

    async def stays(self) -> None:
        """Check that the port is still attached: an EXPORT is answered."""
        export = wire.Export(service="fuzz.Ping")
        await self.say(wire.Envelope(call=77, kind=wire.KIND_EXPORT, export=export))
        while (await self.next(wire.KIND_EXPORTED)).call != 77:
            pass

    async def close(self) -> None:
        """Hang up."""
        self._stream.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
