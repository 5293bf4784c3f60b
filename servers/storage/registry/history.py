"""Listings of aliases and of their moves."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from llmos.servers.storage.db.tables_registry import alias_moves, aliases
from llmos.servers.storage.registry import pages, refs
from llmos.servers.storage.registry.model import (
    Alias,
    AliasMove,
    AliasPage,
    MoveKind,
    MovePage,
)


def alias_page(sql: Connection, name: str, size: int, token: str) -> AliasPage:
    """Return a page of aliases by model and name; name "" = of all models."""
    size, listing = pages.page_size(size), ["aliases", name]
    c = aliases.c
    wanted = select(aliases)
    if name:
        wanted = wanted.where(c.name == name)
    if token:
        model, alias = pages.read_token(token, listing, str, str)
        wanted = wanted.where(c.name >= model, (c.name > model) | (c.alias > alias))
    rows = sql.execute(wanted.order_by(c.name, c.alias).limit(size + 1)).all()
    found = [Alias(r.name, r.alias, r.version, r.revision) for r in rows[:size]]
    more = len(rows) > size
    return AliasPage(found, pages.token(listing, found[-1].model, found[-1].alias) if more else "")


def move_page(sql: Connection, name: str, alias: str, size: int, token: str) -> MovePage:
    """Return a page of an alias's moves, newest first. Raises NO_SUCH_ALIAS, BAD_PAGE."""
    size, listing = pages.page_size(size), ["moves", name, alias]
    c = alias_moves.c
    wanted = select(alias_moves).where(c.name == name, c.alias == alias)
    if token:
        (last,) = pages.read_token(token, listing, int)
        wanted = wanted.where(c.revision < last)
    rows = sql.execute(wanted.order_by(c.revision.desc()).limit(size + 1)).all()
    if not rows and not token:
        raise refs.no_such_alias(sql, name, alias)
    found = [_move(row) for row in rows[:size]]
    return MovePage(found, pages.token(listing, found[-1].revision) if len(rows) > size else "")


def moves_after(sql: Connection, name: str, alias: str, after: int, limit: int) -> list[AliasMove]:
    """Return up to `limit` moves after a revision, oldest first; "" = of all."""
    c = alias_moves.c
    wanted = select(alias_moves).where(c.revision > after)
    if name:
        wanted = wanted.where(c.name == name)
    if alias:
        wanted = wanted.where(c.alias == alias)
    return [_move(row) for row in sql.execute(wanted.order_by(c.revision).limit(limit))]


def _move(row: Row[Any]) -> AliasMove:
    return AliasMove(
        row.revision,
        row.name,
        row.alias,
        MoveKind(row.kind),
        row.version,
        row.previous,
        row.actor,
        row.at,
    )
