"""Transactions, schema and errors of the database, on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgres import Postgres
from sqlalchemy import insert, select, text

from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError, Unavailable
from llmos.servers.storage.db import (
    migrate,
    tables_audit,
    tables_blobs,
    tables_data,
    tables_quota,
    tables_registry,
    tables_state,
)
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables import insert_new, metadata
from llmos.servers.storage.db.tables_registry import models, versions

assert [tables_audit, tables_blobs, tables_data, tables_quota, tables_registry, tables_state]

OLD = """
CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, touched REAL NOT NULL);
CREATE INDEX blobs_size ON blobs (size);
CREATE TABLE models (name TEXT PRIMARY KEY, last_version INTEGER NOT NULL);
CREATE TABLE versions (
  name TEXT NOT NULL REFERENCES models (name), version INTEGER NOT NULL, digest TEXT NOT NULL,
  format INTEGER NOT NULL, task INTEGER NOT NULL, architecture TEXT NOT NULL,
  parameters INTEGER NOT NULL, dtype TEXT NOT NULL, context_length INTEGER NOT NULL,
  license TEXT NOT NULL, source TEXT NOT NULL, job TEXT NOT NULL, step TEXT NOT NULL,
  created REAL NOT NULL, PRIMARY KEY (name, version), UNIQUE (name, digest));
CREATE TABLE files (
  name TEXT NOT NULL, version INTEGER NOT NULL, position INTEGER NOT NULL, file TEXT NOT NULL,
  sha256 TEXT NOT NULL REFERENCES blobs (sha256), PRIMARY KEY (name, version, position),
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE);
CREATE INDEX files_sha256 ON files (sha256);
CREATE TABLE parents (
  name TEXT NOT NULL, version INTEGER NOT NULL, position INTEGER NOT NULL, parent TEXT NOT NULL,
  PRIMARY KEY (name, version, position),
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE);
CREATE INDEX parents_parent ON parents (parent);
CREATE TABLE metrics (
  name TEXT NOT NULL, version INTEGER NOT NULL, position INTEGER NOT NULL, metric TEXT NOT NULL,
  value REAL, unit TEXT NOT NULL, PRIMARY KEY (name, version, position),
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE);
CREATE TABLE requests (
  request_id TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL,
  FOREIGN KEY (name, version) REFERENCES versions (name, version) ON DELETE CASCADE);
CREATE INDEX requests_version ON requests (name, version);
INSERT INTO blobs VALUES ('aa', 5, 1.5);
INSERT INTO models VALUES ('m', 3);
INSERT INTO versions VALUES
  ('m', 3, 'd', 1, 1, 'llama', 7, 'F32', 9, 'MIT', '/x', '', '', 2.5);
INSERT INTO files VALUES ('m', 3, 0, 'model.gguf', 'aa');
PRAGMA user_version = 1;
"""


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url: Path | str = tmp_path / "registry.db"
    if request.param == "PostgreSQL":
        url = request.getfixturevalue("postgres_url")
    made = Database(url)
    try:
        yield made
    finally:
        made.close()


def names(database: Database) -> list[str]:
    with database.read() as sql:
        return list(sql.execute(select(models.c.name).order_by(models.c.name)).scalars())


def add(database: Database, name: str) -> None:
    with database.write() as sql:
        sql.execute(insert(models), {"name": name, "last_version": 0})


def test_a_write_is_whole_or_undone(database: Database) -> None:
    told: list[int] = []
    database.on_commit(lambda: told.append(1))
    add(database, "a")
    with pytest.raises(KeyError), database.write() as sql:
        sql.execute(insert(models), {"name": "b", "last_version": 0})
        raise KeyError
    assert names(database) == ["a"] and told == [1]
    with pytest.raises(LLMOSError) as caught:
        add(database, "a")
    assert caught.value.reason == "BUG"
    with database.write() as sql:
        sql.execute(insert_new(sql, models), {"name": "a", "last_version": 5})
    with pytest.raises(RuntimeError), database.write(), database.write():
        pass
    add(database, "B")
    add(database, "_")
    assert names(database) == ["B", "_", "a"]  # by their bytes


def test_a_reader_sees_one_view_and_waits_for_nobody(database: Database) -> None:
    add(database, "a")
    with database.read() as sql:
        count = select(models.c.name)
        assert len(sql.execute(count).all()) == 1
        add(database, "b")  # does not wait for the reader either
        assert len(sql.execute(count).all()) == 1
    with database.write() as sql:
        sql.execute(insert(models), {"name": "c", "last_version": 0})
        seen: list[list[str]] = []
        reader = threading.Thread(target=lambda: seen.append(names(database)))
        reader.start()
        reader.join(30)
    assert seen == [["a", "b"]]


def test_writers_take_turns(database: Database) -> None:
    add(database, "m")
    other = Database(database.path or database.url.render_as_string(hide_password=False))

    def count(db: Database) -> None:
        for _ in range(10):
            with db.write() as sql:
                last = sql.execute(select(models.c.last_version)).scalar_one()
                sql.execute(models.update().values(last_version=last + 1))

    try:
        threads = [threading.Thread(target=count, args=(db,)) for db in (database, other) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        other.close()
    with database.read() as sql:
        assert sql.execute(select(models.c.last_version)).scalar_one() == 40


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    with database.read() as sql:
        context = MigrationContext.configure(sql)
        assert compare_metadata(context, metadata) == []
        assert migrate.is_current(sql, "it")


def test_the_first_registry_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    sql = sqlite3.connect(path)
    sql.executescript(OLD)
    sql.close()
    for _ in range(2):
        database = Database(path)
        with database.read() as read:
            row = read.execute(select(versions)).one()
            assert (row.name, row.version, row.created) == ("m", 3, 2.5)
            differences = compare_metadata(MigrationContext.configure(read), metadata)
            # Lists are of columns' types, which SQLite takes as hints: REAL for DOUBLE.
            assert [d for d in differences if not isinstance(d, list)] == []
        database.close()
    sql = sqlite3.connect(path)
    assert sql.execute("PRAGMA user_version").fetchone() == (2,)  # the first LLM OS keeps off
    sql.close()


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.db"
    upgrade = migrate.upgrade

    def fails(sql: object) -> None:
        upgrade(sql)  # type: ignore[arg-type]
        raise KeyError

    monkeypatch.setattr(migrate, "upgrade", fails)
    with pytest.raises(KeyError):
        Database(path)
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    raw.close()
    monkeypatch.undo()
    Database(path).close()


def test_several_processes_may_start_at_once(postgres_server: Postgres | None) -> None:
    if postgres_server is None:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    made: list[Database] = []
    with postgres_server.database() as url:
        threads = [threading.Thread(target=lambda: made.append(Database(url))) for _ in "1234"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 4
        for database in made:
            database.close()


def test_a_newer_schema_is_left_alone(database: Database) -> None:
    with database.write() as sql:
        sql.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    with pytest.raises(FailedPrecondition) as caught:
        Database(database.path or database.url.render_as_string(hide_password=False))
    assert caught.value.reason == "NEWER_STATE"


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "postgresql://", "oracle://h/x", "sqlite://", "://"]
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Database(url)
    assert caught.value.reason == "BAD_CONFIG" and len(caught.value.message) < 200


def test_a_server_that_is_away_and_comes_back(postgres_server: Postgres | None) -> None:
    if postgres_server is None:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    with postgres_server.database() as url:
        database = Database(url)
        add(database, "kept")
        with pytest.raises(Unavailable) as caught, database.write() as sql:
            sql.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert caught.value.reason == "DATABASE_UNREACHABLE"
        assert names(database) == ["kept"]  # by a new connection
        database.close()
    with pytest.raises(Unavailable) as caught:
        Database(url.replace("llmos@", "llmos:secret@"))  # there is no such database any more
    assert caught.value.reason == "DATABASE_UNREACHABLE" and "secret" not in caught.value.message
    with pytest.raises(Unavailable):
        Database("postgresql://llmos@/x?host=/nonexistent")
