"""The rows of blobs. Functions take `sql` in the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Select, delete, exists, insert, select, update

from llmos.servers.storage.blobs.reader import Piece
from llmos.servers.storage.db import (
    quota,
    tables_data,  # noqa: F401  # for `users`
    tables_registry,  # noqa: F401
)
from llmos.servers.storage.db.tables import metadata
from llmos.servers.storage.db.tables_blobs import blobs, pieces

FILE, PIECES = 0, 1  # forms
_OF_SOURCE = "a blob that it is made of is damaged"
_BATCH = 500


@dataclass(frozen=True)
class Row:
    """What is known of a blob. size: bytes; wrapped_key: of a sealed file."""

    sha256: str
    size: int
    form: int
    wrapped_key: bytes | None
    fault: str

    @property
    def plain(self) -> bool:
        """Return whether its file has just its bytes."""
        return self.form == FILE and self.wrapped_key is None


_ROW = select(blobs.c.sha256, blobs.c.size, blobs.c.form, blobs.c.wrapped_key, blobs.c.fault)


def get(sql: Connection, sha256: str) -> Row | None:
    """Return a blob's row, sound or not."""
    row = sql.execute(_ROW.where(blobs.c.sha256 == sha256)).first()
    return Row(*row) if row is not None else None


def every(sql: Connection, where: Select[str] | None = None) -> list[Row]:
    """Return all rows, or those whose digests `where` selects."""
    query = _ROW if where is None else _ROW.where(blobs.c.sha256.in_(where))
    return [Row(*row) for row in sql.execute(query)]


def special(sql: Connection, digests: Sequence[str]) -> dict[str, Row]:
    """Return the rows of those digests that have no plain file of their own."""
    found = dict[str, Row]()
    for i in range(0, len(digests), _BATCH):
        query = _ROW.where(
            blobs.c.sha256.in_(digests[i : i + _BATCH]),
            (blobs.c.form != FILE) | blobs.c.wrapped_key.is_not(None),
        )
        found |= {row.sha256: Row(*row) for row in sql.execute(query)}
    return found


def size(sql: Connection, sha256: str) -> int:
    """Return a sound blob's size, -1 when there is none."""
    row = get(sql, sha256)
    return row.size if row is not None and not row.fault else -1


def touch(sql: Connection, sha256: str) -> None:
    """Spare a blob from collection for another while."""
    sql.execute(update(blobs).where(blobs.c.sha256 == sha256).values(touched=time.time()))


def add(
    sql: Connection,
    sha256: str,
    size: int,
    *,
    wrapped_key: bytes | None = None,
    parts: Sequence[Piece] = (),
    touched: float | None = None,
) -> None:
    """Insert a blob, or replace a damaged one. parts: what it is made of, if it has no file."""
    form = PIECES if parts else FILE
    values: dict[str, object] = {
        "size": size,
        "form": form,
        "wrapped_key": wrapped_key,
        "fault": "",
        "checked": 0,
    }
    if touched is not None or get(sql, sha256) is None:
        values["touched"] = time.time() if touched is None else touched
    if sql.execute(update(blobs).where(blobs.c.sha256 == sha256).values(values)).rowcount == 0:
        sql.execute(insert(blobs).values(sha256=sha256, **values))
    sql.execute(delete(pieces).where(pieces.c.sha256 == sha256))
    rows = [
        {
            "sha256": sha256,
            "position": i,
            "source": part.source,
            "start": part.start,
            "length": part.length,
        }
        for i, part in enumerate(parts)
    ]
    if rows:
        sql.execute(insert(pieces), rows)
    clear_fault(sql, sha256)


def parts(sql: Connection, sha256: str) -> list[Piece]:
    """Return what a blob of form PIECES is made of."""
    c = pieces.c
    query = select(c.source, c.start, c.length).where(c.sha256 == sha256).order_by(c.position)
    return [Piece(*row) for row in sql.execute(query)]


def users() -> list[Column[str]]:
    """Return the columns that keep a blob from being collected: see tables_blobs."""
    return [
        key.parent
        for table in metadata.tables.values()
        for key in table.foreign_keys
        if key.column is blobs.c.sha256 and key.ondelete != "CASCADE"
    ]


def used(sql: Connection, sha256: str) -> bool:
    """Return whether anything needs a blob."""
    for column in users():
        if sql.execute(select(column).where(column == sha256).limit(1)).first() is not None:
            return True
    return False


def unused(touched_before: float) -> Select[str]:
    """Return the query for the digests that nothing needs and nobody touched since."""
    query = select(blobs.c.sha256).where(blobs.c.touched < touched_before)
    for column in users():
        query = query.where(~exists().where(column == blobs.c.sha256))
    return query


def sources(sql: Connection, digests: Iterable[str], touched_before: float) -> list[str]:
    """Return what these blobs are made of, without what was touched since."""
    query = (
        select(pieces.c.source)
        .distinct()
        .join(blobs, blobs.c.sha256 == pieces.c.source)
        .where(pieces.c.sha256.in_(list(digests)), blobs.c.touched < touched_before)
    )
    return list(sql.execute(query).scalars())


def remove(sql: Connection, digests: Sequence[str]) -> None:
    """Delete rows; those of pieces and tensors go with them. Whoever uploaded them gets it back."""
    for digest in digests:
        quota.release(sql, quota.UPLOAD, digest)
    for i in range(0, len(digests), _BATCH):
        sql.execute(delete(blobs).where(blobs.c.sha256.in_(digests[i : i + _BATCH])))


def set_fault(sql: Connection, sha256: str, why: str) -> None:
    """Mark a blob, and what is made of it, as damaged: they count as not stored."""
    sql.execute(update(blobs).where(blobs.c.sha256 == sha256).values(fault=why))
    made = select(pieces.c.sha256).where(pieces.c.source == sha256)
    harmed = blobs.c.sha256.in_(made) & (blobs.c.fault == "")
    sql.execute(update(blobs).where(harmed).values(fault=_OF_SOURCE))


def clear_fault(sql: Connection, sha256: str) -> None:
    """Mark a blob as sound, and what is made of it and other sound blobs."""
    sql.execute(update(blobs).where(blobs.c.sha256 == sha256).values(fault=""))
    made = select(pieces.c.sha256).where(pieces.c.source == sha256)
    bad = select(blobs.c.sha256).where(blobs.c.fault != "")
    still = select(pieces.c.sha256).where(pieces.c.source.in_(bad))
    healed = blobs.c.sha256.in_(made) & (blobs.c.fault == _OF_SOURCE) & blobs.c.sha256.not_in(still)
    sql.execute(update(blobs).where(healed).values(fault=""))


def set_checked(sql: Connection, sha256: str, at: float) -> None:
    """Remember when a blob was compared with its digest."""
    sql.execute(update(blobs).where(blobs.c.sha256 == sha256).values(checked=at))


def harms(sql: Connection, sha256: str) -> list[str]:
    """Return who needs a blob, for people: `model@version` and the like, ten at most."""
    found: list[str] = []
    for column in users():
        table = column.table
        if table is pieces:
            query = select(pieces.c.sha256).where(pieces.c.source == sha256).distinct().limit(10)
            for other in sql.execute(query).scalars():
                found += harms(sql, other)
        elif "name" in table.c and "version" in table.c:
            key = select(table.c.name, table.c.version).where(column == sha256).limit(10)
            found += [f"{name}@{version}" for name, version in sql.execute(key)]
    return list(dict.fromkeys(found))[:10]
