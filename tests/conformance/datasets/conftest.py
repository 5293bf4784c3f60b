"""The worlds that the suite of data sets runs in."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dataset_world import DataWorld, data_world

WAYS = [
    f"{way}, {database}"
    for database in ("SQLite", "PostgreSQL")
    for way in ("in process", "gRPC", "kernel")
]


@pytest.fixture(params=WAYS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[DataWorld]:
    way, _, database = request.param.partition(", ")
    url = request.getfixturevalue("postgres_url") if database == "PostgreSQL" else ""
    with TemporaryDirectory(prefix="llmos-") as folder:  # short: Unix socket paths are
        if not url:  # as a start would make it, but at once
            (Path(folder) / "storage").mkdir()
            shutil.copy(request.getfixturevalue("sqlite_template"), Path(folder) / "storage")
        async with data_world(way, Path(folder), url) as made:
            yield made
