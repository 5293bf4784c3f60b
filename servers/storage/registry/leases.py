"""Leases on versions, by the clock of the host's boot: no change of the date ends one early.

Of models and of data sets: each in a table of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from llmos.lib.errors import InvalidArgument, NotFound
from llmos.servers.storage import caller
from llmos.servers.storage.db import audit
from llmos.servers.storage.db.clock import BootClock
from llmos.servers.storage.db.tables_data import dataset_leases
from llmos.servers.storage.db.tables_registry import version_leases
from llmos.servers.storage.names import check_text, short
from llmos.servers.storage.registry.model import VersionLease
from llmos.servers.storage.registry.rows import VersionKey

LONGEST_S = 604_800.0
MOST_LISTED = 1000


class Leases:
    """The rows of leases. Every method runs inside the caller's transaction."""

    def __init__(self, clock: BootClock, *, datasets: bool = False) -> None:
        """Take the time from `clock`. datasets: on their versions rather than on models'."""
        self._clock = clock
        self._datasets = datasets
        self._table = dataset_leases if datasets else version_leases

    def acquire(
        self, sql: Connection, version: VersionKey, holder: str, ttl_s: float, request_id: str
    ) -> VersionLease:
        """Take a lease. Raises BAD_TTL, BAD_NAME."""
        if not 1 <= ttl_s <= LONGEST_S:  # also what is no number
            raise InvalidArgument(
                "BAD_TTL", f"A lease takes 1 to {LONGEST_S:,.0f} seconds, not {ttl_s:g}."
            )
        check_text(holder, "name of a holder", 256, "BAD_NAME")
        check_text(request_id, "request id", 256, "BAD_NAME")
        self.expire(sql)
        table = self._table
        if request_id:
            earlier = select(table).where(table.c.request_id == request_id)
            if row := sql.execute(earlier).first():
                return self._lease(row)
        id, (name, number) = uuid.uuid4().hex, version
        sql.execute(
            insert(table).values(
                id=id,
                name=name,
                version=number,
                holder=holder,
                ttl_s=ttl_s,
                boot=self._clock.boot,
                until=self._clock.now() + ttl_s,
                request_id=request_id or None,
            )
        )
        what = {"id": id, "holder": holder, "ttl_ms": round(ttl_s * 1000)}
        self._audit(sql, "lease.acquire", name, number, what)
        return VersionLease(id, name, number, holder, ttl_s, ttl_s, self._datasets)

    def any(self, sql: Connection) -> bool:
        """Return whether there may be leases."""
        return sql.execute(select(self._table.c.id).limit(1)).first() is not None

    def renew(self, sql: Connection, id: str) -> VersionLease | None:
        """Start the time of a lease anew; None when it is not there."""
        self.expire(sql)
        c = self._table.c
        until = self._clock.now() + c.ttl_s
        mine = update(self._table).where(c.id == _id(id)).values(until=until)
        row = sql.execute(mine.returning(*self._table.columns)).first()
        return None if row is None else self._lease(row)

    def renew_all(self, sql: Connection) -> None:
        """Start the time of all anew: while the server was away nobody could renew."""
        until = self._clock.now() + self._table.c.ttl_s
        sql.execute(update(self._table).values(boot=self._clock.boot, until=until))

    def release(self, sql: Connection, id: str) -> bool:
        """Give a lease back; return whether it was there."""
        self.expire(sql)
        c = self._table.c
        gone = delete(self._table).where(c.id == _id(id)).returning(c.name, c.version)
        row = sql.execute(gone).first()
        if row is not None:
            self._audit(sql, "lease.release", row.name, row.version, {"id": id})
        return row is not None

    def listed(self, sql: Connection, version: VersionKey | None = None) -> list[VersionLease]:
        """Return the leases that have not run out, of one version or all, at most 1,000."""
        c = self._table.c
        wanted = select(self._table).where(~self._over()).order_by(c.until, c.id)
        if version is not None:
            wanted = wanted.where(c.name == version[0], c.version == version[1])
        return [self._lease(row) for row in sql.execute(wanted.limit(MOST_LISTED))]

    def expire(self, sql: Connection) -> None:
        """Remove the leases that ran out; those of another boot begin anew in this one."""
        now, c = self._clock.now(), self._table.c
        moved = {"boot": self._clock.boot, "until": now + c.ttl_s}
        sql.execute(update(self._table).where(c.boot != self._clock.boot).values(moved))
        sql.execute(delete(self._table).where(c.until < now))

    def _over(self) -> ColumnElement[bool]:
        c = self._table.c
        return (c.boot == self._clock.boot) & (c.until < self._clock.now())

    def _lease(self, row: Row[Any]) -> VersionLease:
        left = row.until - self._clock.now() if row.boot == self._clock.boot else row.ttl_s
        return VersionLease(
            row.id, row.name, row.version, row.holder, row.ttl_s, left, self._datasets
        )

    def _audit(
        self, sql: Connection, action: str, name: str, version: int, what: dict[str, object]
    ) -> None:
        subject = f"{'dataset:' if self._datasets else ''}{name}@{version}"
        audit.record(sql, caller.current().tenant, action, subject, what)


def _id(id: str) -> str:
    return id if id.isascii() and id.isalnum() else ""


def no_such_lease(id: str) -> NotFound:
    """Return the error for a lease that is not there."""
    return NotFound(
        "NO_SUCH_LEASE", f"Lease {short(id)} ran out or was released; acquire a new one."
    )


def holders(leases: Sequence[VersionLease]) -> list[str]:
    """Return who has these leases, for a message."""
    return [f"{short(lease.holder)} (lease {lease.id})" for lease in leases]
