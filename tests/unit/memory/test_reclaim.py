from __future__ import annotations

from typing import Any

import pytest

from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.reclaim import Reclaimer


@pytest.fixture
def reclaimer(store: BufferStore, clock: Any) -> Reclaimer:
    reclaimer = Reclaimer(store, watching=True, clock=clock)
    reclaimer.attached("a", 1)
    reclaimer.synced()
    return reclaimer


async def test_a_dead_process_is_reclaimed_after_the_grace(
    store: BufferStore, reclaimer: Reclaimer, clock: Any
) -> None:
    await store.create("a/1", 10)
    shared = await store.create("a/2", 10)
    store.open("b", shared.record.id, bytes.fromhex(shared.record.token))
    reclaimer.detached("a", 1)
    clock.now += 1.9
    reclaimer.tick()
    assert len(store.buffers()) == 2
    clock.now += 0.2
    reclaimer.tick()
    assert store.buffers() == [shared] and list(shared.deadlines) == ["b"]


async def test_a_process_that_comes_back_keeps_its_leases(
    store: BufferStore, reclaimer: Reclaimer, clock: Any
) -> None:
    await store.create("a", 10)
    reclaimer.detached("a", 1)
    clock.now += 1
    reclaimer.attached("a", 2)
    clock.now += 5
    reclaimer.tick()
    assert len(store.buffers()) == 1


async def test_the_new_port_may_be_seen_before_the_old_one_goes(
    store: BufferStore, reclaimer: Reclaimer, clock: Any
) -> None:
    await store.create("a", 10)
    reclaimer.attached("a", 2)
    reclaimer.detached("a", 1)
    clock.now += 5
    reclaimer.tick()
    assert len(store.buffers()) == 1


async def test_leases_stand_still_while_the_kernel_is_away(
    store: BufferStore, reclaimer: Reclaimer, clock: Any
) -> None:
    await store.create("a", 10, lease_s=5)
    await store.create("b", 10, lease_s=5)
    plain = await store.create("grpc:x", 10, lease_s=5)
    reclaimer.lost()
    clock.now += 60
    reclaimer.tick()
    assert [b.record.creator for b in store.buffers()] == ["a", "b"]
    assert plain.deadlines == {}
    reclaimer.attached("a", 7)
    reclaimer.synced()
    reclaimer.tick()
    clock.now += 9.9
    reclaimer.tick()
    assert len(store.buffers()) == 2  # both have the grace, to come back or to renew
    assert store.renew("a", []) == []
    clock.now += 0.2
    reclaimer.tick()
    assert [b.record.creator for b in store.buffers()] == ["a"]
    clock.now += 5
    reclaimer.tick()  # a renewed for 5 s and then no more
    assert store.buffers() == []


async def test_without_a_kernel_time_alone_counts(store: BufferStore, clock: Any) -> None:
    reclaimer = Reclaimer(store, watching=False, clock=clock)
    await store.create("left by a process of an earlier life", 10, lease_s=5)
    clock.now += 5
    reclaimer.tick()
    assert store.buffers() == []
