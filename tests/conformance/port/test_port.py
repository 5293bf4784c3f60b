"""What only ports have: nested calls, survival of the kernel, and the fate of liars."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from blob_echo import BlobEcho

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.api.kernel.v1 import port_pb2 as wire
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.kernel.transport.server import KernelServer
from llmos.lib import rpc
from llmos.lib.config import ServerConfig
from llmos.lib.errors import LLMOSError, Unavailable
from llmos.lib.port import Port
from llmos.lib.serve import OPTIONS, Server
from llmos.lib.syncport import SyncPort

ATTACH = "/llmos.api.kernel.v1.Port/Attach"


class Cell:
    """A kernel on a Unix socket that can be killed and started again, and what attaches to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:{folder}/k.sock"
        self.kernel = KernelServer()
        self._stops: list[Any] = []

    async def start(self) -> None:
        await self.kernel.start([self.address])

    async def kill(self) -> None:
        await self.kernel._server.close()

    async def restart(self) -> None:
        self.kernel = KernelServer()
        await self.start()

    async def server(self, name: str, echo: BlobEcho) -> Server:
        config = ServerConfig(state_dir=self.folder, kernel=self.address)
        server = Server(name, config, listen=False)
        server.add(registry_pb2_grpc.add_BlobsServicer_to_server, echo)
        await server.start()
        self._stops.append(server.stop)
        return server

    async def port(self, name: str = "client") -> Port:
        port = Port(self.address, name)
        await port.start()
        self._stops.append(port.stop)
        return port

    async def stop(self) -> None:
        for stop in self._stops:
            await stop(0)
        await self.kernel.stop(0)


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    cell = Cell(tmp_path)
    await cell.start()
    try:
        yield cell
    finally:
        await cell.stop()


class Front(BlobEcho):
    """Calls another server while it handles a call."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__()
        self.back = admin_pb2_grpc.AdminStub(channel)
        self.calls_seen: list[admin_pb2.CallInfo] = []

    async def StatBlobs(self, request: Any, context: Any) -> pb.StatBlobsResponse:
        listed = await self.back.ListCalls(admin_pb2.ListCallsRequest())
        self.calls_seen = list(listed.calls)
        return pb.StatBlobsResponse()


async def test_a_nested_call_is_a_child_of_the_call_being_served(cell: Cell) -> None:
    port = await cell.port()
    config = ServerConfig(state_dir=cell.folder, kernel=cell.address)
    server = Server("front", config, listen=False)
    assert server.port is not None
    front = Front(server.port.channel)
    server.add(registry_pb2_grpc.add_BlobsServicer_to_server, front)
    await server.start()
    cell._stops.append(server.stop)
    stub = registry_pb2_grpc.BlobsStub(port.channel)
    metadata = (("llmos-class", "batch"),)
    await stub.StatBlobs(pb.StatBlobsRequest(), timeout=30, metadata=metadata)
    outer, inner = front.calls_seen
    assert inner.parent == outer.id
    assert inner.call_class == outer.call_class == wire.CALL_CLASS_BATCH
    assert 0 < inner.remaining_s <= outer.remaining_s + 0.1
    assert (outer.caller, inner.caller) == ("client", "front")


async def test_a_call_and_a_stream_survive_the_kernel(cell: Cell) -> None:
    echo = BlobEcho()
    await cell.server("storage", echo)
    stub = registry_pb2_grpc.BlobsStub((await cell.port()).channel)
    echo.die_after = 5
    seen = []

    async def read() -> None:
        async for piece in stub.ReadBlob(pb.ReadBlobRequest(length=10)):
            seen.append(int.from_bytes(piece.data, "big"))

    reading = asyncio.create_task(read())
    await echo.died.wait()
    echo.hold = asyncio.Event()
    call = stub.StatBlobs(pb.StatBlobsRequest(sha256=["abc"]))
    while echo.calls < 2:
        await asyncio.sleep(0.01)
    echo.die_after = None
    await cell.kill()
    echo.hold.set()
    echo.hold = None
    await cell.restart()
    assert list((await asyncio.wait_for(call, 20)).sizes) == [3]
    await asyncio.wait_for(reading, 20)
    assert seen == list(range(10))


async def test_calls_made_while_the_kernel_is_away_wait_for_it(cell: Cell) -> None:
    await cell.server("storage", BlobEcho())
    stub = registry_pb2_grpc.BlobsStub((await cell.port()).channel)
    await cell.kill()
    calls = [stub.StatBlobs(pb.StatBlobsRequest(sha256=["ab"])) for _ in range(20)]
    await asyncio.sleep(0.2)
    await cell.restart()
    replies = await asyncio.wait_for(asyncio.gather(*calls), 20)
    assert all(list(r.sizes) == [2] for r in replies)


async def test_large_calls_are_opened_before_small_ones_that_came_later(cell: Cell) -> None:
    await cell.server("storage", BlobEcho())
    stub = registry_pb2_grpc.BlobsStub((await cell.port()).channel)
    sizes = [40_000 if i % 3 == 0 else 10 for i in range(60)]
    calls = [stub.StatBlobs(pb.StatBlobsRequest(sha256=["x" * size])) for size in sizes]
    answers = await asyncio.gather(*calls)
    assert [list(answer.sizes) for answer in answers] == [[size] for size in sizes]


async def test_a_call_that_may_have_run_is_not_repeated(cell: Cell) -> None:
    await cell.server("storage", echo := BlobEcho())
    port = await cell.port()
    echo.hold = asyncio.Event()
    # A method path that the library knows nothing about counts as not idempotent.
    raw: Any = port.channel.unary_unary("/llmos.api.storage.v1.Blobs/StatBlobs")
    raw.idempotent = False
    call = raw(b"")
    await echo.started.wait()
    await cell.kill()
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await asyncio.wait_for(call, 20)
    assert rpc.from_rpc_error(info.value).reason == "KERNEL_LOST_MAY_HAVE_RUN"
    await cell.restart()


async def test_a_server_that_stops_finishes_its_calls(cell: Cell) -> None:
    echo = BlobEcho()
    server = await cell.server("storage", echo)
    stub = registry_pb2_grpc.BlobsStub((await cell.port()).channel)
    echo.hold = asyncio.Event()
    call = stub.StatBlobs(pb.StatBlobsRequest(sha256=["a"]))
    await echo.started.wait()
    stopping = asyncio.create_task(server.stop(10))
    await asyncio.sleep(0.1)
    waiting = stub.StatBlobs(pb.StatBlobsRequest(sha256=["bb"]))
    echo.hold.set()
    await stopping
    assert list((await call).sizes) == [1]
    await cell.server("storage", BlobEcho())
    assert list((await asyncio.wait_for(waiting, 20)).sizes) == [2]


async def attach_raw(cell: Cell, *frames: bytes) -> LLMOSError:
    """Send raw frames on a stream of our own and return how the kernel ended it."""
    async with grpc.aio.insecure_channel(cell.address, options=OPTIONS) as channel:
        stream: Any = channel.stream_stream(ATTACH)()
        for frame in frames:
            await stream.write(frame)
        with pytest.raises(grpc.aio.AioRpcError) as info:
            while await asyncio.wait_for(stream.read(), 10) is not grpc.aio.EOF:
                pass
        return rpc.from_rpc_error(info.value)


async def test_garbage_on_a_port_ends_that_port_alone(cell: Cell) -> None:
    await cell.server("storage", BlobEcho())
    port = await cell.port()
    hello = wire.Hello(protocol=1, name="liar", instance="instance-x")
    first = wire.Frame(envelopes=[wire.Envelope(kind=wire.KIND_HELLO, hello=hello)])
    assert (await attach_raw(cell, b"\xff\xff\xff")).reason == "BAD_FRAME"
    huge = b"\x00" * (cell.kernel.core.limits.max_frame_bytes + 1)
    error = await attach_raw(cell, first.SerializeToString(), huge)
    assert error.reason == "FRAME_TOO_LARGE"
    stub = registry_pb2_grpc.BlobsStub(port.channel)
    assert list((await stub.StatBlobs(pb.StatBlobsRequest(sha256=["a"]))).sizes) == [1]
    names = {p.name for p in cell.kernel.core.ports.values()}
    assert "liar" not in names


async def test_no_kernel_is_one_clear_error(tmp_path: Path) -> None:
    port = Port(f"unix:{tmp_path}/none.sock", "client")
    with pytest.raises(Unavailable) as info:
        await port.start(timeout_s=0.3)
    assert info.value.reason == "KERNEL_UNREACHABLE"


async def test_the_synchronous_port(cell: Cell) -> None:
    await cell.server("storage", BlobEcho())

    def use() -> None:
        with SyncPort(cell.address) as port:
            stub: Any = registry_pb2_grpc.BlobsStub(port.channel)
            assert list(stub.StatBlobs(pb.StatBlobsRequest(sha256=["abc"])).sizes) == [3]
            pieces = [p.data for p in stub.ReadBlob(pb.ReadBlobRequest(length=5))]
            assert [int.from_bytes(p, "big") for p in pieces] == list(range(5))
            requests = (pb.WriteBlobRequest(data=b"xx") for _ in range(5))
            assert stub.WriteBlob(requests).size == 10
            with pytest.raises(grpc.RpcError) as info:
                stub.StatBlobs(pb.StatBlobsRequest(sha256=["missing"]))
            assert info.value.code() is grpc.StatusCode.NOT_FOUND
            assert rpc.from_rpc_error(info.value).reason == "NO_SUCH_BLOB"
            future = stub.StatBlobs.future(pb.StatBlobsRequest(sha256=["sleep"]))
            assert future.cancel()
            assert future.code() is grpc.StatusCode.CANCELLED

    await asyncio.to_thread(use)


async def test_admin_shows_ports_and_health_tells_the_truth(cell: Cell) -> None:
    server = await cell.server("storage", BlobEcho())
    port = await cell.port()
    admin = admin_pb2_grpc.AdminStub(port.channel)
    ports = (await admin.ListPorts(admin_pb2.ListPortsRequest())).ports
    names = {p.name for p in ports}
    assert {"storage", "client", "kernel"} <= names
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    health = health_pb2_grpc.HealthStub(port.channel)
    request = health_pb2.HealthCheckRequest(service="llmos.api.storage.v1.Blobs")
    assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    watch = admin.WatchPorts(admin_pb2.WatchPortsRequest())
    await server.stop(0)
    assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    events = []
    async for change in watch:
        events.append((change.event, change.port.name))
        if change.event == admin_pb2.WatchPortsResponse.EVENT_DETACHED:
            break
    assert events[-1][1] == "storage"
    watch.cancel()
