"""Versions and their names in the database. Knows digests, not files."""

from __future__ import annotations

import base64
import difflib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from llmos.lib.errors import FailedPrecondition, InvalidArgument, NotFound
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables import insert_new
from llmos.servers.storage.db.tables_blobs import blobs
from llmos.servers.storage.db.tables_registry import (
    files,
    metrics,
    models,
    parents,
    requests,
    versions,
)
from llmos.servers.storage.model import (
    Description,
    Draft,
    File,
    Format,
    Lineage,
    Metric,
    Page,
    Task,
    Version,
    version_digest,
)
from llmos.servers.storage.names import parse_ref, short

MAX_PAGE = 1000
DEFAULT_PAGE = 100


class Registry:
    """The immutable versions. Methods that take `sql` run inside the caller's transaction."""

    def __init__(self, database: Database, blobs: Path) -> None:
        """Use `database`; files are said to be at <blobs>/<first two digits>/<sha256>."""
        self._db = database
        self._blobs = blobs

    def insert(self, sql: Connection, draft: Draft) -> tuple[Version, bool]:
        """Register a draft under the next number of its name; its blobs must have rows.

        Returns the version, and whether it was there before: the one that an earlier attempt
        with the same request_id made, or the one with the same files.
        """
        digest = version_digest(draft.files)
        if found := self._existing(sql, draft, digest):
            return found, True
        sql.execute(insert_new(sql, models), {"name": draft.name, "last_version": 0})
        version = sql.execute(
            update(models)
            .where(models.c.name == draft.name)
            .values(last_version=models.c.last_version + 1)
            .returning(models.c.last_version)
        ).scalar_one()
        about, lineage = draft.description, draft.lineage
        key = {"name": draft.name, "version": version}
        sql.execute(
            insert(versions),
            key
            | {
                "digest": digest,
                "format": int(about.format),
                "task": int(about.task),
                "architecture": about.architecture,
                "parameters": about.parameters,
                "dtype": about.dtype,
                "context_length": about.context_length,
                "license": about.license,
                "source": lineage.source,
                "job": lineage.job,
                "step": lineage.step,
                "created": time.time(),
            },
        )
        rows: list[tuple[Any, list[dict[str, object]]]] = [
            (files, [{"file": f.name, "sha256": f.sha256} for f in draft.files]),
            (parents, [{"parent": parent} for parent in lineage.parents]),
            (
                metrics,
                [
                    {
                        "metric": m.name,
                        "value": None if math.isnan(m.value) else m.value,
                        "unit": m.unit,
                    }
                    for m in draft.metrics
                ],
            ),
        ]
        for table, of_version in rows:
            if of_version:
                numbered = [key | {"position": i} | row for i, row in enumerate(of_version)]
                sql.execute(insert(table), numbered)
        if draft.request_id:
            sql.execute(insert(requests), key | {"request_id": draft.request_id})
        return self._load(sql, [(draft.name, version)])[0], False

    def _existing(self, sql: Connection, draft: Draft, digest: str) -> Version | None:
        if draft.request_id and (found := self._of_request(sql, draft.request_id)):
            return found
        key = sql.execute(
            select(versions.c.name, versions.c.version).where(
                versions.c.name == draft.name, versions.c.digest == digest
            )
        ).first()
        return self._load(sql, [(key.name, key.version)])[0] if key else None

    def of_request(self, request_id: str) -> Version | None:
        """Return the version that an earlier attempt of this request registered."""
        with self._db.read() as sql:
            return self._of_request(sql, request_id)

    def _of_request(self, sql: Connection, request_id: str) -> Version | None:
        key = sql.execute(
            select(requests.c.name, requests.c.version).where(requests.c.request_id == request_id)
        ).first()
        return self._load(sql, [(key.name, key.version)])[0] if key else None

    def get(self, ref: str) -> Version:
        """Return the version that `name` (newest) or `name@version` means.

        Raises BAD_NAME, NO_SUCH_MODEL with near names, NO_SUCH_VERSION with those there are.
        """
        with self._db.read() as sql:
            return self._load(sql, [self.key(sql, ref)])[0]

    def key(self, sql: Connection, ref: str) -> tuple[str, int]:
        """Return (name, version) of an existing version. Raises as `get`."""
        name, version = parse_ref(ref)
        wanted = select(versions.c.version).where(versions.c.name == name)
        if version is not None:
            found = sql.execute(wanted.where(versions.c.version == version)).scalar()
        else:
            found = sql.execute(wanted.order_by(versions.c.version.desc()).limit(1)).scalar()
        if found is not None:
            return name, found
        newest = wanted.order_by(versions.c.version.desc()).limit(9)
        numbers = [str(n) for n in sql.execute(newest).scalars()]
        if not numbers:
            names = list(sql.execute(select(versions.c.name).distinct()).scalars())
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            hint = f"near names: {', '.join(near)}" if near else "`llmos-ctl model ls` lists all"
            raise NotFound("NO_SUCH_MODEL", f"There is no model {short(name)}; {hint}.")
        there = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
        raise NotFound("NO_SUCH_VERSION", f"Model {name} has no version {version}; it has {there}.")

    def license(self, refs: Iterable[str]) -> str:
        """Return the licence that all these versions have; "" when they differ or say nothing."""
        found = set()
        with self._db.read() as sql:
            for name, version in map(parse_ref, refs):
                one = select(versions.c.license).where(
                    versions.c.name == name, versions.c.version == version
                )
                found.add(sql.execute(one).scalar() or "")
        return found.pop() if len(found) == 1 else ""

    def page(self, name: str, size: int, token: str) -> Page:
        """Return up to `size` versions (0 = 100) by name, newest first. Raises BAD_PAGE."""
        if not 0 <= size <= MAX_PAGE:
            raise InvalidArgument(
                "BAD_PAGE", f"page_size {size} is out of range: ask for 1 to {MAX_PAGE}."
            )
        size = size or DEFAULT_PAGE
        wanted = select(versions.c.name, versions.c.version)
        if name:
            wanted = wanted.where(versions.c.name == name)
        if token:
            last = _read_token(token, name)
            older = and_(versions.c.name == last[0], versions.c.version < last[1])
            wanted = wanted.where(or_(versions.c.name > last[0], older))
        wanted = wanted.order_by(versions.c.name, versions.c.version.desc()).limit(size + 1)
        with self._db.read() as sql:
            keys = [(row.name, row.version) for row in sql.execute(wanted)]
            found = self._load(sql, keys[:size])
        return Page(found, _token(name, keys[size - 1]) if len(keys) > size else "")

    def delete(self, sql: Connection, ref: str, force: bool) -> list[str]:
        """Delete a version and return its digests. Raises as `get`, and IN_USE."""
        name, version = self.key(sql, ref)
        made = (
            select(parents.c.name, parents.c.version)
            .where(parents.c.parent == f"{name}@{version}")
            .distinct()
            .order_by(parents.c.name, parents.c.version)
        )
        children = [f"{row.name}@{row.version}" for row in sql.execute(made)]
        if children and not force:
            raise FailedPrecondition(
                "IN_USE",
                f"{name}@{version} is what {', '.join(children[:8])} "
                f"{'was' if len(children) == 1 else 'were'} made from; delete those first, or "
                "force it.",
            )
        own = select(files.c.sha256).where(files.c.name == name, files.c.version == version)
        digests = list(sql.execute(own.distinct()).scalars())
        sql.execute(delete(versions).where(versions.c.name == name, versions.c.version == version))
        return digests

    def _load(self, sql: Connection, keys: Iterable[tuple[str, int]]) -> list[Version]:
        return [self._one(sql, name, version) for name, version in keys]

    def _one(self, sql: Connection, name: str, version: int) -> Version:
        row = sql.execute(
            select(versions).where(versions.c.name == name, versions.c.version == version)
        ).one()
        stored = sql.execute(
            select(files.c.file, files.c.sha256, blobs.c.size)
            .join(blobs, blobs.c.sha256 == files.c.sha256)
            .where(files.c.name == name, files.c.version == version)
            .order_by(files.c.position)
        )
        made_from = sql.execute(
            select(parents.c.parent)
            .where(parents.c.name == name, parents.c.version == version)
            .order_by(parents.c.position)
        ).scalars()
        measured = sql.execute(
            select(metrics.c.metric, metrics.c.value, metrics.c.unit)
            .where(metrics.c.name == name, metrics.c.version == version)
            .order_by(metrics.c.position)
        )
        return Version(
            name=name,
            version=version,
            description=Description(
                Format(row.format),
                Task(row.task),
                row.architecture,
                row.parameters,
                row.dtype,
                row.context_length,
                row.license,
            ),
            files=tuple(File(f, d, s, self._blobs / d[:2] / d) for f, d, s in stored),
            lineage=Lineage(row.source, tuple(made_from), row.job, row.step),
            metrics=tuple(Metric(m, math.nan if v is None else v, u) for m, v, u in measured),
            created_unix_s=row.created,
            digest=row.digest,
        )


def _token(listing: str, last: tuple[str, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps([listing, *last]).encode()).decode()


def _read_token(token: str, listing: str) -> tuple[str, int]:
    try:
        of, name, version = json.loads(base64.urlsafe_b64decode(token.encode()))
        if of == listing and isinstance(name, str) and isinstance(version, int):
            return name, version
    except (ValueError, TypeError):
        pass
    raise InvalidArgument(
        "BAD_PAGE",
        f"{short(token)} is not a page token of this listing; start from the first page.",
    )
