"""Reading documents: every state of each since the last compaction is a row."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    literal,
    or_,
    select,
    update,
)

from llmos.lib.errors import OutOfRange
from llmos.servers.storage.db.tables_state import counter
from llmos.servers.storage.db.tables_state import documents as table
from llmos.servers.storage.state.model import Document, Keys

_LOOK = 1000  # changes looked at for one batch
_RESTORED = 1_000_000_000  # revisions; as etcd's --bump-revision
_BATCH = 4 << 20  # bytes of one batch of changes, unless one transaction has more
c = table.c
# Made once: they run with every change, and to make one takes longer than to run it.
_REVISIONS = select(counter.c.revision, counter.c.compacted)
_NEWEST = select(table).where(
    (c.tenant == bindparam("of")) & (c.key == bindparam("named")) & c.replaced.is_(None)
)


def revisions(sql: Connection) -> tuple[int, int]:
    """Return the newest revision, and up to which one history is gone."""
    row = sql.execute(_REVISIONS).one()
    return row.revision, row.compacted


def restored(sql: Connection) -> None:
    """After a restore: jump ahead of every revision and token given out since the backup.

    So no token is given twice, and whoever watched what is gone now is told COMPACTED.
    """
    ahead = counter.c.revision + _RESTORED
    sql.execute(update(counter).values(revision=ahead, compacted=ahead))


def readable(sql: Connection, revision: int) -> int:
    """Return the revision to read at (0 = now). Raises COMPACTED, FUTURE_REVISION."""
    newest, compacted = revisions(sql)
    if revision > newest:
        raise future(revision, newest)
    if revision and revision < compacted:
        raise gone(revision, compacted)
    return revision or newest


def gone(revision: int, compacted: int) -> OutOfRange:
    """Return the error for history that was forgotten."""
    return OutOfRange(
        "COMPACTED",
        f"The history of revision {revision} is gone (up to {compacted}); list the documents as "
        "they are now, and watch from that list's revision + 1.",
        details={"compacted": str(compacted)},
    )


def future(revision: int, newest: int) -> OutOfRange:
    """Return the error for a revision that is not there yet."""
    return OutOfRange(
        "FUTURE_REVISION", f"There is no revision {revision} yet; the newest is {newest}."
    )


def newest(sql: Connection, tenant: str, key: str) -> Document | None:
    """Return the newest state of a document, also when it is deleted (version 0)."""
    row = sql.execute(_NEWEST, {"of": tenant, "named": key}).first()
    return document(row) if row is not None else None


def read(
    sql: Connection,
    tenant: str,
    keys: Keys,
    *,
    revision: int = 0,
    after: str = "",
    limit: int,
    keys_only: bool = False,
) -> list[Document]:
    """Return up to `limit` documents by key, those after key `after`; revision 0 = now."""
    query = select(*_columns(keys_only)).where(*_visible(tenant, keys, revision, after))
    return [document(row) for row in sql.execute(query.order_by(c.key).limit(limit))]


def sized(
    sql: Connection, tenant: str, keys: Keys, *, revision: int = 0, after: str = "", limit: int
) -> list[tuple[str, int]]:
    """Return (key, bytes) of what `read` would return."""
    query = select(c.key, c.size).where(*_visible(tenant, keys, revision, after))
    return [(row.key, row.size) for row in sql.execute(query.order_by(c.key).limit(limit))]


def _visible(tenant: str, keys: Keys, revision: int, after: str) -> list[ColumnElement[bool]]:
    conditions = [c.tenant == tenant, covered(c.key, keys), c.version > 0]
    if revision:
        conditions.append(c.mod_revision <= revision)
        conditions.append(or_(c.replaced.is_(None), c.replaced > revision))
    else:
        conditions.append(c.replaced.is_(None))
    if after:
        conditions.append(c.key > after)
    return conditions


def changes(
    sql: Connection, tenant: str, keys: Keys, after: int
) -> tuple[list[Document], int, bool]:
    """Return changes after a revision, up to which one, and whether there are more.

    Whole transactions, in order. Raises COMPACTED.
    """
    last, compacted = revisions(sql)
    if after < compacted:
        raise gone(after + 1, compacted)
    mine = and_(c.tenant == tenant, covered(c.key, keys), c.mod_revision > after)
    look = select(c.mod_revision, c.size).where(mine)
    found = sql.execute(look.order_by(c.mod_revision, c.position).limit(_LOOK + 1)).all()
    cut, size, more = last, 0, False
    for index, row in enumerate(found):
        size += row.size
        if (size > _BATCH or index == _LOOK) and row.mod_revision > found[0].mod_revision:
            cut, more = row.mod_revision - 1, True
            break
    if not found:
        return [], max(last, after), False
    query = select(table).where(mine, c.mod_revision <= cut)
    rows = sql.execute(query.order_by(c.mod_revision, c.position))
    return [document(row) for row in rows], cut, more


def covered(column: Column[str], keys: Keys) -> ColumnElement[bool]:
    """Return the condition that a key is one of these. Keys are ordered by code point."""
    if not keys.prefix:
        return column == keys.key
    end = _after(keys.key)
    return and_(column >= keys.key, column < end) if end else column >= keys.key


def _after(prefix: str) -> str:
    """Return the first text behind all that begin with `prefix`; "" when there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return ""
    code = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)


def _columns(keys_only: bool) -> list[Any]:
    return [literal(b"").label("value") if keys_only and x is c.value else x for x in c]


def document(row: Row[Any]) -> Document:
    """Return the document of a row."""
    return Document(
        key=row.key,
        value=bytes(row.value),
        content_type=row.content_type,
        lease=row.lease,
        create_revision=row.create_revision,
        mod_revision=row.mod_revision,
        version=row.version,
    )
