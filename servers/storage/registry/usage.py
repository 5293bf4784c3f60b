"""What a version is needed for, and so must not be deleted."""

from __future__ import annotations

from sqlalchemy import Connection, select

from llmos.lib.errors import FailedPrecondition
from llmos.servers.storage.db.tables_registry import aliases, parents
from llmos.servers.storage.registry.leases import Leases, holders
from llmos.servers.storage.registry.moves import remove
from llmos.servers.storage.registry.rows import VersionKey

_CURE = "end what uses it (unload the model), release the lease or wait until it runs out"
_NAMED = 8  # in the message; the details have more
_DETAILED = 100


def release(sql: Connection, version: VersionKey, held: Leases, force: bool) -> None:
    """Raise FailedPrecondition IN_USE while an alias, a lease or a child needs a version.

    force: remove its aliases and leave its children an orphan; a lease still holds.
    """
    name, number = version
    ref = f"{name}@{number}"
    held.expire(sql)
    leases = holders(held.listed(sql, version))
    means = select(aliases.c.alias).where(aliases.c.name == name, aliases.c.version == number)
    pointing = list(sql.execute(means.order_by(aliases.c.alias)).scalars())
    made = select(parents.c.name, parents.c.version).where(parents.c.parent == ref).distinct()
    ordered = made.order_by(parents.c.name, parents.c.version)
    children = [f"{row.name}@{row.version}" for row in sql.execute(ordered)]
    reasons = []
    if leases:
        reasons.append(f"{_some(leases)} {_has(leases)} a lease on it")
    if pointing and not force:
        reasons.append(f"alias {_some(pointing)} means it")
    if children and not force:
        was = "was" if len(children) == 1 else "were"
        reasons.append(f"{_some(children)} {was} made from it")
    if reasons:
        cure = _CURE if leases and len(reasons) == 1 else ""
        raise FailedPrecondition(
            "IN_USE",
            f"{ref} is needed: {'; '.join(reasons)}; "
            f"{cure or 'move or delete those first, or force it (but a lease holds)'}.",
            details={
                "aliases": ", ".join(pointing[:_DETAILED]),
                "leases": ", ".join(leases[:_DETAILED]),
                "children": ", ".join(children[:_DETAILED]),
            },
        )
    for alias in pointing:
        remove(sql, name, alias)


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more


def _has(items: list[str]) -> str:
    return "has" if len(items) == 1 else "have"
