"""Storage in process, over gRPC or through a kernel, on SQLite or PostgreSQL, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from remote_registry import RemoteAliases, RemoteLeases
from remote_storage import RemoteStorage
from remote_upkeep import RemoteMaintenance, RemoteUploads
from ways import reach

from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.serve import Server
from llmos.servers.storage.base import Storage
from llmos.servers.storage.binding import Bound
from llmos.servers.storage.blobs.uploads_base import Uploads
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.registry.base import Aliases, VersionLeases
from llmos.servers.storage.registry.local import LocalAliases, LocalLeases
from llmos.servers.storage.service import BlobsService, RegistryService
from llmos.servers.storage.serving import add_registry
from llmos.servers.storage.upkeep.base import Maintenance
from llmos.servers.storage.upkeep.local import LocalMaintenance
from llmos.servers.storage.upkeep.serving import add_upkeep

TWO_WAYS = ["in process, SQLite", "gRPC, SQLite"]
FOUR_WAYS = [*TWO_WAYS, "kernel, SQLite", "in process, PostgreSQL"]
ALL_WAYS = [
    f"{way}, {database}"
    for database in ("SQLite", "PostgreSQL")
    for way in ("in process", "gRPC", "kernel")
]


@dataclass
class World:
    """What a test sees. `local` is the store behind it, `stop` ends all watches."""

    storage: Storage
    aliases: Aliases
    leases: VersionLeases
    local: LocalStorage
    own_aliases: LocalAliases
    uploads: Uploads
    upkeep: Maintenance


@asynccontextmanager
async def storage_world(way: str, state_dir: Path, store: LocalStorage) -> AsyncIterator[World]:
    """Serve `store`; way: `in process`, `gRPC` or `kernel`."""
    async with AsyncExitStack() as stack:
        aliases, leases = LocalAliases(store.database), LocalLeases(store.database)
        upkeep = LocalMaintenance(state_dir / "storage", store.blobs, store.uploads)
        if way == "in process":
            yield World(store, aliases, leases, store, aliases, store.uploads, upkeep)
            return

        def add(server: Server) -> None:
            registry, blobs = Bound(RegistryService(store)), Bound(BlobsService(store))
            server.add(registry_pb2_grpc.add_RegistryServicer_to_server, registry)
            server.add(registry_pb2_grpc.add_BlobsServicer_to_server, blobs)
            add_registry(server, aliases, leases)
            add_upkeep(server, store.uploads, upkeep)

        channel = await reach(stack, way, state_dir, add)
        yield World(
            RemoteStorage(channel),
            RemoteAliases(channel),
            RemoteLeases(channel),
            store,
            aliases,
            RemoteUploads(channel),
            RemoteMaintenance(channel),
        )
