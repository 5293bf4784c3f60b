"""When leases end: by a clock that nobody sets, never because the server was away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmos.lib.errors import NotFound
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.state.clock import LeaseClock
from llmos.servers.storage.state.local import LocalState
from llmos.servers.storage.state.model import Put


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "state.db")
    yield opened
    opened.close()


@contextlib.asynccontextmanager
async def kept(state: LocalState) -> AsyncIterator[LocalState]:
    keeping = asyncio.create_task(state.leases.keep())
    try:
        yield state
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        state.close()


def test_deadlines() -> None:
    now = Clock()
    clock = LeaseClock(now)
    assert clock.next_s() is None
    clock.start("t", "a", 10_000, "")
    clock.start("t", "b", 5_000, "")
    now.now += 4
    assert clock.next_s() == pytest.approx(1)
    assert clock.renew("t", "b").left_ms == 5_000
    assert clock.get("t", "a").left_ms == 6_000
    now.now += 5.5
    assert clock.ended() == [("t", "b")]
    clock.postpone(1)  # the server stood still for a second
    assert clock.ended() == []
    now.now += 3
    assert clock.ended() == [("t", "b"), ("t", "a")]
    clock.end(("t", "a"))
    with pytest.raises(NotFound):
        clock.renew("t", "a")
    assert [lease.id for lease in clock.of("t")] == ["b"]


async def test_after_a_restart_leases_have_their_full_time(database: Database) -> None:
    now = Clock()
    async with kept(LocalState(database, now=now)) as state:
        await state.leases.grant(10_000, "l", "me")
        await state.documents.put(Put("k", b"", lease="l"))
        token = await state.locks.acquire("lock", "l")
        now.now += 9
        assert (await state.leases.lease("l")).lease.left_ms == 1_000
    now.now -= 500  # another boot: the clock begins anew
    async with kept(LocalState(database, now=now)) as state:
        again = await state.leases.lease("l")
        assert (again.lease.left_ms, again.lease.owner) == (10_000, "me")
        assert (again.documents, again.locks) == (["k"], ["lock"])
        lock = await state.locks.lock("lock")
        assert lock.holder is not None and lock.holder.token == token


async def test_the_wall_clock_ends_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, real_ns = time.time, time.time_ns
    async with kept(LocalState(database)) as state:
        await state.leases.grant(60_000, "l")
        for jump in (86_400.0, -86_400.0 * 365):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            monkeypatch.setattr(time, "time_ns", lambda jump=jump: real_ns() + int(jump * 1e9))
            await state.leases.grant(60_000, "other")  # wakes the keeper
            await asyncio.sleep(0.05)
            assert {lease.id for lease in await state.leases.leases()} == {"l", "other"}


async def test_a_server_that_stood_still_ends_nothing(database: Database) -> None:
    now = Clock()
    async with kept(LocalState(database, now=now)) as state:
        await state.leases.grant(10_000, "l")
        await asyncio.sleep(0.05)  # the keeper sleeps its tick
        now.now += 60  # as after SIGSTOP, or a loop that was blocked
        async with asyncio.timeout(20):
            while (await state.leases.lease("l")).lease.left_ms <= 9_000:
                await asyncio.sleep(0.02)
        assert [lease.id for lease in await state.leases.leases()] == ["l"]
