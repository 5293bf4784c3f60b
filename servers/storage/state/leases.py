"""Leases: which there are is in the database, how long they still live in memory."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, delete, insert, select

from llmos.lib.errors import LLMOSError, NotFound
from llmos.servers.storage import caller
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_state import leases
from llmos.servers.storage.state import checks
from llmos.servers.storage.state.base import Leases
from llmos.servers.storage.state.clock import LeaseClock, LeaseKey
from llmos.servers.storage.state.model import Attached, Lease
from llmos.servers.storage.state.store import Store
from llmos.servers.storage.state.writer import Writer, attached_documents, attached_places

log = logging.getLogger(__name__)
TICK_S = 0.5  # at least so often the clock is looked at while there are leases
_LATE_S = 0.5  # being so late means that the process stood still, and heard no renewals
_RETRY_S = 1.0


class LocalLeases(Leases):
    """Implements Leases. `keep` must run for leases to end."""

    def __init__(
        self, store: Store, database: Database, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Give every lease of the database its full time."""
        self._store = store
        self._now = now
        self._clock = LeaseClock(now)
        self._ending = asyncio.Lock()  # a lease cannot be granted again while it ends
        self._sooner = asyncio.Event()
        with database.read() as sql:
            for row in sql.execute(select(leases)):
                self._clock.start(row.tenant, row.id, row.ttl_ms, row.owner)

    async def grant(self, ttl_ms: int, id: str = "", owner: str = "") -> Lease:
        """See Leases."""
        checks.check_id(id)
        checks.check_ttl(ttl_ms)
        id, tenant = id or uuid.uuid4().hex, caller.current().tenant
        owner = checks.shorten(owner)

        def write(writer: Writer) -> None:
            row = {"tenant": writer.tenant, "id": id, "ttl_ms": ttl_ms, "owner": owner}
            mine = (leases.c.tenant == writer.tenant) & (leases.c.id == id)
            writer.sql.execute(delete(leases).where(mine))
            writer.sql.execute(insert(leases).values(row))
            writer.record("lease.grant", id, {"ttl_ms": ttl_ms, "owner": owner})

        async with self._ending:
            await self._store.write(write)
            lease = self._clock.start(tenant, id, ttl_ms, owner)
        self._sooner.set()
        return lease

    async def renew(self, id: str) -> Lease:
        """See Leases."""
        return self._clock.renew(caller.current().tenant, id)

    async def revoke(self, id: str) -> bool:
        """See Leases."""
        async with self._ending:
            existed = await self._store.write(lambda writer: writer.end_lease(id, "revoked"))
            self._clock.drop([(caller.current().tenant, id)])
        return existed

    async def lease(self, id: str) -> Attached:
        """See Leases."""
        lease = self._clock.get(caller.current().tenant, id)

        def read(sql: Connection, tenant: str) -> Attached:
            places = attached_places(sql, tenant, id)
            names = sorted({name for name, _ in places})
            return Attached(lease, attached_documents(sql, tenant, id), names)

        return await self._store.read(read)

    async def leases(self) -> Sequence[Lease]:
        """See Leases."""
        return self._clock.of(caller.current().tenant)

    def alive(self, id: str) -> bool:
        """Return whether the caller's tenant has this lease."""
        try:
            self._clock.get(caller.current().tenant, id)
        except NotFound:
            return False
        return True

    async def keep(self) -> None:
        """End leases when their time is over, until cancelled. To be begun when calls are served.

        All leases have their full time then: before, nobody could renew one.
        """
        self._clock.restart()
        while True:
            self._sooner.clear()
            left = self._clock.next_s()
            pause = None if left is None else min(left, TICK_S)
            before = self._now()
            try:
                async with asyncio.timeout(pause):
                    await self._sooner.wait()
            except TimeoutError:
                late = self._now() - before - (pause or 0.0)
                if late > _LATE_S:
                    log.warning("stood still; leases get so much longer", extra={"seconds": late})
                    self._clock.postpone(late)
            for key in self._clock.ended():
                await self._end(key)

    async def _end(self, key: LeaseKey) -> None:
        tenant, id = key
        async with self._ending:
            if key not in self._clock.ended():  # renewed or granted meanwhile
                return
            self._clock.end(key)
            try:
                await self._store.write(lambda w: w.end_lease(id, "expired"), tenant)
            except LLMOSError as exc:  # e.g. a full disk: what is attached must go all the same
                log.error("cannot end a lease", extra={"lease": id, "cause": str(exc)})
                self._clock.again(key, _RETRY_S)
            else:
                self._clock.drop([key])
