"""The registry's SQLite file: connections, transactions, schema, and what its errors mean."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from llmos.lib.errors import DataLoss, FailedPrecondition, Internal, LLMOSError
from llmos.servers.storage.disk import disk_full, is_full, read_only

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE blobs (
  sha256 TEXT PRIMARY KEY,
  size INTEGER NOT NULL,
  touched REAL NOT NULL  -- Unix time of the last upload: spares it from collection for a while
);
CREATE INDEX blobs_size ON blobs (size);
CREATE TABLE models (
  name TEXT PRIMARY KEY,
  last_version INTEGER NOT NULL  -- stays when versions are deleted: numbers are never reused
);
CREATE TABLE versions (
  name TEXT NOT NULL REFERENCES models (name),
  version INTEGER NOT NULL,
  digest TEXT NOT NULL,
  format INTEGER NOT NULL,
  task INTEGER NOT NULL,
  architecture TEXT NOT NULL,
  parameters INTEGER NOT NULL,
  dtype TEXT NOT NULL,
  context_length INTEGER NOT NULL,
  license TEXT NOT NULL,
  source TEXT NOT NULL,
  job TEXT NOT NULL,
  step TEXT NOT NULL,
  created REAL NOT NULL,
  PRIMARY KEY (name, version),
  UNIQUE (name, digest)
);
CREATE TABLE files (
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  position INTEGER NOT NULL,
  file TEXT NOT NULL,
  sha256 TEXT NOT NULL REFERENCES blobs (sha256),
  PRIMARY KEY (name, version, position),
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE
);
CREATE INDEX files_sha256 ON files (sha256);
CREATE TABLE parents (
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  position INTEGER NOT NULL,
  parent TEXT NOT NULL,  -- `name@version`; may have been deleted since
  PRIMARY KEY (name, version, position),
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE
);
CREATE INDEX parents_parent ON parents (parent);
CREATE TABLE metrics (
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  position INTEGER NOT NULL,
  metric TEXT NOT NULL,
  value REAL,  -- NULL is NaN
  unit TEXT NOT NULL,
  PRIMARY KEY (name, version, position),
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE
);
CREATE TABLE requests (
  request_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE
);
CREATE INDEX requests_version ON requests (name, version);
"""


class Database:
    """One SQLite file in WAL mode: one writer at a time, a reader that never waits for it.

    `lock` is held by whoever writes; hold it longer to keep files and rows in step.
    """

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises READ_ONLY, DISK_FULL, DATA_LOSS REGISTRY_DAMAGED."""
        self.path = path
        self.lock = threading.RLock()
        self._read_lock = threading.Lock()
        with self._errors():
            self._writer = self._connect()
            try:
                self._prepare()
                self._reader = self._connect()
            except BaseException:
                self._writer.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        sql = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
        sql.execute("PRAGMA foreign_keys = ON")
        return sql

    def _prepare(self) -> None:
        sql = self._writer
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("PRAGMA synchronous = FULL")  # an acknowledged write survives a power loss
        (found,) = sql.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise FailedPrecondition(
                "NEWER_STATE",
                f"{self.path} was written by a newer LLM OS (schema {found}, this one knows "
                f"{SCHEMA_VERSION}); upgrade, or name another state directory.",
            )
        if found == 0:
            sql.executescript(
                f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
            )

    def close(self) -> None:
        """Close both connections."""
        with self.lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction: durable when the block ends, undone when it raises."""
        with self.lock, self._errors():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give one consistent view for reading."""
        with self._read_lock, self._errors():
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    def _error(self, exc: sqlite3.Error) -> LLMOSError:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        # Where SQLite cannot grow the file that it maps (-shm), it says I/O error.
        if code == sqlite3.SQLITE_FULL or (
            code == sqlite3.SQLITE_IOERR and is_full(self.path.parent)
        ):
            return disk_full(self.path.parent)
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return read_only(self.path, str(exc))
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR):
            return DataLoss(
                "REGISTRY_DAMAGED", f"{self.path} cannot be read ({exc}); restore it from a backup."
            )
        return Internal("BUG", f"{self.path}: {exc}")
