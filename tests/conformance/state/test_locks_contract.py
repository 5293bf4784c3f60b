"""The contract of leases and locks."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import pytest
from state_world import SmallState

from llmos.lib.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    LLMOSError,
    NotFound,
)
from llmos.servers.storage.state.model import Keys, Put

LONG = 60_000  # ms; never reached
PATIENCE_S = 20


async def until_waiting(state: SmallState, name: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len((await state.locks.lock(name)).waiting) != count:
            await asyncio.sleep(0.005)


async def until_gone(state: SmallState, lease: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while lease in {found.id for found in await state.leases.leases()}:
            await asyncio.sleep(0.01)


async def test_a_lease_takes_its_documents_along(state: SmallState) -> None:
    lease = await state.leases.grant(LONG, "mine", "test")
    assert (lease.id, lease.ttl_ms, lease.owner) == ("mine", LONG, "test")
    await state.documents.put(Put("with", b"1", lease="mine"))
    await state.documents.put(Put("freed", b"1", lease="mine"))
    await state.documents.put(Put("freed", b"2"))
    async with aclosing(state.documents.watch(Keys("", True))) as watch:
        start = await anext(watch)
        assert (await state.leases.lease("mine")).documents == ["with"]
        assert LONG / 2 <= (await state.leases.renew("mine")).left_ms <= LONG
        await state.leases.grant(100, "mine")
        await until_gone(state, "mine")
        async with asyncio.timeout(PATIENCE_S):
            change = await anext(watch)
            while not change.documents:
                change = await anext(watch)
        assert [(d.key, d.version) for d in change.documents] == [("with", 0)]
        assert change.revision > start.revision
    assert [d.key for d in (await state.documents.list()).documents] == ["freed"]
    for call in (state.leases.renew("mine"), state.leases.lease("mine")):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == "NO_SUCH_LEASE"
    with pytest.raises(NotFound):
        await state.documents.put(Put("late", b"", lease="mine"))


async def test_granting_again_extends_and_revoking_ends(state: SmallState) -> None:
    await state.leases.grant(LONG, "l")
    await state.documents.put(Put("with", b"", lease="l"))
    assert (await state.leases.grant(2 * LONG, "l")).ttl_ms == 2 * LONG
    assert (await state.leases.lease("l")).documents == ["with"]
    token = await state.locks.acquire("lock", "l")
    assert token
    assert (await state.leases.lease("l")).locks == ["lock"]
    assert await state.leases.revoke("l") is True
    assert await state.leases.revoke("l") is False
    assert (await state.locks.lock("lock")).holder is None
    assert not (await state.documents.list()).documents
    made_up = await state.leases.grant(LONG)
    assert made_up.id and [found.id for found in await state.leases.leases()] == [made_up.id]


async def test_bad_leases(state: SmallState) -> None:
    for ttl_ms, id in ((0, ""), (99, ""), (86_400_001, ""), (1000, "x" * 129), (1000, "a\0")):
        with pytest.raises(InvalidArgument) as caught:
            await state.leases.grant(ttl_ms, id)
        assert caught.value.reason == "BAD_LEASE"
    assert await state.leases.leases() == []


async def test_locks_go_first_come_first_served(state: SmallState) -> None:
    leases = [(await state.leases.grant(LONG, f"l{i}", f"owner {i}")).id for i in range(5)]
    order: list[int] = []
    tokens: list[int] = []

    async def hold(index: int) -> None:
        token = await state.locks.acquire("the lock", leases[index], wait_ms=LONG)
        order.append(index)
        tokens.append(token)
        lock = await state.locks.lock("the lock")
        assert lock.holder is not None
        assert (lock.holder.token, lock.holder.owner) == (token, f"owner {index}")
        assert await state.locks.release("the lock", token) is True

    first = await state.locks.acquire("the lock", leases[0], request_id="first")
    tasks = []
    for index in range(5):
        tasks.append(asyncio.create_task(hold(index)))
        await until_waiting(state, "the lock", index + 1)
    assert [lock.name for lock in await state.locks.locks("the")] == ["the lock"]
    with pytest.raises(Aborted) as caught:
        await state.locks.acquire("the lock", leases[0], request_id="impatient")
    assert caught.value.reason == "LOCK_HELD"
    assert "owner 0" in str(caught.value)
    await state.locks.release("the lock", first)
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*tasks)
    assert order == list(range(5))
    assert tokens == sorted(tokens) and tokens[0] > first
    assert (await state.locks.lock("the lock")).holder is None
    assert await state.locks.locks() == []
    assert await state.locks.release("the lock", first) is False
    assert await state.locks.acquire("the lock", leases[1]) > tokens[-1]  # never used again


async def test_asking_again_finds_the_same_place(state: SmallState) -> None:
    await state.leases.grant(LONG, "a")
    await state.leases.grant(LONG, "b")
    token = await state.locks.acquire("l", "a", request_id="r")
    assert await state.locks.acquire("l", "a", request_id="r") == token
    twice = [
        asyncio.create_task(state.locks.acquire("l", "b", wait_ms=LONG, request_id="r"))
        for _ in range(2)
    ]
    await until_waiting(state, "l", 1)
    await asyncio.sleep(0.05)
    assert len((await state.locks.lock("l")).waiting) == 1
    twice[0].cancel()  # the other one goes on waiting in the same place
    await asyncio.sleep(0.05)
    assert len((await state.locks.lock("l")).waiting) == 1
    await state.locks.release("l", token)
    assert await twice[1] > token
    assert (await state.locks.lock("l")).waiting == ()


async def test_a_wait_that_ends_gives_its_place_up(state: SmallState) -> None:
    await state.leases.grant(LONG, "a")
    await state.leases.grant(LONG, "b")
    token = await state.locks.acquire("l", "a")
    with pytest.raises(DeadlineExceeded) as caught:
        await state.locks.acquire("l", "b", wait_ms=50)
    assert caught.value.reason == "LOCK_WAIT"
    assert (await state.locks.lock("l")).waiting == ()
    waiting = asyncio.create_task(state.locks.acquire("l", "b", wait_ms=LONG))
    await until_waiting(state, "l", 1)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await until_waiting(state, "l", 0)
    lock = await state.locks.lock("l")
    assert lock.holder is not None and lock.holder.token == token


async def test_a_lock_goes_on_when_its_lease_ends(state: SmallState) -> None:
    await state.leases.grant(LONG, "short")
    await state.leases.grant(LONG, "long")
    first = await state.locks.acquire("l", "short")
    await state.leases.grant(100, "short")
    second = await state.locks.acquire("l", "long", wait_ms=LONG)
    assert second > first
    await state.leases.grant(LONG, "short")
    waiting = asyncio.create_task(state.locks.acquire("l", "short", wait_ms=LONG))
    await until_waiting(state, "l", 1)
    await state.leases.revoke("short")
    with pytest.raises(NotFound) as caught:  # its lease ended while it waited
        await waiting
    assert caught.value.reason == "NO_SUCH_LEASE"
    with pytest.raises(NotFound):
        await state.locks.acquire("l", "never")


async def test_only_one_holds_a_lock(state: SmallState) -> None:
    inside, most, done = 0, 0, 0

    async def worker(index: int) -> None:
        nonlocal inside, most, done
        lease = (await state.leases.grant(LONG)).id
        for number in range(3):
            token = await state.locks.acquire(
                "l", lease, wait_ms=LONG, request_id=f"{index} {number}"
            )
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.002)
            inside -= 1
            done += 1
            await state.locks.release("l", token)

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(worker(index) for index in range(6)))
    assert (most, done) == (1, 18)


async def test_errors_are_ours(state: SmallState) -> None:
    with pytest.raises(LLMOSError) as caught:
        await state.locks.acquire("l", "x" * 1000)
    assert caught.value.reason == "NO_SUCH_LEASE"
    with pytest.raises(InvalidArgument) as bad:
        await state.locks.acquire("l", "x", request_id="r" * 129)
    assert bad.value.reason == "BAD_REQUEST_ID"
