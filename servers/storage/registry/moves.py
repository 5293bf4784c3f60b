"""Moves of aliases: the rules of compare-and-set, rollback and history."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from llmos.lib.errors import Aborted, FailedPrecondition
from llmos.servers.storage import caller
from llmos.servers.storage.db import audit
from llmos.servers.storage.db.tables_registry import alias_moves, aliases, versions
from llmos.servers.storage.registry import refs
from llmos.servers.storage.registry.model import Alias, MoveKind

_ACTIONS = {MoveKind.SET: "set", MoveKind.ROLLBACK: "rollback", MoveKind.DELETE: "delete"}


def head(sql: Connection) -> int:
    """Return the newest revision, 0 = none yet."""
    return sql.execute(select(func.max(alias_moves.c.revision))).scalar() or 0


def point(
    sql: Connection, name: str, alias: str, version: int, expected: int | None
) -> tuple[Alias, int]:
    """Point an alias at a version; return it and where it pointed before."""
    refs.find(sql, f"{name}@{version}")
    now = _now(sql, name, alias)
    if expected is not None and expected != (now.revision if now else 0):
        if now and (now.kind, now.version, now.replaced) == (MoveKind.SET, version, expected):
            return _alias(now), now.previous  # the retry of the move that made it so
        raise _moved(name, alias, now)
    if now and now.version == version:
        return _alias(now), version
    back = now.revision if now else 0
    return _move(sql, name, alias, MoveKind.SET, version, now, back)


def rollback(sql: Connection, name: str, alias: str, expected: int) -> tuple[Alias, int]:
    """Take back an alias's newest move; return it and where it pointed before."""
    refs.require_model(sql, name)
    now = _now(sql, name, alias)
    if now is None:
        raise refs.no_such_alias(sql, name, alias)
    if now.revision != expected:
        if (now.kind, now.replaced) == (MoveKind.ROLLBACK, expected):
            return _alias(now), now.previous
        raise _moved(name, alias, now)
    if not now.back:
        raise FailedPrecondition(
            "NOTHING_BEFORE",
            f"{name}@{alias} pointed nowhere before; point it at a version, or delete it.",
        )
    target = sql.execute(select(alias_moves).where(alias_moves.c.revision == now.back)).one()
    there = select(versions.c.version).where(
        versions.c.name == name, versions.c.version == target.version
    )
    if sql.execute(there).first() is None:
        raise FailedPrecondition(
            "NOTHING_BEFORE",
            f"{name}@{alias} pointed at version {target.version} before, which was deleted; point "
            "it at another one.",
        )
    return _move(sql, name, alias, MoveKind.ROLLBACK, target.version, now, target.back)


def remove(sql: Connection, name: str, alias: str, expected: int | None = None) -> bool:
    """Remove an alias; return whether it was there."""
    now = _now(sql, name, alias)
    if now is None:
        return False
    if expected is not None and now.revision != expected:
        raise _moved(name, alias, now)
    _move(sql, name, alias, MoveKind.DELETE, 0, now, 0)
    return True


def _now(sql: Connection, name: str, alias: str) -> Row[Any] | None:
    """Return the newest move of an alias that is there."""
    c = aliases.c
    wanted = select(alias_moves).join(aliases, c.revision == alias_moves.c.revision)
    return sql.execute(wanted.where(c.name == name, c.alias == alias)).first()


def _move(
    sql: Connection,
    name: str,
    alias: str,
    kind: MoveKind,
    version: int,
    now: Row[Any] | None,
    back: int,
) -> tuple[Alias, int]:
    revision = head(sql) + 1
    previous, replaced = (now.version, now.revision) if now else (0, 0)
    actor = caller.current().tenant
    sql.execute(
        insert(alias_moves).values(
            revision=revision,
            name=name,
            alias=alias,
            kind=int(kind),
            version=version,
            previous=previous,
            replaced=replaced,
            back=back,
            actor=actor,
            at=time.time(),
        )
    )
    own = (aliases.c.name == name) & (aliases.c.alias == alias)
    if not version:
        sql.execute(delete(aliases).where(own))
    elif now:
        sql.execute(update(aliases).where(own).values(version=version, revision=revision))
    else:
        row = {"name": name, "alias": alias, "version": version, "revision": revision}
        sql.execute(insert(aliases), row)
    what = {"version": version, "previous": previous, "revision": revision}
    audit.record(sql, actor, f"alias.{_ACTIONS[kind]}", f"{name}@{alias}", what)
    return Alias(name, alias, version, revision), previous


def _alias(move: Row[Any]) -> Alias:
    return Alias(move.name, move.alias, move.version, move.revision)


def _moved(name: str, alias: str, now: Row[Any] | None) -> Aborted:
    where = f"is at version {now.version}, revision {now.revision}" if now else "is not there"
    return Aborted(
        "ALIAS_MOVED",
        f"{name}@{alias} {where} now: somebody else changed it; look, and try again.",
        details={"version": str(now.version if now else 0), "revision": str(now.revision)}
        if now
        else {"version": "0", "revision": "0"},
    )
