"""Our gRPC endpoint against grpc's own, in both directions, over Unix sockets and TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from llmos.lib.errors import Unavailable
from llmos.lib.h2.client import connect
from llmos.lib.h2.connection import Connection
from llmos.lib.h2.server import Server
from llmos.lib.h2.stream import Stream

PATH = "/t.Echo/Echo"
BIG = 64 << 20


def echo(stream: Stream) -> None:
    """Answer every message with itself; the end with the request's metadata as trailers."""
    stream.on_message = stream.send
    stream.on_half_close = lambda: stream.finish(
        0, "", [m for m in stream.metadata if m[0][0] == "x"]
    )


def refuse(stream: Stream) -> None:
    stream.finish(
        5, "no such thing: 100 % ü\nmissing", [("x-why-bin", b"\x00\xff"), ("x-why", "a")]
    )


@pytest.fixture(params=["unix", "tcp"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    def accept(stream: Stream) -> None:
        (refuse if stream.path == "/t.Echo/Refuse" else echo)(stream)

    server = Server(accept, BIG)
    address = f"unix:{tmp_path}/s.sock" if request.param == "unix" else "127.0.0.1:0"
    server.bind(address, "--listen")
    bound = server._bound[0]
    await server.start()
    if request.param == "tcp":
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    yield address
    await server.close()


OPTIONS = [("grpc.max_receive_message_length", BIG), ("grpc.max_send_message_length", BIG)]


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_384, 70_000, 5_000_000])
async def test_grpc_calls_us(served: str, size: int) -> None:
    async with grpc.aio.insecure_channel(served, options=OPTIONS) as channel:
        unary: Any = channel.unary_unary(PATH)
        message = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
        assert await unary(message) == message
        replies = await asyncio.gather(*(unary(message[:n]) for n in range(50)))
        assert replies == [message[:n] for n in range(50)]
        both: Any = channel.stream_stream(PATH)()
        for _ in range(5):
            await both.write(message)
            assert await both.read() == message
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF


@pytest.mark.parametrize("how", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(served: str, how: grpc.Compression) -> None:
    async with grpc.aio.insecure_channel(served) as channel:
        call: Any = channel.unary_unary(PATH)
        assert await call(b"a" * 100_000, compression=how) == b"a" * 100_000


async def test_status_and_metadata_arrive(served: str) -> None:
    async with grpc.aio.insecure_channel(served) as channel:
        echoing: Any = channel.unary_unary(PATH)
        call = echoing(
            b"", metadata=(("x-text", "a b"), ("x-raw-bin", b"\x00\x01\xff"), ("x-text", "c"))
        )
        await call
        found = {(k, v) for k, v in await call.trailing_metadata()}
        assert found == {("x-text", "a b"), ("x-text", "c"), ("x-raw-bin", b"\x00\x01\xff")}
        refused: Any = channel.unary_unary("/t.Echo/Refuse")
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await refused(b"")
        assert info.value.code() is grpc.StatusCode.NOT_FOUND
        assert info.value.details() == "no such thing: 100 % ü\nmissing"
        trailers = {k: v for k, v in info.value.trailing_metadata()}
        assert trailers == {"x-why-bin": b"\x00\xff", "x-why": "a"}
    del info


async def test_a_cancelled_call_is_told(tmp_path: Path) -> None:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def accept(stream: Stream) -> None:
        stream.on_end = lambda code, _message, _trailers: ended.set_result(code)

    server = Server(accept, BIG)
    server.bind(f"unix:{tmp_path}/s.sock", "--listen")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        call: Any = channel.unary_unary(PATH)
        waiting = call(b"", timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting
        assert await asyncio.wait_for(ended, 10) == 1
    await server.close()


class Grpc:
    """An echo server of grpc's own."""

    def __init__(self, address: str) -> None:
        self.server = grpc.aio.server(options=OPTIONS)

        async def both(requests: Any, context: Any) -> Any:
            async for request in requests:
                yield request
            await context.abort(grpc.StatusCode.ABORTED, "that was all ü", (("x-n", "3"),))

        class Handler(grpc.GenericRpcHandler):
            def service(self, handler_call_details: Any) -> Any:
                return grpc.stream_stream_rpc_method_handler(both)

        self.server.add_generic_rpc_handlers((Handler(),))
        self.server.add_insecure_port(address)


@pytest.mark.parametrize("size", [0, 16_384, 300_000, 5_000_000])
async def test_we_call_grpc(tmp_path: Path, size: int) -> None:
    address = f"unix:{tmp_path}/g.sock"
    theirs = Grpc(address)
    await theirs.server.start()
    connection: Connection = await connect(address)
    stream = connection.open(PATH, "localhost")
    got: asyncio.Queue[bytes] = asyncio.Queue()
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stream.on_message = got.put_nowait
    stream.on_end = lambda *how: ended.set_result(how)
    for number in range(4):
        message = bytes([number]) * size
        stream.send(message)
        assert await asyncio.wait_for(got.get(), 20) == message
    stream.half_close()
    code, text, trailers = await asyncio.wait_for(ended, 20)
    assert (code, text) == (10, "that was all ü")
    assert ("x-n", "3") in trailers
    connection.close()
    await theirs.server.stop(None)


async def test_nobody_there_is_a_clear_error(tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path}/none.sock", "127.0.0.1:1", "nonsense"):
        with pytest.raises(Unavailable, match="Cannot connect to"):
            await connect(address)


async def test_a_reader_that_sleeps_holds_back_its_own_stream_only(tmp_path: Path) -> None:
    """Flow control: 5 MB to one who does not read wait here; another stream goes on."""
    address = f"unix:{tmp_path}/s.sock"
    server = Server(
        lambda stream: setattr(stream, "on_message", lambda m: stream.send(m * 50)), BIG
    )
    server.bind(address, "--listen")
    await server.start()
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        asleep: Any = channel.stream_stream(PATH)()
        await asleep.write(b"x" * 100_000)
        await asyncio.sleep(0.2)
        awake: Any = channel.stream_stream(PATH)()
        await awake.write(b"y")
        assert await asyncio.wait_for(awake.read(), 10) == b"y" * 50
        assert await asyncio.wait_for(asleep.read(), 20) == b"x" * 5_000_000
        asleep.cancel()
        awake.cancel()
    await server.close()
