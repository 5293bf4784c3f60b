"""Versions and their numbers: how they come and go. Knows digests, not files."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import Connection, Table, delete, insert, select, update

from llmos.servers.storage import caller
from llmos.servers.storage.db import audit, quota
from llmos.servers.storage.db.clock import BootClock
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables import insert_new
from llmos.servers.storage.db.tables_registry import (
    datasets_used,
    files,
    metrics,
    models,
    parents,
    requests,
    versions,
)
from llmos.servers.storage.model import Draft, Filters, Page, Version, version_digest
from llmos.servers.storage.names import parse_ref
from llmos.servers.storage.registry import lineage, listing, refs, rows, tags, usage
from llmos.servers.storage.registry.leases import Leases
from llmos.servers.storage.registry.model import LineageWalk
from llmos.servers.storage.registry.rows import VersionKey

_ALL = Filters()


class Registry:
    """The immutable versions. Methods that take `sql` run inside the caller's transaction."""

    def __init__(self, database: Database, blobs: Path, clock: BootClock | None = None) -> None:
        """Use `database`; files are said to be at <blobs>/<first two digits>/<sha256>.

        clock: what leases run out by.
        """
        self._db = database
        self._blobs = blobs
        self._leases = Leases(clock or BootClock())

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
        about, made = draft.description, draft.lineage
        key: dict[str, object] = {"name": draft.name, "version": version}
        row = key | {
            "digest": digest,
            "format": int(about.format),
            "task": int(about.task),
            "architecture": about.architecture,
            "parameters": about.parameters,
            "dtype": about.dtype,
            "context_length": about.context_length,
            "license": about.license,
            "tokenizer": about.tokenizer,
            "chat_template": about.chat_template,
            "source": made.source,
            "job": made.job,
            "step": made.step,
            "code": made.code,
            "created": time.time(),
        }
        sql.execute(insert(versions), row)
        measured: list[dict[str, object]] = [
            {"metric": m.name, "value": None if math.isnan(m.value) else m.value, "unit": m.unit}
            for m in draft.metrics
        ]
        lists: list[tuple[Table, list[dict[str, object]]]] = [
            (files, [{"file": f.name, "sha256": f.sha256} for f in draft.files]),
            (parents, [{"parent": parent} for parent in made.parents]),
            (datasets_used, [{"dataset": dataset} for dataset in made.datasets]),
            (metrics, measured),
        ]
        for table, items in lists:
            if items:
                numbered = [key | {"position": i} | item for i, item in enumerate(items)]
                sql.execute(insert(table), numbered)
        if draft.request_id:
            sql.execute(insert(requests), key | {"request_id": draft.request_id})
        tags.change(sql, (draft.name, version), draft.tags, ())
        what = {"digest": digest, "source": made.source, "parents": list(made.parents)}
        who, ref = caller.current().tenant, f"{draft.name}@{version}"
        for file in draft.files:
            quota.release(sql, quota.UPLOAD, file.sha256)
        added = self._one(sql, (draft.name, version))
        quota.charge(sql, who, added.size_bytes, kind=quota.MODEL, subject=ref)
        audit.record(sql, who, "model.create", ref, what)
        return added, False

    def _existing(self, sql: Connection, draft: Draft, digest: str) -> Version | None:
        if draft.request_id and (found := self._of_request(sql, draft.request_id)):
            return found
        key = sql.execute(
            select(versions.c.name, versions.c.version).where(
                versions.c.name == draft.name, versions.c.digest == digest
            )
        ).first()
        return self._one(sql, (key.name, key.version)) if key else None

    def of_request(self, request_id: str) -> Version | None:
        """Return the version that an earlier attempt of this request registered."""
        with self._db.read() as sql:
            return self._of_request(sql, request_id)

    def _of_request(self, sql: Connection, request_id: str) -> Version | None:
        key = sql.execute(
            select(requests.c.name, requests.c.version).where(requests.c.request_id == request_id)
        ).first()
        return self._one(sql, (key.name, key.version)) if key else None

    def _one(self, sql: Connection, key: VersionKey) -> Version:
        return rows.load(sql, [key], self._blobs)[0]

    def get(self, ref: str) -> Version:
        """Return the version that `name` (newest), `name@version` or `name@alias` means.

        Raises as refs.find.
        """
        with self._db.read() as sql:
            return self._one(sql, refs.find(sql, ref))

    def key(self, sql: Connection, ref: str) -> VersionKey:
        """Return (name, version) of an existing version. Raises as refs.find."""
        return refs.find(sql, ref)

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

    def page(self, name: str, size: int, token: str, filters: Filters = _ALL) -> Page:
        """Return up to `size` versions (0 = 100) by name, newest first. Raises as listing.page."""
        with self._db.read() as sql:
            keys, more = listing.page(sql, name, filters, size, token)
            return Page(rows.load(sql, keys, self._blobs, listing=True), more)

    def lineage(self, ref: str, descendants: bool, max_depth: int) -> LineageWalk:
        """Walk from a version to what it was made from, or what was made from it."""
        with self._db.read() as sql:
            return lineage.walk(sql, refs.find(sql, ref), descendants, max_depth)

    def set_tags(
        self, ref: str, added: Mapping[str, str], removed: Iterable[str]
    ) -> dict[str, str]:
        """Change a version's tags; return all it has then. Raises as refs.find, and BAD_TAG."""
        removed = list(removed)
        with self._db.write() as sql:
            key = refs.find(sql, ref)
            there = tags.change(sql, key, added, removed)
            who, what = caller.current().tenant, {"set": dict(added), "removed": removed}
            audit.record(sql, who, "model.tag", f"{key[0]}@{key[1]}", what)
            return there

    def delete(self, sql: Connection, ref: str, force: bool) -> list[str]:
        """Delete a version and return its digests. Raises as refs.find, and IN_USE."""
        key = name, version = refs.find(sql, ref)
        usage.release(sql, key, self._leases, force)
        own = select(files.c.sha256).where(files.c.name == name, files.c.version == version)
        digests = list(sql.execute(own.distinct()).scalars())
        sql.execute(delete(versions).where(versions.c.name == name, versions.c.version == version))
        quota.release(sql, quota.MODEL, f"{name}@{version}")
        who = caller.current().tenant
        audit.record(sql, who, "model.delete", f"{name}@{version}", {"forced": force})
        return digests
