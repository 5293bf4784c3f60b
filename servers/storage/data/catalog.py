"""The versions of data sets in the database. Knows digests, not files."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from llmos.lib.errors import FailedPrecondition, NotFound
from llmos.servers.storage import caller
from llmos.servers.storage.data import report
from llmos.servers.storage.data.model import (
    Column,
    DataFormat,
    Dataset,
    Draft,
    Lineage,
    Page,
    Split,
    data_digest,
)
from llmos.servers.storage.db import audit, fence, quota
from llmos.servers.storage.db.clock import BootClock
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables import insert_new
from llmos.servers.storage.db.tables_blobs import blobs
from llmos.servers.storage.db.tables_data import (
    data_files,
    data_parents,
    data_sets,
    data_versions,
)
from llmos.servers.storage.db.tables_registry import datasets_used
from llmos.servers.storage.names import check_name, parse_ref, short
from llmos.servers.storage.registry import pages
from llmos.servers.storage.registry.leases import Leases, holders

_KIND = "dataset"  # for quotas
_LISTED = 8


class Catalog:
    """The immutable versions. Methods that take `sql` run inside the caller's transaction."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._db = database
        self._leases = Leases(BootClock(), datasets=True)

    def insert(self, sql: Connection, draft: Draft) -> tuple[Dataset, bool]:
        """Register a draft under the next number of its name; its blobs must have rows.

        Returns the version, and whether it was there before. Raises QUOTA_EXCEEDED, STALE_FENCE.
        """
        fence.check(sql, caller.current().fence)
        digest = data_digest(draft.splits)
        c = data_versions.c
        same = select(c.version).where(c.name == draft.name, c.digest == digest)
        if (found := sql.execute(same).scalar()) is not None:
            return self._load(sql, [(draft.name, found)], report_too=True)[0], True
        sql.execute(insert_new(sql, data_sets).values(name=draft.name, last_version=0))
        mine = data_sets.c.name == draft.name
        sql.execute(update(data_sets).where(mine).values(last_version=data_sets.c.last_version + 1))
        version = sql.execute(select(data_sets.c.last_version).where(mine)).scalar_one()
        key = {"name": draft.name, "version": version}
        sql.execute(
            insert(data_versions).values(
                **key,
                digest=digest,
                format=int(draft.format),
                columns=json.dumps([[x.name, x.type, list(x.shape)] for x in draft.columns]),
                text_column=draft.text_column,
                label_column=draft.label_column,
                license=draft.license,
                source=draft.lineage.source,
                job=draft.lineage.job,
                step=draft.lineage.step,
                report=report.to_json(draft.report),
                created=time.time(),
            )
        )
        for i, split in enumerate(draft.splits):
            row = {"split": split.name, "rows": split.rows, "sha256": split.sha256}
            sql.execute(insert(data_files).values(**key, position=i, **row))
        for i, parent in enumerate(draft.lineage.parents):
            sql.execute(insert(data_parents).values(**key, position=i, parent=parent))
        made = self._load(sql, [(draft.name, version)], report_too=True)[0]
        tenant = caller.current().tenant
        quota.charge(sql, tenant, made.size_bytes, kind=_KIND, subject=made.ref)
        detail = {"digest": digest, "rows": made.rows, "bytes": made.size_bytes}
        audit.record(sql, tenant, "dataset.create", made.ref, detail)
        return made, False

    def get(self, ref: str) -> Dataset:
        """Return what `name` (newest) or `name@version` means.

        Raises BAD_NAME, NO_SUCH_DATASET with near names, NO_SUCH_VERSION with those there are.
        """
        with self._db.read() as sql:
            return self._load(sql, [find(sql, ref)], report_too=True)[0]

    def page(self, name: str, size: int, token: str) -> Page:
        """Return up to `size` versions (0 = 100) by name, newest first. Raises BAD_PAGE."""
        size = pages.page_size(size)
        c = data_versions.c
        wanted = select(c.name, c.version)
        if name:
            wanted = wanted.where(c.name == check_name(name))
        if token:
            last, version = pages.read_token(token, ["datasets", name], str, int)
            wanted = wanted.where(c.name >= last, (c.name > last) | (c.version < version))
        wanted = wanted.order_by(c.name, c.version.desc()).limit(size + 1)
        with self._db.read() as sql:
            keys = [(row.name, row.version) for row in sql.execute(wanted)]
            found = self._load(sql, keys[:size], report_too=False)
        more = pages.token(["datasets", name], *keys[size - 1]) if len(keys) > size else ""
        return Page(found, more)

    def delete(self, sql: Connection, ref: str, force: bool) -> list[str]:
        """Delete a version and return its digests. Raises as `get`, and IN_USE, STALE_FENCE."""
        fence.check(sql, caller.current().fence)
        name, version = find(sql, ref)
        self._leases.expire(sql)
        if held := holders(self._leases.listed(sql, (name, version))):
            raise FailedPrecondition(
                "IN_USE",
                f"{name}@{version} is needed: {_some(held)} {'has' if len(held) == 1 else 'have'} "
                "a lease on it; end what uses it (cancel the job), release the lease or wait "
                "until it runs out.",
            )
        users = _users(sql, f"{name}@{version}")
        if users and not force:
            raise FailedPrecondition(
                "IN_USE",
                f"{name}@{version} is what {_some(users)} "
                f"{'was' if len(users) == 1 else 'were'} made from; delete those first, or "
                "force it.",
            )
        mine = (data_files.c.name == name) & (data_files.c.version == version)
        digests = list(sql.execute(select(data_files.c.sha256).where(mine).distinct()).scalars())
        sql.execute(
            delete(data_versions).where(
                data_versions.c.name == name, data_versions.c.version == version
            )
        )
        quota.release(sql, _KIND, f"{name}@{version}")
        detail = {"forced": bool(users)}
        audit.record(sql, caller.current().tenant, "dataset.delete", f"{name}@{version}", detail)
        return digests

    def _load(
        self, sql: Connection, keys: Iterable[tuple[str, int]], *, report_too: bool
    ) -> list[Dataset]:
        return [_one(sql, name, version, report_too) for name, version in keys]


def find(sql: Connection, ref: str) -> tuple[str, int]:
    """Return (name, version) of an existing version. Raises as `Catalog.get`."""
    name, version = parse_ref(ref)
    newest = (
        select(data_versions.c.version)
        .where(data_versions.c.name == name)
        .order_by(data_versions.c.version.desc())
    )
    wanted = newest if version is None else newest.where(data_versions.c.version == version)
    found = sql.execute(wanted.limit(1)).scalar()
    if found is not None:
        return name, found
    there = [str(number) for number in sql.execute(newest.limit(_LISTED + 1)).scalars()]
    if there:
        some = ", ".join(there[:_LISTED]) + (", ..." if len(there) > _LISTED else "")
        raise NotFound(
            "NO_SUCH_VERSION", f"Data set {name} has no version {version}; it has {some}."
        )
    known = list(sql.execute(select(data_versions.c.name).distinct()).scalars())
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"near names: {', '.join(near)}" if near else "`llmos-ctl dataset list` lists all"
    raise NotFound("NO_SUCH_DATASET", f"There is no data set {short(name)}; {hint}.")


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def _users(sql: Connection, ref: str) -> list[str]:
    """Return the data sets and models that were made from a version."""
    found = []
    for table, column, what in (
        (data_parents, data_parents.c.parent, "data set"),
        (datasets_used, datasets_used.c.dataset, "model"),
    ):
        c = table.c
        rows = sql.execute(
            select(c.name, c.version).where(column == ref).distinct().order_by(c.name, c.version)
        )
        found += [f"{what} {row.name}@{row.version}" for row in rows]
    return found


def _one(sql: Connection, name: str, version: int, report_too: bool) -> Dataset:
    c, f, p = data_versions.c, data_files.c, data_parents.c
    row: Any = sql.execute(select(data_versions).where(c.name == name, c.version == version)).one()
    files = sql.execute(
        select(f.split, f.rows, f.sha256, blobs.c.size)
        .join(blobs, blobs.c.sha256 == f.sha256)
        .where(f.name == name, f.version == version)
        .order_by(f.position)
    )
    parents = sql.execute(
        select(p.parent).where(p.name == name, p.version == version).order_by(p.position)
    ).scalars()
    return Dataset(
        name=name,
        version=version,
        columns=tuple(Column(n, t, tuple(s)) for n, t, s in json.loads(row._mapping["columns"])),
        splits=tuple(
            Split(file.split, file._mapping["rows"], file.sha256, file.size) for file in files
        ),
        lineage=Lineage(row.source, tuple(parents), row.job, row.step),
        format=DataFormat(row.format),
        license=row.license,
        text_column=row.text_column,
        label_column=row.label_column,
        created_unix_s=row.created,
        digest=row.digest,
        report=report.from_json(row.report) if report_too else None,
    )
