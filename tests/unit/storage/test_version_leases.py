"""Leases run by the clock of the boot: neither a jump of the date nor a restart ends one early."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from llmos.lib.errors import NotFound
from llmos.servers.storage.db.clock import BootClock
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_registry import models, versions
from llmos.servers.storage.registry.local import LocalLeases
from llmos.servers.storage.registry.model import VersionLease


class SetClock(BootClock):
    """A clock that a test sets."""

    def __init__(self, boot: str = "one", now: float = 1000.0) -> None:
        self.boot, self.time = boot, now

    def now(self) -> float:
        return self.time


@pytest.fixture
def database(tmp_path: Path, sqlite_template: Path) -> Iterator[Database]:
    shutil.copy(sqlite_template, tmp_path)
    made = Database(tmp_path / "registry.db")
    with made.write() as sql:
        sql.execute(insert(models), {"name": "m", "last_version": 1})
        texts = dict.fromkeys(("architecture", "dtype", "license", "source", "job", "step"), "")
        numbers = dict.fromkeys(("format", "task", "parameters", "context_length", "created"), 0)
        sql.execute(insert(versions), {"name": "m", "version": 1, "digest": "d"} | texts | numbers)
    try:
        yield made
    finally:
        made.close()


async def left(leases: LocalLeases) -> list[VersionLease]:
    return list(await leases.list_leases("m"))


async def test_a_lease_runs_out_when_nobody_renews_it(database: Database) -> None:
    clock = SetClock()
    leases = LocalLeases(database, clock)
    lease = await leases.acquire_lease("m", "w", 60)
    clock.time += 59
    assert [one.remaining_s for one in await left(leases)] == [1]
    await leases.renew_lease(lease.id)
    clock.time += 59
    assert await left(leases)
    clock.time += 2
    assert await left(leases) == []
    with pytest.raises(NotFound):
        await leases.renew_lease(lease.id)
    assert not await leases.release_lease(lease.id)


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0, 1e9])
async def test_a_jump_of_the_date_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    leases = LocalLeases(database)  # the real clock
    lease = await leases.acquire_lease("m", "w", 600)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump_s)
    again = LocalLeases(database)  # a restart at that moment
    (found,) = await left(again)
    assert found.id == lease.id and 500 < found.remaining_s <= 600
    assert 599 < (await again.renew_lease(lease.id)).remaining_s <= 600


async def test_a_restart_goes_on_and_a_reboot_begins_anew(database: Database) -> None:
    await LocalLeases(database, SetClock(now=1000)).acquire_lease("m", "w", 60)
    assert [one.remaining_s for one in await left(LocalLeases(database, SetClock(now=1050)))] == [
        10
    ]
    reboot = SetClock("two", 5)
    leases = LocalLeases(database, reboot)
    (found,) = await left(leases)
    assert found.remaining_s == 60
    await leases.renew_lease(found.id)
    reboot.time = 66
    assert await left(leases) == []


async def test_leases_get_their_time_back_when_the_server_begins(database: Database) -> None:
    clock = SetClock()
    lease = await LocalLeases(database, clock).acquire_lease("m", "w", 60)
    clock.time += 600  # the server was away: nobody could renew
    leases = LocalLeases(database, clock)
    leases.begin()
    (found,) = await left(leases)
    assert (found.id, found.remaining_s) == (lease.id, 60)
