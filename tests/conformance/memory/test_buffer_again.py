"""Buffers that a client frees and creates, again and again, over the same memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.bufferpool import ROOM
from llmos.lib.buffers import BufferClient, Mapping
from llmos.lib.errors import NotFound
from llmos.lib.handlers import current

MIB = 1 << 20


def address(mapping: Mapping) -> int:
    return int(mapping.array(np.uint8).ctypes.data)


def copy(handle: BufferHandle) -> BufferHandle:
    return BufferHandle.FromString(handle.SerializeToString())


async def dirty(client: BufferClient, label: str = "") -> Mapping:
    mapping = await client.create(MIB, label)
    mapping.view[:] = b"x" * MIB
    return mapping


async def test_the_same_memory_zeroed_and_under_a_new_name(near_and_far: Any) -> None:
    world, near, _ = near_and_far
    async with BufferClient(near) as maker, BufferClient(near) as user:
        first = await dirty(maker)
        where, old = address(first), copy(first.handle)
        await maker.free(first)
        second = await maker.create(MIB)
        assert address(second) == where and not bytes(second.view).strip(b"\0")
        assert second.handle.id != old.id and second.handle.token != old.token
        assert [b.record.id for b in world.store.buffers()] == [second.handle.id]
        with pytest.raises(NotFound):
            await user.open(old)
        theirs = await user.open(copy(second.handle))
        second.view[7] = 7
        assert theirs.view[7] == 7
        other = await maker.create(MIB, "another label")
        assert address(other) != where
    assert world.store.buffers() == []


async def test_never_while_anybody_looks_at_it(near_and_far: Any) -> None:
    _, near, _ = near_and_far
    async with BufferClient(near) as maker, BufferClient(near) as user:
        mine = await dirty(maker)
        array = mine.array(np.uint8)
        await maker.free(mine)
        assert address(await maker.create(MIB)) != array.ctypes.data and array[0] == ord("x")
        shown = await dirty(maker)
        theirs = await user.open(copy(shown.handle))
        await maker.free(shown)
        await maker.settled()
        next_one = await maker.create(MIB)
        next_one.view[0] = 1
        assert theirs.view[0] == ord("x")
        kept = await dirty(maker)
        view = (await user.open(copy(kept.handle))).view
        for mapping in [m for held in user._mappings.values() for m in held]:
            await user.free(mapping)
        await user.settled()  # no lease, but a view
        await maker.free(kept)
        (await maker.create(MIB)).view[0] = 2
        assert view[0] == ord("x")


async def test_torch_keeps_its_memory(near_and_far: Any) -> None:
    torch = pytest.importorskip("torch")
    _, near, _ = near_and_far
    async with BufferClient(near) as maker:
        for ours in (True, False):
            mine = await dirty(maker)
            tensor = (
                mine.tensor(np.uint8) if ours else torch.frombuffer(mine.view, dtype=torch.uint8)
            )
            await maker.free(mine)
            (await maker.create(MIB)).view[:] = b"y" * MIB
            assert int(tensor[0]) == ord("x") == int(tensor[-1])


async def test_again_after_a_reader_let_go(near_and_far: Any) -> None:
    _, near, _ = near_and_far
    async with BufferClient(near) as maker, BufferClient(near) as user:
        mine = await dirty(maker)
        where = address(mine)
        await user.free(await user.open(copy(mine.handle)))
        await user.settled()
        await maker.free(mine)
        assert address(await maker.create(MIB)) == where


async def test_what_is_not_wanted_again_is_unmapped(near_and_far: Any) -> None:
    world, near, _ = near_and_far
    async with BufferClient(near, lease_s=1) as maker:
        mappings = [await dirty(maker) for _ in range(3)]
        root = str(Path(world.store.path(world.store.buffers()[0])).parent)
        for mapping in mappings:
            await maker.free(mapping)
        await maker.settled()
        assert world.store.buffers() == []
        assert root in Path("/proc/self/maps").read_text()
        del mappings, mapping
        async with asyncio.timeout(20):
            while root in Path("/proc/self/maps").read_text():
                await asyncio.sleep(0.1)
        fresh = await maker.create(MIB)  # the pool is usable after that
        assert not bytes(fresh.view).strip(b"\0")


async def test_the_oldest_give_way(near_and_far: Any) -> None:
    world, near, _ = near_and_far
    world.store.accounts.budget = 1 << 30  # of which the server may offer an eighth
    size, count = 8 * MIB, ROOM // (8 * MIB)
    async with BufferClient(near) as maker:
        mappings = [await maker.create(size, f"{i}") for i in range(count + 2)]
        where = [address(m) for m in mappings]
        for mapping in mappings:
            await maker.free(mapping)
            await maker.settled()
        again = {i: address(await maker.create(size, f"{i}")) for i in (count + 1, 2)}
        assert again == {i: where[i] for i in again}
        waiting = world.store._offers.waiting()
        assert len(waiting) == count - 2  # what went was given back at once
    assert world.store.buffers() == []


async def test_not_for_another_tenant(near_and_far: Any) -> None:
    """Who serves calls of several tenants makes their buffers in their names."""
    _, near, _ = near_and_far

    def serve(tenant: str) -> None:
        current.set(cast(Any, SimpleNamespace(ended=False, open=SimpleNamespace(tenant=tenant))))

    async with BufferClient(near) as maker:
        serve("ann")
        mine = await dirty(maker)
        where = address(mine)
        await maker.free(mine)
        await maker.settled()
        serve("bob")
        assert address(await maker.create(MIB)) != where
        serve("ann")
        assert address(await maker.create(MIB)) == where
