"""The audit log and the quotas as a whole: what their services serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from llmos.lib.chain import Entry, Head, Verifier
from llmos.lib.errors import InvalidArgument
from llmos.servers.storage import caller
from llmos.servers.storage.db import audit, quota
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.quota import DEFAULT, Limits, Used
from llmos.servers.storage.state.checks import plain

MAX_PAGE = 1000
DEFAULT_PAGE = 100
_PIECE = 500  # entries read at a time
_MAX_TENANT = 256
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a tenant may store and has stored; `own` = the limits are not the default ones."""

    tenant: str
    limits: Limits
    own: bool
    used: Used
    kinds: dict[str, Used]


class AuditLog:
    """The audit log of a database. All tenants' entries are one chain."""

    def __init__(self, database: Database) -> None:
        """Read from `database`."""
        self._database = database

    async def head(self) -> Head:
        """Return its end."""
        return await asyncio.to_thread(self._head)

    def _head(self) -> Head:
        with self._database.read() as sql:
            return audit.head(sql)

    async def entries(
        self,
        after: int = 0,
        page_size: int = 0,
        *,
        actor: str = "",
        action: str = "",
        subject: str = "",
        newest: bool = False,
    ) -> tuple[Sequence[Entry], bool]:
        """Return a page in order, and whether there is more. Raises BAD_PAGE."""
        if not 0 <= page_size <= MAX_PAGE:
            raise InvalidArgument(
                "BAD_PAGE", f"page_size {page_size} is out of range: ask for 1 to {MAX_PAGE}."
            )
        size = page_size or DEFAULT_PAGE

        def read() -> Sequence[Entry]:
            with self._database.read() as sql:
                return audit.entries(
                    sql,
                    after,
                    size + 1,
                    actor=actor,
                    action=action,
                    subject=subject,
                    newest=newest,
                )

        found = await asyncio.to_thread(read)
        if newest:
            return found[-size:], False
        return found[:size], len(found) > size

    async def export(self, after: int = 0) -> AsyncGenerator[tuple[Sequence[Entry], int], None]:
        """Yield (entries, how many there are in all) up to the present end."""
        end = (await self.head()).seq
        while after < end:
            found = await asyncio.to_thread(self._piece, after, end)
            yield found, end
            after = found[-1].seq

    def _piece(self, after: int, until: int) -> Sequence[Entry]:
        with self._database.read() as sql:
            return audit.entries(sql, after, _PIECE, until=until)

    async def verify(self, heads: Sequence[Head] = ()) -> Head:
        """Check all of it, and that it has these heads. Raises DataLoss AUDIT_DAMAGED."""
        verifier = Verifier(anchors=heads)
        end = (await self.head()).seq
        after = 0
        while found := await asyncio.to_thread(self._piece, after, end):
            await asyncio.to_thread(_take, verifier, found)
            after = found[-1].seq
        return verifier.finish()


def _take(verifier: Verifier, entries: Sequence[Entry]) -> None:
    for entry in entries:
        verifier.take(entry)


class QuotaBook:
    """The quotas of a database."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    async def get(self, tenant: str = "") -> Allowance:
        """Return a tenant's limits and usage; "" = the caller's. Raises BAD_TENANT."""
        tenant = tenant or caller.current().tenant
        _check_tenant(tenant)
        return (await asyncio.to_thread(self._read, [tenant]))[0]

    async def list(self) -> Sequence[Allowance]:
        """Return all that store something or have limits of their own."""
        return await asyncio.to_thread(self._read, None)

    def _read(self, tenants: Sequence[str] | None) -> Sequence[Allowance]:
        with self._database.read() as sql:
            own = quota.own_limits(sql)
            default = own.get(DEFAULT, Limits())
            return [
                Allowance(
                    tenant,
                    own.get(tenant, default),
                    tenant in own,
                    quota.total(sql, tenant),
                    quota.by_kind(sql, tenant),
                )
                for tenant in (quota.tenants(sql) if tenants is None else tenants)
            ]

    async def set(self, tenant: str, limits: Limits | None) -> Allowance:
        """Set a tenant's limits (`*` = the default); None = take them away.

        Raises BAD_TENANT, BAD_QUOTA.
        """
        _check_tenant(tenant)
        if limits is not None and max(limits.bytes, limits.items) > _MOST:
            raise InvalidArgument("BAD_QUOTA", f"A limit is over {_MOST:,}; 0 is without limit.")

        def write() -> None:
            with self._database.write() as sql:
                quota.set_limits(sql, tenant, limits)
                detail: dict[str, object] = {"reset": True}
                if limits is not None:
                    detail = {"bytes": limits.bytes, "items": limits.items}
                audit.record(sql, caller.current().tenant, "quota.set", tenant, detail)

        await asyncio.to_thread(write)
        return await self.get(tenant)


def _check_tenant(tenant: str) -> None:
    if not tenant or len(tenant.encode("utf-8", "replace")) > _MAX_TENANT or not plain(tenant):
        raise InvalidArgument(
            "BAD_TENANT", f"{tenant[:40]!r} is no tenant: it must be 1 to {_MAX_TENANT} bytes."
        )
