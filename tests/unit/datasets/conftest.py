"""Data sets in process on SQLite, for tests of what importing does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest_asyncio
from dataset_world import DataWorld, data_world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[DataWorld]:
    """Shared by a module: its tests take names of their own."""
    with TemporaryDirectory(prefix="llmos-") as folder:
        async with data_world("in process", Path(folder)) as made:
            yield made
