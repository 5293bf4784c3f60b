"""Reads versions from their rows, many at a time: a page takes a handful of statements."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, cast, column, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB

from llmos.servers.storage.db.tables import Int, Key
from llmos.servers.storage.db.tables_blobs import blobs
from llmos.servers.storage.db.tables_registry import (
    aliases,
    datasets_used,
    files,
    metrics,
    parents,
    signatures,
    tags,
    versions,
)
from llmos.servers.storage.model import Description, File, Format, Lineage, Metric, Task, Version

VersionKey = tuple[str, int]
_AT_A_TIME = 1000  # keys of one statement
_LISTED = [c for c in versions.c if c.name != "chat_template"]


def load(
    sql: Connection, keys: Sequence[VersionKey], folder: Path, *, listing: bool = False
) -> list[Version]:
    """Return the versions with these keys, in their order; all must exist.

    folder: where blobs are. listing: leave out what listings leave out.
    """
    found: list[Version] = []
    for start in range(0, len(keys), _AT_A_TIME):
        found += _load(sql, keys[start : start + _AT_A_TIME], folder, listing)
    return found


def _load(
    sql: Connection, keys: Sequence[VersionKey], folder: Path, listing: bool
) -> list[Version]:
    columns = _LISTED if listing else list(versions.c)
    rows = {
        (r.name, r.version): r for r in sql.execute(select(*columns).where(of(sql, versions, keys)))
    }
    stored = _lists(
        sql.execute(
            select(files.c.name, files.c.version, files.c.file, files.c.sha256, blobs.c.size)
            .join(blobs, blobs.c.sha256 == files.c.sha256)
            .where(of(sql, files, keys))
            .order_by(files.c.position)
        ).all()
    )
    made_from = _lists(_of_each(sql, parents, keys, parents.c.parent))
    trained_on = _lists(_of_each(sql, datasets_used, keys, datasets_used.c.dataset))
    measured = _lists(
        _of_each(sql, metrics, keys, metrics.c.metric, metrics.c.value, metrics.c.unit)
    )
    tagged = _lists(
        sql.execute(select(tags).where(of(sql, tags, keys)).order_by(tags.c.key)).all(),
    )
    c = aliases.c
    pointing = select(c.name, c.version, c.alias).where(of(sql, aliases, keys)).order_by(c.alias)
    named = _lists(sql.execute(pointing).all())
    signed: dict[VersionKey, list[Any]] = defaultdict(list)
    if not listing:
        s = signatures.c
        two = (
            select(s.name, s.version, s.key_sha256)
            .where(of(sql, signatures, keys))
            .order_by(s.added)
        )
        signed = _lists(sql.execute(two).all())
    return [
        Version(
            name=key[0],
            version=key[1],
            description=_description(rows[key], listing),
            files=tuple(File(f, d, size, folder.joinpath(d[:2], d)) for f, d, size in stored[key]),
            lineage=Lineage(
                rows[key].source,
                tuple(parent for (parent,) in made_from[key]),
                rows[key].job,
                rows[key].step,
                tuple(dataset for (dataset,) in trained_on[key]),
                rows[key].code,
            ),
            metrics=tuple(
                Metric(m, math.nan if value is None else value, unit)
                for m, value, unit in measured[key]
            ),
            created_unix_s=rows[key].created,
            digest=rows[key].digest,
            tags={tag: value for tag, value in tagged[key]},
            aliases=tuple(alias for (alias,) in named[key]),
            signed_by=tuple(signer for (signer,) in signed[key]),
        )
        for key in keys
    ]


def of(sql: Connection, table: Table, keys: Sequence[VersionKey]) -> ColumnElement[bool]:
    """Return the condition that a row is of one of these versions.

    It joins with the keys, which are one parameter: SQLite would read the whole table for
    (name, version) IN (...), and a statement with many parameters is made anew every time.
    """
    if len(keys) == 1:
        (name, version) = keys[0]
        return (table.c.name == name) & (table.c.version == version)
    own_name: ColumnElement[Any]
    own_version: ColumnElement[Any]
    if sql.dialect.name == "sqlite":
        wanted = func.json_each(json.dumps(keys)).table_valued("value", name="wanted")
        own_name = func.json_extract(wanted.c.value, "$[0]", type_=Key)
        own_version = func.json_extract(wanted.c.value, "$[1]", type_=Int)
    else:
        items = func.jsonb_array_elements(literal([list(key) for key in keys], JSONB))
        wanted = items.table_valued(column("value", JSONB), name="wanted")
        own_name = wanted.c.value[0].astext
        own_version = cast(wanted.c.value[1].astext, Int)
    return (table.c.name == own_name) & (table.c.version == own_version)


def _of_each(
    sql: Connection, table: Table, keys: Sequence[VersionKey], *columns: ColumnElement[Any]
) -> Sequence[Row[Any]]:
    wanted = select(table.c.name, table.c.version, *columns)
    return sql.execute(wanted.where(of(sql, table, keys)).order_by(table.c.position)).all()


def _lists(rows: Sequence[Sequence[Any]]) -> dict[VersionKey, list[Any]]:
    """Return {version: [the columns after name and version]}."""
    found: dict[VersionKey, list[Any]] = defaultdict(list)
    for row in rows:
        found[row[0], row[1]].append(row[2:])
    return found


def _description(row: Row[Any], listing: bool) -> Description:
    return Description(
        Format(row.format),
        Task(row.task),
        row.architecture,
        row.parameters,
        row.dtype,
        row.context_length,
        row.license,
        row.tokenizer,
        "" if listing else row.chat_template,
    )
