"""Freed memory that its client gets again: whose it is, who may have seen it, who takes it back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.lib.errors import NotFound, ResourceExhausted
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.offers import KEEP_S, LARGEST
from llmos.servers.memory.record import Buffer
from llmos.servers.memory.shm import PAGE, charge

Make = Callable[..., BufferStore]
META = {"lock", "owner.json"}


def key(buffer: Buffer) -> tuple[str, bytes]:
    return buffer.record.id, bytes.fromhex(buffer.record.token)


def again(store: BufferStore, buffer: Buffer, who: str = "a") -> Buffer | None:
    return store.free(who, *key(buffer), unmapped=True, again=True)


def listed(store: BufferStore) -> list[str]:
    return [b.record.id for b in store.buffers()]


async def test_the_memory_comes_again_as_a_new_buffer(store: BufferStore) -> None:
    old = await store.create("a", PAGE, "pixels", 7, "once", tenant="t")
    inode = os.stat(store.path(old)).st_ino
    new = again(store, old)
    assert new is not None and new.record.id != old.record.id
    assert new.record.token != old.record.token
    assert (new.record.label, new.record.tenant, new.record.leases) == ("pixels", "t", {"a": 7})
    assert os.stat(store.path(new)).st_ino == inode
    assert store.accounts.used == charge(PAGE)
    assert listed(store) == []  # nobody's yet
    with pytest.raises(NotFound):
        store.open("b", *key(old))
    assert (await store.create("a", PAGE, request="once")).record.id != new.record.id
    os.unlink(store.claim(new))
    assert new.record.id in listed(store)
    store.expire()
    assert store.open("b", *key(new)) is new  # a buffer as any other
    store.free("a", *key(new))
    store.free("b", *key(new))
    assert not Path(store.path(new)).exists()


async def test_nobody_else_may_have_seen_it(store: BufferStore) -> None:
    def refused(buffer: Buffer, who: str = "a") -> bool:
        return again(store, buffer, who) is None

    opened = await store.create("a", PAGE)
    store.open("b", *key(opened))
    assert refused(opened) and refused(opened, "b")
    seen = await store.create("a", PAGE)
    store.open("b", *key(seen))
    store.free("b", *key(seen))  # without a word on what it still looks at
    assert refused(seen)
    expired = await store.create("a", PAGE, lease_s=60)
    store.open("b", *key(expired), 0.0)
    store.drop_process("b")  # it may only be cut off
    assert refused(expired)
    sealed = await store.create("a", PAGE)
    store.seal("a", *key(sealed))
    assert refused(sealed)
    read = await store.create("a", 2 * PAGE)
    pieces = store.read(*key(read))
    next(pieces)
    assert refused(read)
    cut = await store.create("a", PAGE)
    os.truncate(store.path(cut), 1)
    assert refused(cut)
    mapped = await store.create("a", PAGE)
    assert store.free("a", *key(mapped), again=True) is None
    assert listed(store) == []
    looked = await store.create("a", PAGE)
    store.open("b", *key(looked))
    store.free("b", *key(looked), unmapped=True)
    assert not refused(looked)


async def test_strangers_are_remembered_over_a_restart(make_store: Make) -> None:
    store = make_store()
    buffer = await store.create("a", PAGE)
    store.open("b", *key(buffer))
    store.free("b", *key(buffer))
    assert again(make_store(), buffer) is None


async def test_large_or_too_much_is_not_worth_it(make_store: Make) -> None:
    store = make_store(budget=64 << 20)
    assert again(store, await store.create("a", LARGEST + 1)) is None
    store = make_store(budget=16 * charge(PAGE))
    offers = [again(store, await store.create("a", PAGE)) for _ in range(3)]
    assert [offer is not None for offer in offers] == [True, True, False]


async def test_what_is_not_taken_is_taken_back(make_store: Make, clock: Any) -> None:
    store = make_store()
    lost, taken = [again(store, await store.create("a", PAGE)) for _ in range(2)]
    assert lost is not None and taken is not None
    os.unlink(store.claim(taken))
    clock.now += KEEP_S
    store.expire()
    root = Path(store.path(taken)).parent
    names = {taken.record.id, f"{taken.record.id}.json"}
    assert listed(store) == [taken.record.id] and {p.name for p in root.iterdir()} - META == names
    assert store.accounts.used == charge(PAGE)


async def test_room_that_is_wanted_is_taken_back(make_store: Make) -> None:
    store = make_store(budget=16 * charge(PAGE), quota=9 * charge(PAGE))
    offer = again(store, await store.create("a", PAGE, tenant="t"))
    taken = again(store, await store.create("a", PAGE, tenant="t"))
    assert offer is not None and taken is not None
    os.unlink(store.claim(taken))
    kept = [await store.create("b", PAGE, tenant="t") for _ in range(8)]
    assert store.accounts.used == 9 * charge(PAGE)
    assert not Path(store.path(offer)).exists() and Path(store.path(taken)).exists()
    with pytest.raises(ResourceExhausted) as caught:
        await store.create("b", PAGE, tenant="t")
    assert caught.value.reason == "QUOTA" and len(kept) == 8


async def test_after_a_crash_what_was_taken_is_there_and_nothing_else(make_store: Make) -> None:
    store = make_store()
    lost, taken = [again(store, await store.create("a", PAGE)) for _ in range(2)]
    assert lost is not None and taken is not None
    os.unlink(store.claim(taken))
    store = make_store()
    assert listed(store) == [taken.record.id]
    root = Path(store.path(taken)).parent
    names = {taken.record.id, f"{taken.record.id}.json"}
    assert {p.name for p in root.iterdir()} - META == names
    assert store.free("a", *key(lost)) is None  # freeing what is gone is fine
