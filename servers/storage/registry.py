"""Versions and their names in the database. Knows digests, not files."""

from __future__ import annotations

import base64
import difflib
import json
import math
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from llmos.lib.errors import FailedPrecondition, InvalidArgument, NotFound
from llmos.servers.storage.database import Database
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

    def insert(self, sql: sqlite3.Connection, draft: Draft) -> tuple[Version, bool]:
        """Register a draft under the next number of its name; its blobs must have rows.

        Returns the version, and whether it was there before: the one that an earlier attempt
        with the same request_id made, or the one with the same files.
        """
        digest = version_digest(draft.files)
        if found := self._existing(sql, draft, digest):
            return found, True
        sql.execute("INSERT OR IGNORE INTO models VALUES (?, 0)", (draft.name,))
        (version,) = sql.execute(
            "UPDATE models SET last_version = last_version + 1 WHERE name = ? "
            "RETURNING last_version",
            (draft.name,),
        ).fetchone()
        about, lineage, key = draft.description, draft.lineage, (draft.name, version)
        sql.execute(
            f"INSERT INTO versions VALUES ({', '.join('?' * 14)})",
            (
                *key,
                digest,
                about.format,
                about.task,
                about.architecture,
                about.parameters,
                about.dtype,
                about.context_length,
                about.license,
                lineage.source,
                lineage.job,
                lineage.step,
                time.time(),
            ),
        )
        sql.executemany(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?)",
            [(*key, i, file.name, file.sha256) for i, file in enumerate(draft.files)],
        )
        sql.executemany(
            "INSERT INTO parents VALUES (?, ?, ?, ?)",
            [(*key, i, parent) for i, parent in enumerate(lineage.parents)],
        )
        sql.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)",
            [(*key, i, m.name, m.value, m.unit) for i, m in enumerate(draft.metrics)],
        )
        if draft.request_id:
            sql.execute("INSERT INTO requests VALUES (?, ?, ?)", (draft.request_id, *key))
        return self._load(sql, [key])[0], False

    def _existing(self, sql: sqlite3.Connection, draft: Draft, digest: str) -> Version | None:
        key = None
        if draft.request_id:
            key = sql.execute(
                "SELECT name, version FROM requests WHERE request_id = ?", (draft.request_id,)
            ).fetchone()
        key = (
            key
            or sql.execute(
                "SELECT name, version FROM versions WHERE name = ? AND digest = ?",
                (draft.name, digest),
            ).fetchone()
        )
        return self._load(sql, [key])[0] if key else None

    def of_request(self, request_id: str) -> Version | None:
        """Return the version that an earlier attempt of this request registered."""
        with self._db.read() as sql:
            key = sql.execute(
                "SELECT name, version FROM requests WHERE request_id = ?", (request_id,)
            ).fetchone()
            return self._load(sql, [key])[0] if key else None

    def get(self, ref: str) -> Version:
        """Return the version that `name` (newest) or `name@version` means.

        Raises BAD_NAME, NO_SUCH_MODEL with near names, NO_SUCH_VERSION with those there are.
        """
        with self._db.read() as sql:
            return self._load(sql, [self.key(sql, ref)])[0]

    def key(self, sql: sqlite3.Connection, ref: str) -> tuple[str, int]:
        """Return (name, version) of an existing version. Raises as `get`."""
        name, version = parse_ref(ref)
        numbers = [
            n
            for (n,) in sql.execute(
                "SELECT version FROM versions WHERE name = ? ORDER BY version DESC", (name,)
            )
        ]
        if not numbers:
            names = [n for (n,) in sql.execute("SELECT DISTINCT name FROM versions")]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            hint = f"near names: {', '.join(near)}" if near else "`llmos-ctl model ls` lists all"
            raise NotFound("NO_SUCH_MODEL", f"There is no model {short(name)}; {hint}.")
        if version is None:
            return name, numbers[0]
        if version not in numbers:
            there = ", ".join(str(n) for n in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
            raise NotFound(
                "NO_SUCH_VERSION", f"Model {name} has no version {version}; it has {there}."
            )
        return name, version

    def license(self, parents: Iterable[str]) -> str:
        """Return the licence that all these versions have; "" when they differ or say nothing."""
        found = set()
        with self._db.read() as sql:
            for parent in parents:
                row = sql.execute(
                    "SELECT license FROM versions WHERE name = ? AND version = ?",
                    parse_ref(parent),
                ).fetchone()
                found.add(row[0] if row else "")
        return found.pop() if len(found) == 1 else ""

    def page(self, name: str, size: int, token: str) -> Page:
        """Return up to `size` versions (0 = 100) by name, newest first. Raises BAD_PAGE."""
        if not 0 <= size <= MAX_PAGE:
            raise InvalidArgument(
                "BAD_PAGE", f"page_size {size} is out of range: ask for 1 to {MAX_PAGE}."
            )
        size = size or DEFAULT_PAGE
        where, values = "1", list[object]()
        if name:
            where, values = "name = ?", [name]
        if token:
            last = _read_token(token, name)
            where += " AND (name > ? OR (name = ? AND version < ?))"
            values += [last[0], last[0], last[1]]
        with self._db.read() as sql:
            keys = sql.execute(
                f"SELECT name, version FROM versions WHERE {where} "
                "ORDER BY name, version DESC LIMIT ?",
                [*values, size + 1],
            ).fetchall()
            versions = self._load(sql, keys[:size])
        return Page(versions, _token(name, keys[size - 1]) if len(keys) > size else "")

    def delete(self, sql: sqlite3.Connection, ref: str, force: bool) -> list[str]:
        """Delete a version and return its digests. Raises as `get`, and IN_USE."""
        name, version = self.key(sql, ref)
        children = [
            f"{n}@{v}"
            for n, v in sql.execute(
                "SELECT DISTINCT name, version FROM parents WHERE parent = ? ORDER BY 1, 2",
                (f"{name}@{version}",),
            )
        ]
        if children and not force:
            raise FailedPrecondition(
                "IN_USE",
                f"{name}@{version} is what {', '.join(children[:8])} "
                f"{'was' if len(children) == 1 else 'were'} made from; delete those first, or "
                "force it.",
            )
        digests = [
            d
            for (d,) in sql.execute(
                "SELECT DISTINCT sha256 FROM files WHERE name = ? AND version = ?", (name, version)
            )
        ]
        sql.execute("DELETE FROM versions WHERE name = ? AND version = ?", (name, version))
        return digests

    def _load(self, sql: sqlite3.Connection, keys: Iterable[tuple[str, int]]) -> list[Version]:
        return [self._one(sql, name, version) for name, version in keys]

    def _one(self, sql: sqlite3.Connection, name: str, version: int) -> Version:
        key = (name, version)
        row = sql.execute(
            "SELECT format, task, architecture, parameters, dtype, context_length, license, "
            "source, job, step, created, digest FROM versions WHERE name = ? AND version = ?",
            key,
        ).fetchone()
        files = sql.execute(
            "SELECT file, sha256, size FROM files JOIN blobs USING (sha256) "
            "WHERE name = ? AND version = ? ORDER BY position",
            key,
        )
        parents = sql.execute(
            "SELECT parent FROM parents WHERE name = ? AND version = ? ORDER BY position", key
        )
        metrics = sql.execute(
            "SELECT metric, value, unit FROM metrics WHERE name = ? AND version = ? "
            "ORDER BY position",
            key,
        )
        return Version(
            name=name,
            version=version,
            description=Description(Format(row[0]), Task(row[1]), *row[2:7]),
            files=tuple(File(f, d, s, self._blobs / d[:2] / d) for f, d, s in files),
            lineage=Lineage(row[7], tuple(p for (p,) in parents), row[8], row[9]),
            metrics=tuple(Metric(m, math.nan if v is None else v, u) for m, v, u in metrics),
            created_unix_s=row[10],
            digest=row[11],
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
