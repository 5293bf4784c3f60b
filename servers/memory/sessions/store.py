"""Owns the file of sessions (SQLite). Blocks: to be called from one thread.

Every change is durable when the method returns. What is deleted is overwritten with zeros
(secure_delete), and the write-ahead log, which may still have it, is emptied.
"""

from __future__ import annotations

import json
import math
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from llmos.lib.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from llmos.servers.memory.sessions.words import MAX_TURNS, Session, Settings, Turn

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
  key INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL, id TEXT NOT NULL,
  system TEXT NOT NULL, model TEXT NOT NULL, embedder TEXT NOT NULL, ttl_s INTEGER NOT NULL,
  summary TEXT NOT NULL, next INTEGER NOT NULL DEFAULT 1,
  created REAL NOT NULL, used REAL NOT NULL,
  UNIQUE (tenant, id)
) STRICT;
CREATE TABLE IF NOT EXISTS turns (
  session INTEGER NOT NULL REFERENCES sessions (key) ON DELETE CASCADE,
  number INTEGER NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL, pinned INTEGER NOT NULL,
  created REAL NOT NULL, tokens INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vectors (
  session INTEGER NOT NULL, number INTEGER NOT NULL, embedder TEXT NOT NULL, vector BLOB NOT NULL,
  PRIMARY KEY (session, number),
  FOREIGN KEY (session, number) REFERENCES turns (session, number) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
  session INTEGER NOT NULL REFERENCES sessions (key) ON DELETE CASCADE,
  request TEXT NOT NULL, numbers TEXT NOT NULL, made REAL NOT NULL,
  PRIMARY KEY (session, request)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_made ON requests (made);
CREATE INDEX IF NOT EXISTS sessions_due ON sessions (used + ttl_s) WHERE ttl_s > 0;
"""
_SETTINGS = "system, model, embedder, ttl_s, summary"
_SESSION = f"id, {_SETTINGS}, (SELECT count(*) FROM turns WHERE session = key), created, used"
_TURN = "role, content, pinned, number, created, tokens"
_REQUEST_S = 3600  # a retry comes sooner


class SessionStore:
    """All sessions of all tenants.

    due: Unix time before which no session's time is over, so that `expire` finds nothing.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises FailedPrecondition READ_ONLY, BAD_STATE."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.execute("PRAGMA secure_delete = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise FailedPrecondition(
                    "BAD_STATE", f"{path} is of a newer LLM OS (version {version}); upgrade."
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self.due = self._first_due()
        except (OSError, sqlite3.OperationalError) as exc:
            raise FailedPrecondition(
                "READ_ONLY", f"Cannot write {path} ({exc}); make its directory writable."
            ) from exc
        except sqlite3.DatabaseError as exc:
            raise FailedPrecondition(
                "BAD_STATE", f"{path} is damaged ({exc}); put it aside or restore it."
            ) from exc

    def create(self, tenant: str, id: str, settings: Settings, now: float) -> Session:
        """Make a session, or return the same one. Raises AlreadyExists SESSION_EXISTS."""
        id = id or uuid.uuid4().hex
        if settings.ttl_s:
            self.due = min(self.due, now + settings.ttl_s)
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                f"INSERT INTO sessions (tenant, id, {_SETTINGS}, created, used) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (tenant, id, *astuple(settings), now, now),
            )
            found = self.get(tenant, id)
        if found.settings != settings:
            raise AlreadyExists(
                "SESSION_EXISTS",
                f"There is a session {id} with other settings; update it or use another id.",
            )
        return found

    def update(self, tenant: str, id: str, changes: Mapping[str, Any]) -> Session:
        """Change settings by name. Raises NotFound NO_SUCH_SESSION."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            before = self.get(tenant, id)
            after = replace(before.settings, **changes)
            self._db.execute(
                "UPDATE sessions SET system = ?, model = ?, embedder = ?, ttl_s = ?, summary = ? "
                "WHERE tenant = ? AND id = ?",
                (*astuple(after), tenant, id),
            )
            if after.model != before.settings.model:
                self._db.execute(
                    "UPDATE turns SET tokens = 0 WHERE session = ?", (self._key(tenant, id),)
                )
        if after != before.settings:
            self.due = 0.0
            self._purge()  # the old texts
        return replace(before, settings=after)

    def get(self, tenant: str, id: str) -> Session:
        """Return a session. Raises NotFound NO_SUCH_SESSION."""
        row = self._db.execute(
            f"SELECT {_SESSION} FROM sessions WHERE tenant = ? AND id = ?", (tenant, id)
        ).fetchone()
        if row is None:
            raise _unknown(id)
        return _session(row)

    def page(self, tenant: str, after: str, count: int) -> list[Session]:
        """Return sessions by id, after one."""
        rows = self._db.execute(
            f"SELECT {_SESSION} FROM sessions WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?",
            (tenant, after, count),
        )
        return [_session(row) for row in rows]

    def append(
        self, tenant: str, id: str, turns: Sequence[Turn], request: str, now: float
    ) -> list[int]:
        """Append turns, once for each `request`; return their numbers.

        Raises NotFound NO_SUCH_SESSION, ResourceExhausted SESSION_FULL.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            key = self._key(tenant, id)
            if request:
                done = self._db.execute(
                    "SELECT numbers FROM requests WHERE session = ? AND request = ?", (key, request)
                ).fetchone()
                if done is not None:
                    return [int(n) for n in json.loads(done[0])]
            count = self._db.execute(
                "SELECT count(*) FROM turns WHERE session = ?", (key,)
            ).fetchone()[0]
            if count + len(turns) > MAX_TURNS:
                raise ResourceExhausted(
                    "SESSION_FULL",
                    f"Session {id} has {count:,} turns of at most {MAX_TURNS:,}; delete some or "
                    "begin another session.",
                )
            first = self._db.execute(
                "UPDATE sessions SET next = next + ?, used = ? WHERE key = ? RETURNING next",
                (len(turns), now, key),
            ).fetchone()[0] - len(turns)
            numbers = [*range(first, first + len(turns))]
            self._db.executemany(
                "INSERT INTO turns (session, number, role, content, pinned, created) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (key, n, t.role, t.content, t.pinned, now)
                    for n, t in zip(numbers, turns, strict=True)
                ],
            )
            self._db.execute("DELETE FROM requests WHERE made < ?", (now - _REQUEST_S,))
            if request:
                self._db.execute(
                    "INSERT INTO requests VALUES (?, ?, ?, ?)",
                    (key, request, json.dumps(numbers), now),
                )
        return numbers

    def turns(self, tenant: str, id: str, after: int = 0, count: int = MAX_TURNS) -> list[Turn]:
        """Return turns in order. Raises NotFound NO_SUCH_SESSION."""
        rows = self._db.execute(
            f"SELECT {_TURN} FROM turns WHERE session = ? AND number > ? ORDER BY number LIMIT ?",
            (self._key(tenant, id), after, count),
        )
        return [Turn(r[0], r[1], bool(r[2]), *r[3:]) for r in rows]

    def counted(self, tenant: str, id: str, tokens: Mapping[int, int]) -> None:
        """Keep how many tokens turns have, by number."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            key = self._key(tenant, id)
            self._db.executemany(
                "UPDATE turns SET tokens = ? WHERE session = ? AND number = ?",
                [(count, key, number) for number, count in tokens.items()],
            )

    def vectors(self, tenant: str, id: str, embedder: str) -> Iterator[tuple[int, bytes]]:
        """Yield the vectors that `embedder` (a version) made, by the number of their turn."""
        yield from self._db.execute(
            "SELECT number, vector FROM vectors WHERE session = ? AND embedder = ?",
            (self._key(tenant, id), embedder),
        ).fetchall()

    def embedded(
        self, tenant: str, id: str, embedder: str, vectors: Mapping[int, bytes]
    ) -> list[int]:
        """Keep vectors of those turns that are still there; return their numbers."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            key = self._key(tenant, id)
            kept: list[int] = []
            for number, vector in vectors.items():
                cursor = self._db.execute(
                    "INSERT OR REPLACE INTO vectors SELECT session, number, ?, ? FROM turns "
                    "WHERE session = ? AND number = ?",
                    (embedder, vector, key, number),
                )
                kept += [number] * cursor.rowcount
        return kept

    def delete_turns(self, tenant: str, id: str, numbers: Sequence[int]) -> int:
        """Delete turns with their vectors, really. Raises NotFound NO_SUCH_SESSION."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            key = self._key(tenant, id)
            deleted = self._db.executemany(
                "DELETE FROM turns WHERE session = ? AND number = ?", [(key, n) for n in numbers]
            ).rowcount
        self._purge()
        return deleted

    def delete(self, tenant: str, id: str) -> bool:
        """Delete a session with all it has, really; say whether it was there."""
        with self._db:
            deleted = self._db.execute(
                "DELETE FROM sessions WHERE tenant = ? AND id = ?", (tenant, id)
            ).rowcount
        self._purge()
        return bool(deleted)

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Delete the sessions whose time is over; return (tenant, id) of each."""
        with self._db:
            gone = self._db.execute(
                "DELETE FROM sessions WHERE ttl_s > 0 AND used + ttl_s <= ? RETURNING tenant, id",
                (now,),
            ).fetchall()
        self.due = self._first_due()
        if gone:
            self._purge()
        return gone

    def _first_due(self) -> float:
        row = self._db.execute("SELECT min(used + ttl_s) FROM sessions WHERE ttl_s > 0").fetchone()
        return math.inf if row[0] is None else float(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _key(self, tenant: str, id: str) -> int:
        row = self._db.execute(
            "SELECT key FROM sessions WHERE tenant = ? AND id = ?", (tenant, id)
        ).fetchone()
        if row is None:
            raise _unknown(id)
        return int(row[0])

    def _purge(self) -> None:
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _session(row: Sequence[Any]) -> Session:
    return Session(row[0], Settings(*row[1:6]), *row[6:])


def _unknown(id: str) -> NotFound:
    return NotFound(
        "NO_SUCH_SESSION",
        f"There is no session {id[:128]!r}: it was deleted, its time ran out, or it never was; "
        "create it.",
    )
