"""The worlds that the suites of small state run in."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from postgres import Postgres
from sqlalchemy import delete, update
from state_world import SmallState, state_world

from llmos.servers.storage.db import tables_audit, tables_quota, tables_state
from llmos.servers.storage.db.engine import Database

WAYS = [
    f"{way}, {database}"
    for database in ("SQLite", "PostgreSQL")
    for way in ("in process", "gRPC", "kernel")
]
TABLES = (
    tables_audit.audit_log,
    tables_quota.charges,
    tables_quota.quotas,
    tables_quota.usage,
    tables_state.documents,
    tables_state.leases,
    tables_state.queue,
    tables_state.requests,
)


@pytest.fixture(scope="session")
def state_database(postgres_server: Postgres | None) -> Iterator[str]:
    """One PostgreSQL database for all tests here, which empty it: making one takes a second."""
    if postgres_server is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with postgres_server.database() as url:
        yield url


def empty(database: Database) -> None:
    with database.write() as sql:
        for table in TABLES:
            sql.execute(delete(table))
        sql.execute(update(tables_state.counter).values(revision=1, compacted=1))


@pytest.fixture(params=WAYS)
async def state(request: pytest.FixtureRequest) -> AsyncIterator[SmallState]:
    async with _world(request) as world:
        yield world


@pytest.fixture(params=["gRPC, SQLite", "kernel, PostgreSQL"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[SmallState]:
    """For what the metadata of calls decides."""
    async with _world(request) as world:
        yield world


@pytest.fixture(params=["in process, SQLite", "in process, PostgreSQL"])
async def inside(request: pytest.FixtureRequest) -> AsyncIterator[SmallState]:
    """For what callers cannot choose: who they are."""
    async with _world(request) as world:
        yield world


@asynccontextmanager
async def _world(request: pytest.FixtureRequest) -> AsyncIterator[SmallState]:
    way, _, database = request.param.partition(", ")
    url = request.getfixturevalue("state_database") if database == "PostgreSQL" else ""
    with TemporaryDirectory(prefix="llmos-") as folder:
        if not url:  # as a start would make it, but at once
            shutil.copy(request.getfixturevalue("sqlite_template"), Path(folder) / "state.db")
        async with state_world(way, Path(folder), url) as world:
            yield world
        if url:
            used = Database(url)
            empty(used)
            used.close()
