"""Leases in storage on the versions that workers serve, so that nobody deletes them meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import grpc

from llmos.lib.holds import VersionHolds
from llmos.servers.execution.manager.model import Version
from llmos.servers.execution.manager.storage import StorageCatalog


class HoldingCatalog(StorageCatalog):
    """Holds a version from before its files are fetched; `holds` lets go of what is not loaded."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        cache: Path,
        patience_s: float,
        holds: VersionHolds,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """See StorageCatalog. holds: whose `keep` somebody runs."""
        super().__init__(channel, cache, patience_s, progress)
        self._holds = holds

    async def fetch(self, version: Version) -> Mapping[str, Path]:
        """See seams.Catalog."""
        await self._holds.hold(version.ref)
        return await super().fetch(version)

    async def settle(self) -> None:
        """See seams.Catalog."""
        await self._holds.settle()
