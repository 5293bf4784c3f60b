"""Connections and transactions of the storage server's database, SQLite or PostgreSQL.

On both: one writer at a time (also among processes), readers never wait and see one consistent
view, and a write is durable when its block ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from llmos.lib import failpoint
from llmos.lib.errors import InvalidArgument
from llmos.servers.storage import caller
from llmos.servers.storage.db import fence, migrate
from llmos.servers.storage.db.failures import convert

# Key of the advisory lock that PostgreSQL's writers queue for: "llmos" in ASCII.
_WRITERS = 0x6C6C6D6F73
_BUSY_S = 10.0  # another process that holds SQLite's write lock, e.g. a backup, gets this long
_CONNECT_S = 10  # seconds


class Database:
    """One SQLite file (WAL) or one PostgreSQL database. Any thread may use it.

    `lock` is held by whoever writes; hold it longer to keep files and rows in step.
    """

    def __init__(self, url: str | Path) -> None:
        """Open or create it and bring its schema up to date.

        url: a file, `sqlite:///FILE` or `postgresql://USER@HOST/NAME`. Raises BAD_CONFIG,
        READ_ONLY, DISK_FULL, NEWER_STATE, REGISTRY_DAMAGED, DATABASE_UNREACHABLE.
        """
        self.url = _url(url)
        self.lock = threading.RLock()
        self._in_write = False
        self._listeners: list[Callable[[], None]] = []
        self.path = Path(self.url.database or "") if self.is_sqlite else None
        self.place = str(self.path or self.url.render_as_string(hide_password=True))
        self._engine = self._make()
        self._reader = self._engine
        if not self.is_sqlite:
            self._reader = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        try:
            self._prepare()
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def is_sqlite(self) -> bool:
        """Return whether this is a file of this host, rather than a server."""
        return self.url.get_backend_name() == "sqlite"

    def _make(self, migrating: bool = False) -> Engine:
        pool: dict[str, Any] = {"pool_size": 8, "max_overflow": 56}
        if migrating:
            pool = {"poolclass": NullPool}
        if not self.is_sqlite:
            given = {"connect_timeout": _CONNECT_S} | dict(self.url.query)
            return create_engine(self.url, connect_args=given, pool_pre_ping=True, **pool)
        engine = create_engine(
            self.url, connect_args={"timeout": _BUSY_S, "check_same_thread": False}, **pool
        )

        def connected(raw: Any, _: object) -> None:
            raw.isolation_level = None  # transactions begin where `began` says, and nowhere else
            # Migrations copy tables: with foreign keys on, dropping the old one would cascade.
            raw.execute(f"PRAGMA foreign_keys = {'OFF' if migrating else 'ON'}")
            raw.execute("PRAGMA synchronous = FULL")  # acknowledged writes survive a power loss

        def began(sql: Connection) -> None:
            writes = sql.get_execution_options().get("llmos_write")
            sql.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        event.listen(engine, "connect", connected)
        event.listen(engine, "begin", began)
        return engine

    def _prepare(self) -> None:
        if self.path is not None:
            with self._errors(), self._engine.connect() as sql:
                raw: Any = sql.connection.driver_connection
                raw.execute("PRAGMA journal_mode = WAL")
        with self.read() as sql:
            current = migrate.is_current(sql, self.place)
        if current:
            return
        engine = self._make(migrating=True)
        with self.lock, self._errors(), self._writing(engine) as sql:
            if not migrate.is_current(sql, self.place):  # another process may have been first
                migrate.upgrade(sql)

    def close(self) -> None:
        """Close all connections."""
        with self.lock:
            self._engine.dispose()

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every committed write, in the writer's thread; it must be quick."""
        self._listeners.append(listener)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Run a transaction: durable when the block ends, undone when it raises.

        Raises STALE_FENCE when the call that is being served requires a lock that it lost.
        """
        with self.lock:
            if self._in_write:
                raise RuntimeError("Database.write inside Database.write")
            self._in_write = True
            try:
                with self._errors(), self._writing(self._engine) as sql:
                    fence.check(sql, caller.current().fence)
                    yield sql
            finally:
                self._in_write = False
            for listener in self._listeners:
                listener()

    @contextlib.contextmanager
    def _writing(self, engine: Engine) -> Iterator[Connection]:
        with engine.connect().execution_options(llmos_write=True) as sql, sql.begin():
            if not self.is_sqlite:
                sql.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITERS})
            yield sql
            failpoint.hit("commit.before")
        failpoint.hit("commit.after")

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Give one consistent view for reading."""
        with self._errors(), self._reader.connect() as sql, sql.begin():
            yield sql

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as exc:
            raise convert(exc, self.place, self.path) from exc


def _url(given: str | Path) -> URL:
    """Return what a file or a URL means. Raises BAD_CONFIG."""
    if isinstance(given, Path) or "://" not in given:
        return URL.create("sqlite", database=str(given))
    try:
        url = make_url(given)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        if url.drivername in ("sqlite", "postgresql+psycopg") and url.database:
            url.get_dialect()
            return url
    except (ArgumentError, NoSuchModuleError):
        pass  # the same advice
    raise InvalidArgument(
        "BAD_CONFIG",
        "[storage] database is neither sqlite:///FILE nor postgresql://USER:PASSWORD@HOST/NAME.",
    )
