"""One behaviour on every way to a server: port, plain stub through the kernel, direct."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from blob_echo import BlobEcho

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.kernel.core.core import Core
from llmos.kernel.core.limits import Limits
from llmos.kernel.transport.hub import HOST
from llmos.kernel.transport.server import KernelServer
from llmos.lib import rpc
from llmos.lib.config import ServerConfig
from llmos.lib.port import Port
from llmos.lib.serve import OPTIONS, Server


class World:
    """A kernel, a server and a client's channel."""

    def __init__(self, echo: BlobEcho, channel: grpc.aio.Channel) -> None:
        self.echo = echo
        self.stub = registry_pb2_grpc.BlobsStub(channel)
        self.channel = channel


@pytest.fixture(params=["port", "stub", "direct"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kernel = KernelServer(Core("kernel", HOST, Limits(startup_grace_s=0.2)))
    address = f"unix:{tmp_path}/k.sock"
    await kernel.start([address])
    config = ServerConfig(state_dir=tmp_path, kernel=address, listen=f"unix:{tmp_path}/s.sock")
    server = Server("storage", config)
    echo = BlobEcho()
    server.add(registry_pb2_grpc.add_BlobsServicer_to_server, echo)
    await server.start()
    port = Port(address, "client")
    await port.start()
    if request.param == "port":
        channel = port.channel
    else:
        target = address if request.param == "stub" else server.address
        channel = grpc.aio.insecure_channel(target, options=OPTIONS)
    try:
        yield World(echo, channel)
    finally:
        await channel.close()
        await port.stop(0)
        await server.stop(0)
        await kernel.stop(0)


def stat(*names: str) -> pb.StatBlobsRequest:
    return pb.StatBlobsRequest(sha256=names)


async def failing(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await call
    return info.value


async def test_unary(world: World) -> None:
    reply = await world.stub.StatBlobs(stat("a", "bcd"))
    assert list(reply.sizes) == [1, 3]


async def test_errors_keep_code_reason_and_message(world: World) -> None:
    error = await failing(world.stub.StatBlobs(stat("missing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "It is not there; write it first."
    assert rpc.from_rpc_error(error).reason == "NO_SUCH_BLOB"


async def test_metadata_travels_both_ways(world: World) -> None:
    call = world.stub.StatBlobs(
        stat("metadata"), metadata=(("x-mine", "1"), ("x-mine-bin", b"\x01\xfe"))
    )
    await call
    assert world.echo.metadata["x-mine"] == "1"
    assert world.echo.metadata["x-mine-bin"] == b"\x01\xfe"
    assert ("x-first", "1") in tuple(await call.initial_metadata())
    assert ("x-last-bin", b"\x00\xff") in tuple(await call.trailing_metadata())
    assert await call.code() is grpc.StatusCode.OK


async def test_a_deadline_stops_the_work(world: World) -> None:
    error = await failing(world.stub.StatBlobs(stat("sleep"), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(world.echo.cancelled.wait(), 30)  # it would sleep for a minute


async def test_cancelling_stops_the_work(world: World) -> None:
    call = world.stub.StatBlobs(stat("sleep"))
    await world.echo.started.wait()
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await _await_cancelled(call)
    await asyncio.wait_for(world.echo.cancelled.wait(), 5)


async def _await_cancelled(call: Any) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as exc:  # over a port the cancelled call shows its status
        assert exc.code() is grpc.StatusCode.CANCELLED
        raise asyncio.CancelledError from exc


async def test_a_stream_of_replies(world: World) -> None:
    pieces = [m.data async for m in world.stub.ReadBlob(pb.ReadBlobRequest(length=50))]
    assert [int.from_bytes(p, "big") for p in pieces] == list(range(50))


async def test_closing_a_stream_early_stops_it(world: World) -> None:
    call = world.stub.ReadBlob(pb.ReadBlobRequest(length=10**6, offset=1000))
    async for _ in call:
        break
    call.cancel()
    await asyncio.wait_for(world.echo.cancelled.wait(), 5)


async def test_a_slow_reader_holds_back_the_sender(world: World) -> None:
    call = world.stub.ReadBlob(pb.ReadBlobRequest(length=10**4, offset=100_000))
    async for _ in call:
        break
    await asyncio.sleep(0.5)
    assert world.echo.sent < 400  # 40 MB of 1 GB, all buffers on the way included
    call.cancel()


async def test_a_stream_of_requests(world: World) -> None:
    async def requests() -> AsyncIterator[pb.WriteBlobRequest]:
        for _ in range(20):
            yield pb.WriteBlobRequest(data=b"x" * 300_000)

    assert (await world.stub.WriteBlob(requests())).size == 6_000_000


async def test_large_messages(world: World) -> None:
    reply = await world.stub.StatBlobs(stat(*["x" * 1000] * 10_000))
    assert len(reply.sizes) == 10_000
    async for piece in world.stub.ReadBlob(pb.ReadBlobRequest(length=2, offset=10_000_000)):
        assert len(piece.data) == 10_000_004


async def test_many_at_once(world: World) -> None:
    replies = await asyncio.gather(*[world.stub.StatBlobs(stat("x" * i)) for i in range(200)])
    assert [r.sizes[0] for r in replies] == list(range(200))


async def test_unknown_methods_and_services(world: World, request: Any) -> None:
    for path in ("/llmos.api.storage.v1.Blobs/Nope", "/no.Such/Method"):
        method: Any = world.channel.unary_unary(path)
        error = await failing(method(b"", timeout=20))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_that_does_not_parse(world: World) -> None:
    method: Any = world.channel.unary_unary("/llmos.api.storage.v1.Blobs/StatBlobs")
    error = await failing(method(b"\xff\xff\xff"))
    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)


async def test_headers_do_not_wait_for_the_first_message(world: World) -> None:
    call = world.stub.ReadBlob(pb.ReadBlobRequest(length=7, offset=7, sha256="headers"))
    metadata = await asyncio.wait_for(call.initial_metadata(), 10)
    assert dict(metadata or ())["x-first"] == "1"
    call.cancel()
