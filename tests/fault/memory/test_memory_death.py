"""kill -9 of the memory server, of its clients, and of the kernel between them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from memory_process import Processes, line_of

from llmos.api.memory.v1 import buffers_pb2 as pb
from llmos.api.memory.v1 import residency_pb2 as rpb
from llmos.api.memory.v1.buffers_pb2_grpc import BuffersStub
from llmos.api.memory.v1.residency_pb2_grpc import ResidencyStub
from llmos.lib.buffers import BufferClient
from llmos.lib.port import Port

MIB = 1 << 20
META = {"lock", "owner.json"}
# Forks before gRPC starts its threads, so as to import it only once. Eight start at a time: with
# two hundred on two cores a call of one of them may take longer than clients wait.
CLIENT = """
import asyncio, os, sys
import grpc
from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.buffers import BufferClient
from llmos.lib.port import Port

async def main(kernel, address, lease_s, shared):
    if kernel == "kernel":
        port = Port(address, "client")
        await port.start()
        channel = port.channel
    else:
        channel = grpc.aio.insecure_channel(address)
    client = BufferClient(channel, lease_s=int(lease_s))
    mine = [await client.create(100_000) for _ in range(3)]
    theirs = await client.open(BufferHandle.FromString(bytes.fromhex(shared)))
    mine[0].view[:5] = theirs.view[:5]
    os.write(1, b"ready\\n")  # in one piece, beside 199 others
    os.write(done, b".")
    await asyncio.sleep(600)

turns, done = os.pipe()
os.write(done, b"." * 8)
for _ in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        break
os.read(turns, 1)
asyncio.run(main(*sys.argv[2:]))
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as processes:
        yield processes


@asynccontextmanager
async def attached(processes: Processes, name: str) -> AsyncIterator[Port]:
    port = Port(processes.address("kernel"), name)
    await port.start()
    try:
        yield port
    finally:
        await port.stop(1)


async def listed(channel: grpc.aio.Channel) -> list[pb.BufferInfo]:
    stub: Any = BuffersStub(channel)
    answer = await stub.ListBuffers(pb.ListBuffersRequest(), timeout=20, wait_for_ready=True)
    return list(answer.buffers)


async def wait_for(what: Callable[[], Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not await what():
        assert time.monotonic() < until, "it did not come true in time"
        await asyncio.sleep(0.1)


async def test_buffers_outlive_the_memory_server(processes: Processes) -> None:
    processes.start("memory", "--kernel", "none")
    data = os.urandom(4 * MIB)
    async with (
        grpc.aio.insecure_channel(processes.address("memory")) as channel,
        BufferClient(channel) as maker,
        BufferClient(channel) as user,
    ):
        mine = await maker.create(len(data), label="precious")
        mine.view[:] = data
        theirs = await user.open(mine.handle)
        await maker.seal(mine)
        other = await maker.create(100)
        stub: Any = BuffersStub(channel)
        request = pb.CreateBufferRequest(size=10, request_id="once")
        made = await stub.CreateBuffer(request)
        before = await listed(channel)
        for _ in range(2):
            processes.kill("memory")
            assert theirs.view == data  # nobody needs the server to use what is mapped
            processes.start("memory", "--kernel", "none")
            after = await listed(channel)
            assert [(b.id, b.size, b.owner, b.leases, b.sealed, b.label) for b in after] == [
                (b.id, b.size, b.owner, b.leases, b.sealed, b.label) for b in before
            ]
        assert (await stub.CreateBuffer(request)).handle == made.handle
        late = await user.open(mine.handle)
        assert hashlib.sha256(late.view).digest() == hashlib.sha256(data).digest()
        fresh = await maker.create(100)
        assert fresh.handle.id not in {b.id for b in before}
        # A call that is made while the server is down waits for it.
        processes.kill("memory")
        await maker.free(other)
        waiting = asyncio.create_task(maker.settled())
        await asyncio.sleep(0.3)
        processes.start("memory", "--kernel", "none")
        await waiting
        await stub.FreeBuffer(pb.FreeBufferRequest(handle=made.handle))
    async with grpc.aio.insecure_channel(processes.address("memory")) as channel:
        assert await listed(channel) == []
    assert {p.name for p in processes.shm.iterdir()} == META
    assert processes.stop("memory") == 0
    assert not processes.shm.exists()


@pytest.mark.parametrize("through", ["kernel", "direct"])
async def test_two_hundred_dead_clients_leave_nothing(processes: Processes, through: str) -> None:
    """Through the kernel their death is seen, long before their leases end; else time tells."""
    kernel = through == "kernel"
    if kernel:
        processes.start("kernel")
    processes.start("memory", *([] if kernel else ["--kernel", "none"]))
    address = processes.address("kernel" if kernel else "memory")
    async with (
        grpc.aio.insecure_channel(processes.address("memory")) as channel,
        BufferClient(channel) as owner,
    ):
        shared = await owner.create(4096)
        shared.view[:5] = b"hello"
        handle = shared.handle.SerializeToString().hex()
        lease_s = "3600" if kernel else "3"
        count = 200 if kernel else 20
        flags = [str(count), through, address, lease_s, handle]
        clients = processes.spawn("clients", [sys.executable, "-c", CLIENT, *flags])
        assert clients.stdout is not None
        for _ in range(count):
            line = await line_of(clients.stdout)
            assert line == b"ready\n", processes.log("clients")
        if kernel:  # where only time tells, a process that gets no time to renew counts as dead
            buffers = await listed(channel)
            assert len(buffers) == 3 * count + 1 and buffers[0].leases == count + 1
            assert len({b.owner for b in buffers}) == count + 1
        processes.kill("clients")

        async def only_ours() -> bool:
            return [(b.id, b.leases) for b in await listed(channel)] == [(shared.handle.id, 1)]

        await wait_for(only_ours, 40)
        assert {p.name for p in processes.shm.iterdir()} == META | {
            shared.handle.id,
            f"{shared.handle.id}.json",
        }


async def test_the_kernel_dies_and_the_living_keep_their_buffers(processes: Processes) -> None:
    processes.start("kernel")
    processes.start("memory", "--sync-grace-s", "2")
    script = [sys.executable, "-c", CLIENT, "1", "kernel", processes.address("kernel"), "3600"]
    async with attached(processes, "alive") as port, BufferClient(port.channel) as client:
        mine = await client.create(MIB)
        other = processes.spawn("other", [*script, mine.handle.SerializeToString().hex()])
        assert other.stdout is not None
        line = await line_of(other.stdout)
        assert line == b"ready\n", processes.log("other")
        processes.kill("kernel")
        processes.kill("other")  # nobody is there to see it
        processes.start("kernel")
        assert len(await listed(port.channel)) == 4

        async def only_mine() -> bool:
            return [(b.id, b.leases) for b in await listed(port.channel)] == [(mine.handle.id, 1)]

        await wait_for(only_mine, 10)
        await asyncio.sleep(1)
        assert await only_mine()


async def test_memory_dies_under_a_client_in_a_loop(processes: Processes) -> None:
    """Every call over the port is answered: it waits out the restart."""
    processes.start("kernel")
    processes.start("memory")
    async with attached(processes, "loop") as port, BufferClient(port.channel) as client:
        rounds = 0
        stop = asyncio.Event()

        async def loop() -> None:
            nonlocal rounds
            while not stop.is_set():
                mapping = await client.create(64 << 10)
                mapping.view[-1] = 1
                await client.free(mapping)
                rounds += 1

        looping = asyncio.create_task(loop())
        for _ in range(2):
            await asyncio.sleep(0.3)
            processes.kill("memory")
            await asyncio.to_thread(processes.start, "memory")
            seen = rounds

            async def goes_on(seen: int = seen) -> bool:
                return rounds > seen + 5

            await wait_for(goes_on, 10)
        stop.set()
        await looping
        await client.settled()
        assert await listed(port.channel) == []


async def test_holders_rebuild_the_grants(processes: Processes) -> None:
    processes.start("memory", "--kernel", "none")
    async with grpc.aio.insecure_channel(processes.address("memory")) as channel:
        stub: Any = ResidencyStub(channel)
        await stub.AcquireGrant(rpb.AcquireGrantRequest(id="m@1#0", device="cpu", bytes=MIB))
        held = (await stub.ListGrants(rpb.ListGrantsRequest())).grants
        processes.kill("memory")
        processes.start("memory", "--kernel", "none")
        request = rpb.ReportGrantsRequest(grants=held)
        await stub.ReportGrants(request, wait_for_ready=True, timeout=10)
        (device,) = (await stub.ListDevices(rpb.ListDevicesRequest())).devices[:1]
        assert (device.name, device.granted_bytes) == ("cpu", MIB)
        assert 0 < device.budget_bytes < device.total_bytes


async def test_bad_starts_say_one_sentence(processes: Processes, tmp_path: Path) -> None:
    processes.start("memory", "--kernel", "none")
    file = tmp_path / "file"
    file.write_text("")
    cases = [
        (["--state-dir", str(tmp_path)], 1, "Another memory server owns"),
        (["--state-dir", str(tmp_path / "b"), "--shm-dir", "/proc/none"], 1, "--shm-dir"),
        (["--state-dir", str(file)], 1, "make it writable or name another"),
        (["--ram-fraction", "much"], 2, "--ram-fraction = 'much' is not a valid float"),
        (["--ram-fraction", "1.5"], 2, "ram_fraction"),
    ]

    async def refused(flags: list[str], code: int, sentence: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "llmos.servers.memory", "--kernel", "none", *flags],
            env={**os.environ, "LLMOS_STATE_DIR": str(tmp_path / "c")},
            stderr=asyncio.subprocess.PIPE,
        )
        _, stderr = await process.communicate()
        assert process.returncode == code, stderr
        lines = [line for line in stderr.decode().splitlines() if not line.startswith("{")]
        assert len(lines) == 1 and sentence in lines[0], stderr

    await asyncio.gather(*(refused(*case) for case in cases))
