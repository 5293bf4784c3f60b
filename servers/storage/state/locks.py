"""Locks: places in a queue in the database; who asks waits here for the place to be the first."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, func, select

from llmos.lib.errors import Aborted, DeadlineExceeded
from llmos.servers.storage import caller
from llmos.servers.storage.db.tables_state import queue
from llmos.servers.storage.state import checks, rows
from llmos.servers.storage.state.base import Locks
from llmos.servers.storage.state.hub import Subscription
from llmos.servers.storage.state.model import Keys, Lock, Place
from llmos.servers.storage.state.store import Store, stopping
from llmos.servers.storage.state.writer import Writer, no_such_lease

c = queue.c
_Seat = tuple[str, str, int]  # tenant, lock, token


class LocalLocks(Locks):
    """Implements Locks."""

    def __init__(self, store: Store) -> None:
        """Use the store's database."""
        self._store = store
        self._waiting: Counter[_Seat] = Counter()  # calls that wait for the same place
        self._told: set[_Seat] = set()  # of these, places whose lock one of the calls has got

    async def acquire(
        self, name: str, lease: str, *, wait_ms: int = 0, owner: str = "", request_id: str = ""
    ) -> int:
        """See Locks."""
        checks.check_key(name)
        checks.check_id(request_id, "request_id")
        deadline = time.monotonic() + min(wait_ms, checks.MAX_WAIT_MS) / 1000
        tenant = caller.current().tenant
        with self._store.hub.subscribe("lock", tenant, Keys(name)) as news:
            taken = asyncio.ensure_future(
                self._store.write(
                    lambda writer: _join(writer, name, lease, owner, request_id, wait_ms > 0)
                )
            )
            try:
                token, first = await asyncio.shield(taken)
            except asyncio.CancelledError:  # the write goes on: give back what it takes
                await asyncio.wait([taken])
                if taken.exception() is None:
                    await self._give_up((tenant, name, taken.result()[0]))
                raise
            return token if first else await self._wait((tenant, name, token), news, deadline)

    async def _wait(self, seat: _Seat, news: Subscription, deadline: float) -> int:
        """Return the token when its place is the first; on any other end give the place up."""
        _, name, token = seat
        self._waiting[seat] += 1
        keep = False
        try:
            while True:
                news.begin()
                lock = await self._store.read(lambda sql, tenant: _lock(sql, tenant, name))
                if lock.holder is not None and lock.holder.token == token:
                    self._told.add(seat)
                    return token
                if all(place.token != token for place in lock.waiting):
                    keep = True
                    raise no_such_lease("that waits for " + name)
                if self._store.hub.stopping:
                    keep = True
                    raise stopping()
                if (left := deadline - time.monotonic()) <= 0:
                    raise DeadlineExceeded("LOCK_WAIT", f"{_held(lock)}; it did not come free.")
                await news.wait(left)
        finally:
            self._waiting[seat] -= 1
            if not self._waiting[seat]:
                del self._waiting[seat]
                keep = keep or seat in self._told
                self._told.discard(seat)
                if not keep and not self._store.hub.stopping:
                    await asyncio.shield(self._give_up(seat))

    async def _give_up(self, seat: _Seat) -> None:
        tenant, name, token = seat
        await self._store.write(lambda writer: writer.leave(name, token, "gave up"), tenant)

    async def release(self, name: str, token: int) -> bool:
        """See Locks."""
        checks.check_key(name)
        return await self._store.write(lambda writer: writer.leave(name, token, "released"))

    async def lock(self, name: str) -> Lock:
        """See Locks."""
        checks.check_key(name)
        return await self._store.read(lambda sql, tenant: _lock(sql, tenant, name))

    async def locks(self, prefix: str = "") -> Sequence[Lock]:
        """See Locks."""
        checks.check_prefix(prefix)

        def read(sql: Connection, tenant: str) -> list[Lock]:
            keys = Keys(prefix, prefix=True)
            query = select(queue).where(c.tenant == tenant, rows.covered(c.name, keys))
            found = sql.execute(query.order_by(c.name, c.token)).all()
            return [_of(name, list(some)) for name, some in groupby(found, lambda row: row.name)]

        return await self._store.read(read)


def _join(
    writer: Writer, name: str, lease: str, owner: str, request_id: str, wait: bool
) -> tuple[int, bool]:
    """Return (token, whether it is the first). Raises NO_SUCH_LEASE, LOCK_HELD."""
    lease_owner = writer.require_lease(lease)
    lock = _lock(writer.sql, writer.tenant, name)
    mine = (c.tenant == writer.tenant) & (c.name == name) & (c.lease == lease)
    mine &= c.request_id == request_id
    token = writer.sql.execute(select(func.min(c.token)).where(mine)).scalar()
    first = lock.holder is None or lock.holder.token == token
    if not first and not wait:
        raise Aborted("LOCK_HELD", f"{_held(lock)}; wait for it, or try again later.")
    if token is None:
        token = writer.join(name, lease, checks.shorten(owner) or lease_owner, request_id)
    return token, first


def _held(lock: Lock) -> str:
    by = lock.holder
    who = f"{by.owner or by.lease} (token {by.token})" if by else "nobody"
    return f"The lock {lock.name!r} is held by {who}, and {len(lock.waiting)} wait for it"


def _lock(sql: Connection, tenant: str, name: str) -> Lock:
    mine = select(queue).where(c.tenant == tenant, c.name == name).order_by(c.token)
    return _of(name, list(sql.execute(mine)))


def _of(name: str, found: list[Row[Any]]) -> Lock:
    places = [Place(row.token, row.lease, row.owner, row.asked_ms / 1000) for row in found]
    return Lock(name, places[0] if places else None, tuple(places[1:]))
