"""Garbage below gRPC against a real kernel process: its own connection suffers, nobody else."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
import raw_http2 as h2
from kernel_process import KernelProcess
from kernel_siege import Siege

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib import rpc

ROUNDS = int(os.environ.get("LLMOS_EXAMPLES", "60"))
BLOBS = "/llmos.api.storage.v1.Blobs/StatBlobs"
WRITE = "/llmos.api.storage.v1.Blobs/WriteBlob"
ATTACH = "/llmos.api.kernel.v1.Port/Attach"
PATHS = (BLOBS, WRITE, ATTACH)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelProcess]:
    process = KernelProcess(tmp_path_factory.mktemp("kernel"))
    process.start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
async def siege(kernel: KernelProcess) -> AsyncIterator[Siege]:
    made = Siege(kernel)
    async with made.bystander():
        yield made


def attack(address: str, *pieces: bytes, listen_s: float = 0.05) -> bytes:
    """Send on a connection of its own; return what came back."""
    with h2.connect(address) as connection:
        for piece in pieces:
            h2.pour(connection, piece)
        return h2.drain(connection, listen_s)


def noise(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randint(1, 4000))


def random_frames(dice: random.Random) -> bytes:
    made = bytearray(h2.hello())
    for _ in range(dice.randint(1, 30)):
        payload = dice.randbytes(dice.randint(0, 60))
        length = len(payload) if dice.random() < 0.8 else dice.randrange(1 << 24)
        stream = dice.choice((0, 1, 2, 3, 5, 2**31 - 1))
        kind = dice.choice((*range(10), 42))
        made += h2.lying_frame(length, kind, dice.randrange(256), stream, payload)
    return bytes(made)


def cut_off(dice: random.Random) -> bytes:
    call = h2.hello() + h2.request(1, dice.choice(PATHS))
    call += h2.frame(h2.DATA, 0, 1, h2.message(dice.randbytes(99)))
    return call[: dice.randrange(1, len(call))]


def spoiled(dice: random.Random) -> bytes:
    block = bytearray(h2.header_block(dice.choice(PATHS)))
    for _ in range(dice.randint(1, 5)):
        block[dice.randrange(len(block))] = dice.randrange(256)
    return h2.hello() + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, bytes(block))


GARBAGE: list[Callable[[random.Random], bytes]] = [noise, random_frames, cut_off, spoiled]


@pytest.mark.parametrize("make", GARBAGE)
async def test_garbage(siege: Siege, make: Callable[[random.Random], bytes]) -> None:
    def many(first: int) -> None:
        for seed in range(first, ROUNDS, 4):
            attack(siege.address, make(random.Random(seed)), listen_s=0.02)

    await asyncio.gather(*(asyncio.to_thread(many, n) for n in range(4)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("claim", [0, 10, 1 << 30, (1 << 32) - 1])
async def test_messages_that_lie_about_their_length(siege: Siege, path: str, claim: int) -> None:
    """More than came, less than came, gigabytes: an error, or the message that is there."""
    lie = h2.frame(h2.DATA, h2.END_STREAM, 1, h2.message(b"x" * 50, claim))
    said = await asyncio.to_thread(attack, siege.address, h2.hello(), h2.request(1, path), lie)
    assert said


@pytest.mark.parametrize("path", PATHS)
async def test_messages_that_claim_to_be_compressed(siege: Siege, path: str) -> None:
    data = h2.frame(h2.DATA, h2.END_STREAM, 1, h2.message(b"x" * 50, compressed=1))
    await asyncio.to_thread(attack, siege.address, h2.hello(), h2.request(1, path), data)


async def test_half_open_connections(siege: Siege) -> None:
    def some(count: int) -> list[socket.socket]:
        made = [h2.connect(siege.address) for _ in range(count)]
        for number, connection in enumerate(made):
            h2.pour(connection, (h2.hello() + h2.request(1, ATTACH))[: number * 2])
        return made

    connections = await asyncio.to_thread(some, 150)
    await siege.more()
    for connection in connections:
        connection.close()


async def test_calls_that_are_reset_at_once(siege: Siege) -> None:
    pieces = [h2.hello()]
    for stream in range(1, 2 * 300, 2):
        cancel = h2.frame(h2.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
        pieces.append(h2.request(stream, PATHS[stream % 3]) + cancel)
    await asyncio.to_thread(attack, siege.address, *pieces)


@pytest.mark.parametrize("kind", [h2.PING, h2.SETTINGS])
async def test_floods_that_want_answers(siege: Siege, kind: int) -> None:
    flood = h2.frame(kind, 0, 0, bytes(8) if kind == h2.PING else b"") * 2_000
    await asyncio.to_thread(attack, siege.address, h2.hello(), flood)


async def test_headers_without_end(siege: Siege) -> None:
    first = h2.frame(h2.HEADERS, 0, 1, h2.header_block(BLOBS))
    more = h2.frame(h2.CONTINUATION, 0, 1, b"\x00\x01a" + b"\x7f\x81\x1f" + bytes(4096))
    await asyncio.to_thread(attack, siege.address, h2.hello(), first, more * 500)


@pytest.mark.parametrize("size", [10_000, 200_000, 1_000_000])
async def test_huge_metadata_is_refused_with_a_reason(siege: Siege, size: int) -> None:
    async with grpc.aio.insecure_channel(siege.address) as channel:
        stub = registry_pb2_grpc.BlobsStub(channel)
        request, metadata = pb.StatBlobsRequest(sha256=["a"]), (("x-big", "v" * size),)
        try:
            await stub.StatBlobs(request, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as exc:
            assert size > 10_000
            error = rpc.from_rpc_error(exc)
            refused = error.reason in ("METADATA_TOO_LARGE", "RESOURCE_EXHAUSTED")
            # Over what the kernel's SETTINGS allow, the connection is at fault and ends.
            assert refused or "header list" in str(error), error
        else:
            assert size == 10_000
        await stub.StatBlobs(request, timeout=20)


async def test_paths_that_name_nothing(siege: Siege) -> None:
    async with grpc.aio.insecure_channel(siege.address) as channel:
        for path in ("/", "//", "/a", "/a/", "/%00/x", "/../../etc", "/" + "x" * 4000 + "/y"):
            with pytest.raises(grpc.aio.AioRpcError) as info:
                call: Any = channel.unary_unary(path)
                await call(b"\xff" * 20, timeout=20)
            assert info.value.code() in (
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.INVALID_ARGUMENT,
            )
