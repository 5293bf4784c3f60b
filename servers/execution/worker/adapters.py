"""Finds the adapters that requests name, in storage, and gives them to the engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import Engine
from llmos.servers.execution.manager.storage import StorageCatalog

_PATIENCE_S = 10.0  # for a storage server that is away


class StoredAdapters:
    """One worker's way to adapters. channel: the kernel's, None without one."""

    def __init__(self, engine: Engine, channel: grpc.aio.Channel | None, state_dir: Path) -> None:
        """Fetch into the folder that the manager fetches models into."""
        self._engine = engine
        cache = state_dir / "execution" / "files"
        self._catalog = None if channel is None else StorageCatalog(channel, cache, _PATIENCE_S)
        self._coming: dict[str, asyncio.Lock] = {}

    async def ready(self, name: str) -> str:
        """Have the engine take an adapter, if it has it not; return its `name@version`.

        Raises as Execution/Generate.
        """
        if self._catalog is None:
            raise FailedPrecondition(
                "BAD_ADAPTER", "Adapters are found through the kernel, which is not here."
            )
        if self._engine.adapted(name):
            return name
        version = await self._catalog.resolve(name)
        ref = f"{version.name}@{version.version}"
        # Several calls may want the same one at first: it is read once.
        async with self._coming.setdefault(ref, asyncio.Lock()):
            if not self._engine.adapted(ref):
                await self._engine.adapt(ref, await self._catalog.fetch(version))
        return ref
