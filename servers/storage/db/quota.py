"""Quotas: what each tenant has stored, in logical bytes and items, and how much it may.

Logical: what two tenants (or two versions) share counts for each, so that nobody's usage depends
on what others delete. Functions take `sql` in the transaction of the change that they count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from llmos.lib.errors import ResourceExhausted
from llmos.servers.storage.db.tables_quota import charges, quotas, usage

UPLOAD = "upload"  # kind of blobs that no version has taken up
MODEL = "model"
DEFAULT = "*"  # the tenant whose limits those have that have none of their own
# Made once: they run with every change, and to make one takes longer than to run it.
_OWN = select(quotas).where(quotas.c.tenant.in_(bindparam("tenants", expanding=True)))
_TOTAL = select(func.sum(usage.c.bytes), func.sum(usage.c["items"])).where(
    usage.c.tenant == bindparam("of")
)
_ADJUST = (
    update(usage)
    .where(usage.c.tenant == bindparam("of"), usage.c.kind == bindparam("what"))
    .values(
        {
            "bytes": usage.c.bytes + bindparam("more_bytes"),
            "items": usage.c["items"] + bindparam("more_items"),
        }
    )
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a tenant may store; 0 = without limit."""

    bytes: int = 0
    items: int = 0


@dataclass(frozen=True, slots=True)
class Used:
    """What a tenant has stored of one kind, or in all."""

    bytes: int = 0
    items: int = 0


def charge(
    sql: Connection, tenant: str, bytes: int, *, kind: str = UPLOAD, subject: str = ""
) -> None:
    """Count `bytes` and one item of a kind for a tenant.

    subject: what was stored, e.g. `smollm2@3`; charging it again changes nothing, and `release`
    gives it back. "" = one without a name: a negative number gives it back.
    Raises ResourceExhausted QUOTA_EXCEEDED.
    """
    if subject:
        same = (charges.c.kind == kind) & (charges.c.subject == subject)
        if sql.execute(select(charges.c.bytes).where(same)).first() is not None:
            return
        row = {"kind": kind, "subject": subject, "tenant": tenant, "bytes": bytes}
        sql.execute(insert(charges).values(row))
    adjust(sql, tenant, kind, bytes, -1 if bytes < 0 else 1)


def release(sql: Connection, kind: str, subject: str) -> None:
    """Give back what was charged for `subject`; nothing when nothing was."""
    same = (charges.c.kind == kind) & (charges.c.subject == subject)
    row = sql.execute(select(charges.c.tenant, charges.c.bytes).where(same)).first()
    if row is not None:
        sql.execute(delete(charges).where(same))
        adjust(sql, row.tenant, kind, -row.bytes, -1)


def adjust(sql: Connection, tenant: str, kind: str, bytes: int, items: int) -> None:
    """Add to a tenant's usage. Raises QUOTA_EXCEEDED when that grows beyond its limits."""
    if bytes > 0 or items > 0:
        require(sql, tenant, max(bytes, 0), max(items, 0))
    added = {"of": tenant, "what": kind, "more_bytes": bytes, "more_items": items}
    if sql.execute(_ADJUST, added).rowcount == 0:
        row = {"tenant": tenant, "kind": kind, "bytes": bytes, "items": items}
        sql.execute(insert(usage).values(row))


def require(sql: Connection, tenant: str, bytes: int, items: int = 0) -> None:
    """Raise QUOTA_EXCEEDED now when a tenant may not store so much more; change nothing."""
    limit, used = limits(sql, tenant), total(sql, tenant)
    for unit, more, have, most in (
        ("bytes", bytes, used.bytes, limit.bytes),
        ("items", items, used.items, limit.items),
    ):
        if most and more and have + more > most:
            raise ResourceExhausted(
                "QUOTA_EXCEEDED",
                f"Tenant {tenant} has {have:,} of {most:,} {unit} and would need {more:,} more; "
                "delete something, or have the quota raised: `llmos-ctl storage quota set`.",
                details={
                    "tenant": tenant,
                    "unit": unit,
                    "used": str(have),
                    "limit": str(most),
                    "needed": str(more),
                },
            )


def limits(sql: Connection, tenant: str) -> Limits:
    """Return a tenant's limits: its own, else the default ones."""
    found = own_limits(sql, (tenant, DEFAULT))
    return found.get(tenant) or found.get(DEFAULT) or Limits()


def own_limits(sql: Connection, tenants: Sequence[str] | None = None) -> dict[str, Limits]:
    """Return the limits of those (of these) that have some of their own, also of DEFAULT."""
    if tenants is None:
        rows = sql.execute(select(quotas))
    else:
        rows = sql.execute(_OWN, {"tenants": tenants})
    return {row.tenant: Limits(row.limit_bytes, row.limit_items) for row in rows}


def set_limits(sql: Connection, tenant: str, new: Limits | None) -> None:
    """Give a tenant limits of its own, or DEFAULT those of all others; None takes them away."""
    sql.execute(delete(quotas).where(quotas.c.tenant == tenant))
    if new is not None:
        row = {"tenant": tenant, "limit_bytes": new.bytes, "limit_items": new.items}
        sql.execute(insert(quotas).values(row))


def total(sql: Connection, tenant: str) -> Used:
    """Return what a tenant has stored in all."""
    row = sql.execute(_TOTAL, {"of": tenant}).one()
    return Used(int(row[0] or 0), int(row[1] or 0))


def by_kind(sql: Connection, tenant: str) -> dict[str, Used]:
    """Return what a tenant has stored of each kind."""
    rows = sql.execute(select(usage).where(usage.c.tenant == tenant).order_by(usage.c.kind))
    return {row.kind: Used(row.bytes, row.items) for row in rows if row.items or row.bytes}


def tenants(sql: Connection) -> list[str]:
    """Return all tenants that have a limit or store something, in order."""
    known = select(quotas.c.tenant).union(select(usage.c.tenant).where(usage.c["items"] > 0))
    return sorted(sql.execute(known).scalars())
