"""kill -9 of kernel, server and client while calls of every kind are under way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from kernel_faults import Cell, cell, failure

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib import rpc

CLIENT = """
import asyncio, sys
from llmos.api.storage.v1 import registry_pb2 as pb, registry_pb2_grpc
from llmos.lib.port import Port

async def main():
    port = Port(sys.argv[1], "victim")
    await port.start()
    blobs = registry_pb2_grpc.BlobsStub(port.channel)
    names = [f"victim{i}" for i in range(6)]
    calls = [blobs.StatBlobs(pb.StatBlobsRequest(sha256=[name, "60"])) for name in names]
    await asyncio.gather(*calls)

asyncio.run(main())
"""


def start_client(world: Cell) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CLIENT, world.kernel.address])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Cell]:
    async with cell(tmp_path) as made:
        yield made


async def test_the_kernel_is_killed(world: Cell) -> None:
    """Idempotent calls (running and queued) and resumable streams go on; the rest is told."""
    pid = await world.server("a", credits=3)
    once = world.once("once", 1.0)
    stream, resumed = world.read("s", 40), world.read("r", 40)
    await world.started("once", "s", "r")
    asked = [world.ask(f"idem{i}", 0.3) for i in range(8)]  # one runs, seven wait for credits
    await world.started("idem0")
    async with grpc.aio.insecure_channel(world.kernel.address) as channel:
        plain = registry_pb2_grpc.BlobsStub(channel)
        request = pb.StatBlobsRequest(sha256=["plain", "60"])
        unlucky = asyncio.ensure_future(plain.StatBlobs(request, timeout=60))
        await asyncio.sleep(0.1)
        world.kernel.kill()
        assert (await failure(unlucky)).code == 14
    world.kernel.start()
    assert (await failure(once)).reason == "KERNEL_LOST_MAY_HAVE_RUN"
    assert (await failure(stream)).reason == "KERNEL_LOST"
    assert await resumed == list(range(40))
    assert await asyncio.gather(*asked) == [pid] * 8
    assert world.count("start", "once") == 1
    assert await world.ask("after", 0) == pid


async def test_a_server_is_killed_with_another_beside_it(world: Cell) -> None:
    first = await world.server("a")
    once, asked = world.once("once", 60), [world.ask(f"again{i}", 60) for i in range(5)]
    stream, resumed = world.read("s", 1000), world.read("r", 80)
    await world.started("once", *(f"again{i}" for i in range(5)), "s", "r")
    second = await world.server("b")
    world.signal("a")
    assert (await failure(once)).reason == "SERVER_DIED_MAY_HAVE_RUN"
    assert (await failure(stream)).reason == "SERVER_DIED"
    assert await resumed == list(range(80))
    assert await asyncio.gather(*asked) == [second] * 5
    assert world.count("start", "once") == 1
    assert {p for p, event, name in world.journal() if name == "again0"} == {first, second}


async def test_the_only_server_is_killed_and_comes_back(world: Cell) -> None:
    await world.server("a")
    asked, resumed = world.ask("again", 60), world.read("r", 30)
    await world.started("again", "r")
    world.signal("a")
    waiting = world.ask("waiting", 0)
    await asyncio.sleep(0.3)
    again = await world.server("a")
    assert {await asked, await waiting} == {again}
    assert await resumed == list(range(30))


async def test_a_client_is_killed_and_its_work_is_stopped(world: Cell) -> None:
    await world.server("a", credits=8)
    victim = start_client(world)
    try:
        await world.started(*(f"victim{i}" for i in range(6)))
    finally:
        victim.kill()
        victim.wait()
    for i in range(6):
        await world.until(lambda i=i: world.count("cancel", f"victim{i}") == 1)  # type: ignore[misc]
    assert (await world.port_of("a")).running == 0


async def test_kernel_and_server_die_together(world: Cell) -> None:
    await world.server("a")
    asked, resumed = world.ask("again", 60), world.read("r", 30)
    await world.started("again", "r")
    world.kernel.kill()
    world.signal("a")
    world.kernel.start()
    again = await world.server("a")
    assert await asked == again
    assert await resumed == list(range(30))


async def test_sigterm_of_the_kernel_is_told_to_ports_and_quiet(world: Cell) -> None:
    pid = await world.server("a")
    asked, resumed = world.ask("idem", 0.5), world.read("r", 30)
    await world.started("idem", "r")
    world.kernel.stop()
    log = world.kernel.log.read_text()
    assert "kernel stopped" in log and "Traceback" not in log and "not handled" not in log
    world.kernel.start()
    assert await asked == pid
    assert await resumed == list(range(30))


async def test_sigterm_of_a_server_loses_no_call(world: Cell) -> None:
    await world.server("a")
    once, asked = world.once("once", 3), world.ask("idem", 3)
    stream = world.read("s", 60)
    await world.started("once", "idem", "s")
    await world.server("b")
    world.signal("a", signal.SIGTERM)
    later = [world.ask(f"later{i}", 0) for i in range(10)]
    await asyncio.gather(once, asked, stream, *later)
    assert await asyncio.to_thread(world.processes["a"].wait, 20) == 0
    assert world.count("start", "once") == world.count("end", "once") == 1


async def test_the_reason_reaches_plain_clients_too(world: Cell) -> None:
    await world.server("a")
    async with grpc.aio.insecure_channel(world.kernel.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/fault.Test/Once"
        )
        once = asyncio.ensure_future(call(b"once 60", timeout=60))
        await world.started("once")
        world.signal("a")
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await once
        assert rpc.from_rpc_error(info.value).reason == "SERVER_DIED_MAY_HAVE_RUN"
