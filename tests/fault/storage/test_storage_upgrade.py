"""An old database, or none, is brought up to date, and the process dies at every step."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event, inspect, text
from storage_checks import content

from llmos.lib.failpoint import VARIABLE
from llmos.servers.storage.db import migrate
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.upkeep.base import Finding
from llmos.servers.storage.upkeep.local import LocalMaintenance

FIRST = "0001_registry"
MODELS, EACH = 6, 3
LATER = len([*(Path(migrate.__file__).parent / "migrations/versions").glob("[0-9]*.py")]) - 1
STEPS = [
    ("migration.begun", 1),
    *(("migration.step", number) for number in range(1, LATER + 1)),
    ("migration.run", 1),
    ("commit.before", 1),
    ("commit.after", 1),  # the last: what it leaves is up to date
]
# argv: a database. For every line opens it in a process of its own, and says how that ended.
OPENER = """
import os, sys
from llmos.servers.storage.db import migrate
from llmos.servers.storage.db.engine import Database
import alembic.command
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        Database(sys.argv[1]).close()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def old_database(url: str, blobs: Path) -> dict[str, list[Any]]:
    """Make a database as the first LLM OS did, with rows in every table; return the rows."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":  # as engine.py: one transaction for all, with its schema

        @event.listens_for(engine, "connect")
        def connected(raw: Any, _: object) -> None:
            raw.isolation_level = None

        @event.listens_for(engine, "begin")
        def began(sql: Connection) -> None:
            sql.exec_driver_sql("BEGIN")

    with engine.begin() as sql:
        config = Config()
        config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
        config.attributes["connection"] = sql
        command.upgrade(config, FIRST)
        for model in range(MODELS):
            name = f"model-{model:02}"
            sql.execute(text("INSERT INTO models VALUES (:n, :l)"), {"n": name, "l": EACH})
            for version in range(1, EACH + 1):
                data = f"{name}@{version}".encode() * 100
                digest = hashlib.sha256(data).hexdigest()
                file = blobs / digest[:2] / digest
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                file.chmod(0o400)
                given = {"n": name, "v": version, "d": digest, "s": len(data)}
                about = "1, 1, 'llama', 7, 'F32', 9, 'MIT', '', '', '', 2.5"
                for row in (
                    "blobs VALUES (:d, :s, 1.5)",
                    f"versions VALUES (:n, :v, :d, {about})",
                    "files VALUES (:n, :v, 0, 'model.gguf', :d)",
                    "parents VALUES (:n, :v, 0, 'base@1')",
                    "metrics VALUES (:n, :v, 0, 'loss', 0.5, '')",
                    "requests VALUES (:d, :n, :v)",
                ):
                    sql.execute(text(f"INSERT INTO {row}"), given)
    engine.dispose()
    return rows(url)


def rows(url: str) -> dict[str, list[Any]]:
    """Return the columns of the first schema, and at which revision the database is."""
    engine = create_engine(url)
    found: dict[str, list[Any]] = {}
    with engine.connect() as sql:
        for table, columns in (
            ("alembic_version", "version_num"),
            ("blobs", "sha256, size, touched"),
            ("models", "name, last_version"),
            ("versions", "name, version, digest, license, parameters, created"),
            ("files", "name, version, position, file, sha256"),
            ("parents", "name, version, position, parent"),
            ("metrics", "name, version, metric, value"),
            ("requests", "request_id, name, version"),
        ):
            read = sql.execute(text(f"SELECT {columns} FROM {table}"))
            found[table] = sorted(tuple(row) for row in read)
    engine.dispose()
    return found


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a database of the test's own is, or will be."""
    if request.param == "SQLite":
        (tmp_path / "storage").mkdir()
        yield f"sqlite:///{tmp_path}/storage/registry.db"
        return
    server = request.getfixturevalue("postgres_server")
    if server is None:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    with server.database() as made:
        yield made.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def opener(url: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    points = tmp_path / "points"
    points.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", OPENER, url],
        env=os.environ | {VARIABLE: str(points)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # which closes its input: that ends it
        yield process


async def test_killed_at_every_step_of_an_upgrade(
    url: str, opener: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "storage"
    before = old_database(url, folder / "blobs")
    assert before.pop("alembic_version") == [(FIRST,)]
    assert len(before["versions"]) == MODELS * EACH
    assert opener.stdin is not None and opener.stdout is not None
    for name, count in STEPS:
        (tmp_path / "points" / name).write_text(str(count))
        print("open", file=opener.stdin, flush=True)
        assert opener.stdout.readline().strip() == str(-signal.SIGKILL), (name, count)
        after = rows(url)
        assert (after.pop("alembic_version") == [(FIRST,)]) == (name != "commit.after")
        assert after == before, (name, count)
    store = LocalStorage(folder, database=url, blob_grace_s=1e9)
    try:
        upkeep = LocalMaintenance(folder, store.blobs, store.uploads)
        assert [s async for s in upkeep.fsck(False, False) if isinstance(s, Finding)] == []
        page = await store.list_versions("", 1000, "")
        assert len(page.versions) == MODELS * EACH
        for version in page.versions[:3]:
            (file,) = version.files
            assert await content(store, file.sha256) == version.ref.encode() * 100
    finally:
        store.close()


def test_killed_at_every_step_of_the_first_start(
    url: str, opener: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The schema is made in one transaction: it is there or it is not."""
    assert opener.stdin is not None and opener.stdout is not None
    for name, count in [("migration.step", LATER + 1), *STEPS]:
        (tmp_path / "points" / name).write_text(str(count))
        print("open", file=opener.stdin, flush=True)
        assert opener.stdout.readline().strip() == str(-signal.SIGKILL), (name, count)
        engine = create_engine(url)
        there = inspect(engine).get_table_names()
        engine.dispose()
        assert bool(there) == (name == "commit.after"), (name, count)
    Database(url.replace("+psycopg", "")).close()
