"""kill -9 of the memory server: blocks of prefixes and sessions are there again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from memory_process import Processes

from llmos.api.memory.v1 import prefix_pb2 as pb
from llmos.api.memory.v1 import sessions_pb2 as spb
from llmos.api.memory.v1.prefix_pb2_grpc import PrefixesStub
from llmos.api.memory.v1.sessions_pb2_grpc import SessionsStub
from llmos.lib.buffers import BufferClient

BLOCK = 256 << 10
SPACE = pb.Space(model="m", layout="l")


@pytest.fixture
def processes() -> Iterator[Processes]:
    with tempfile.TemporaryDirectory(prefix="llmos-") as folder, Processes(Path(folder)) as running:
        yield running


async def put(client: BufferClient, stub: Any, keys: list[bytes], data: bytes) -> None:
    mapping = await client.create(len(data))
    mapping.view[:] = data
    await client.seal(mapping)
    request = pb.PutBlocksRequest(space=SPACE, keys=keys, handle=mapping.handle, block_bytes=BLOCK)
    await stub.PutBlocks(request, timeout=10)
    await client.free(mapping)


async def find(client: BufferClient, stub: Any, keys: list[bytes]) -> bytes:
    request = pb.GetBlocksRequest(space=SPACE, keys=keys)
    answer = await stub.GetBlocks(request, timeout=10, wait_for_ready=True)
    data = b""
    for run in answer.runs:
        mapping = await client.open(run.handle)
        data += bytes(mapping.view[run.offset : run.offset + run.blocks * run.block_bytes])
        await client.free(mapping)
    return data


async def test_blocks_outlive_the_memory_server(processes: Processes) -> None:
    flags = ("--kernel", "none", "--buffer-bytes", str(16 * BLOCK))  # 4 blocks in memory
    processes.start("memory", *flags)
    keys, data = [os.urandom(16) for _ in range(8)], os.urandom(8 * BLOCK)
    async with (
        grpc.aio.insecure_channel(processes.address("memory")) as channel,
        BufferClient(channel) as client,
    ):
        stub: Any = PrefixesStub(channel)
        for i in range(8):  # the first go to disk when the last come
            await put(client, stub, keys[i : i + 1], data[i * BLOCK : (i + 1) * BLOCK])
        for _ in range(2):
            processes.kill("memory")
            processes.start("memory", *flags)
            assert await find(client, stub, keys[:4]) == data[: 4 * BLOCK]
        answer = await stub.ListSpaces(pb.ListSpacesRequest())
        assert answer.ram_bytes <= answer.ram_budget and answer.disk_bytes >= 4 * BLOCK
        assert answer.spaces[0].ram_blocks + answer.spaces[0].disk_blocks == 8
        await stub.DropBlocks(pb.DropBlocksRequest())
    assert processes.stop("memory") == 0
    assert not processes.shm.exists()
    assert not list((processes.state_dir / "memory" / "prefixes").iterdir())


async def test_a_server_that_stops_leaves_no_memory(processes: Processes) -> None:
    processes.start("memory", "--kernel", "none")
    keys, data = [os.urandom(16) for _ in range(4)], os.urandom(4 * BLOCK)
    async with (
        grpc.aio.insecure_channel(processes.address("memory")) as channel,
        BufferClient(channel) as client,
    ):
        stub: Any = PrefixesStub(channel)
        await put(client, stub, keys, data)
        await client.settled()
        assert processes.stop("memory") == 0
        assert not processes.shm.exists()
        processes.start("memory", "--kernel", "none")
        assert await find(client, stub, keys) == data  # from disk


async def test_every_acknowledged_turn_outlives_the_memory_server(processes: Processes) -> None:
    processes.start("memory", "--kernel", "none")
    rounds = int(os.environ.get("LLMOS_KILL_ROUNDS", "2"))
    async with grpc.aio.insecure_channel(processes.address("memory")) as channel:
        stub: Any = SessionsStub(channel)
        create = spb.CreateSessionRequest(session=spb.Session(id="a"))
        await stub.CreateSession(create, timeout=10)
        acknowledged: list[int] = []
        for i in range(rounds):
            for j in range(5):
                turn = spb.Turn(role="user", content=f"turn {i} {j}")
                request = spb.AppendTurnsRequest(id="a", turns=[turn], request_id=f"{i}-{j}")
                answer = await stub.AppendTurns(request, timeout=10, wait_for_ready=True)
                acknowledged += answer.numbers
            processes.kill("memory")
            processes.start("memory", "--kernel", "none")
            again = await stub.AppendTurns(request, timeout=10, wait_for_ready=True)
            assert [*again.numbers] == acknowledged[-1:]  # a retry appends nothing
        export = stub.ExportSession(spb.ExportSessionRequest(id="a"), timeout=10)
        pieces = [piece async for piece in export]
        assert [p.turn.number for p in pieces[1:]] == acknowledged == [*range(1, 5 * rounds + 1)]
        delete = spb.DeleteSessionRequest(id="a")
        assert (await stub.DeleteSession(delete, timeout=10)).deleted
        processes.kill("memory")
        processes.start("memory", "--kernel", "none")
        assert not (await stub.DeleteSession(delete, timeout=10, wait_for_ready=True)).deleted
    folder = processes.state_dir / "memory"
    assert not any(b"turn 0" in file.read_bytes() for file in folder.glob("sessions.db*"))
