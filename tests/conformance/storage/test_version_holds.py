"""Servers hold the versions that they use: src/llmos/lib/holds.py on a real registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from model_files import tiny_onnx
from storage_world import World

from llmos.lib.config import socket_address
from llmos.lib.errors import FailedPrecondition, NotFound
from llmos.lib.holds import Need, VersionHolds
from llmos.servers.storage.model import Registered

WAYS = ["gRPC"]
M1, M2 = "m@1", "m@2"


@pytest.fixture
async def channel(world: World, state_dir: Path) -> AsyncIterator[grpc.aio.Channel]:
    """To a registry with two versions of `m`."""
    for seed in (1, 2):
        path = tiny_onnx(state_dir / f"{seed}.onnx", seed=seed)
        steps = [step async for step in world.storage.import_model(str(path), "m")]
        assert isinstance(steps[-1], Registered)
    async with grpc.aio.insecure_channel(socket_address(state_dir, "storage")) as made:
        yield made


@asynccontextmanager
async def keeping(
    channel: grpc.aio.Channel, needed: Callable[[], Iterable[Need]], **settings: float
) -> AsyncIterator[VersionHolds]:
    holds = VersionHolds(channel, "a server", needed, **settings)
    task = asyncio.create_task(holds.keep())
    try:
        yield holds
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def held(world: World) -> dict[str, str]:
    """Return who has leases, by version."""
    return {f"{x.model}@{x.version}": x.holder for x in await world.leases.list_leases("")}


async def test_what_is_needed_is_held_and_nothing_else(
    world: World, channel: grpc.aio.Channel
) -> None:
    needed: set[Need] = {(M1, "job 7")}
    async with keeping(channel, lambda: needed) as holds:
        await holds.settle()
        assert await held(world) == {M1: "job 7, a server"}
        with pytest.raises(FailedPrecondition, match=r"'job 7, a server' .* has a lease"):
            await world.storage.delete_version(M1, True)
        await holds.hold(M2)  # before anybody can say that it is needed
        assert (await held(world))[M2] == "a server"
        with pytest.raises(NotFound) as gone:
            await holds.hold("m@9")
        assert gone.value.reason == "NO_SUCH_VERSION"
        needed.clear()
        needed.add((M2, ""))
        await holds.settle()
        assert await held(world) == {M2: "a server"}
        await world.storage.delete_version(M1, False)


async def test_the_next_process_goes_on_with_the_leases_of_a_killed_one(
    world: World, channel: grpc.aio.Channel
) -> None:
    async with keeping(channel, lambda: [(M1, ""), (M2, "")]) as first:
        await first.settle()
    before = {lease.id for lease in await world.leases.list_leases("")}
    assert len(before) == 2
    other = await world.leases.acquire_lease(M2, "somebody else", 60)
    async with keeping(channel, lambda: [(M1, "")]) as second:
        await second.settle()
        after = {lease.id for lease in await world.leases.list_leases("")}
        assert other.id in after and len(after) == 2 and len(before & after) == 1


async def test_a_lost_lease_is_taken_again(world: World, channel: grpc.aio.Channel) -> None:
    async with keeping(channel, lambda: [(M1, "")], ttl_s=1) as holds:
        await holds.settle()
        (lease,) = await world.leases.list_leases("")
        await world.leases.release_lease(lease.id)
        async with asyncio.timeout(30):  # at its next renewal, a third of a second later
            while not await world.leases.list_leases(""):
                await asyncio.sleep(0.05)
