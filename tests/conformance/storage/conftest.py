"""The worlds that the storage suite runs in.

A module runs in those that its `WAYS` lists, without one in process and over gRPC on SQLite.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from storage_world import TWO_WAYS, World, storage_world

from llmos.servers.storage.base import Storage
from llmos.servers.storage.local import LocalStorage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        ways = getattr(metafunc.module, "WAYS", TWO_WAYS)
        metafunc.parametrize("way", ways, scope="function")


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:  # short: Unix socket paths are
        yield Path(folder)


@pytest.fixture
def store(request: pytest.FixtureRequest, way: str, state_dir: Path) -> Iterator[LocalStorage]:
    url = ""
    if "PostgreSQL" in way:
        url = request.getfixturevalue("postgres_url")
    else:  # as a start would make it, but at once
        (state_dir / "storage").mkdir()
        shutil.copy(request.getfixturevalue("sqlite_template"), state_dir / "storage")
    local = LocalStorage(state_dir / "storage", database=url)
    try:
        yield local
    finally:
        local.close()


@pytest.fixture
async def world(way: str, state_dir: Path, store: LocalStorage) -> AsyncIterator[World]:
    async with storage_world(way.partition(",")[0], state_dir, store) as made:
        yield made


@pytest.fixture
async def storage(world: World) -> Storage:
    return world.storage
