"""llmos-storage: models, as immutable versions made of content-addressed files."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import uvloop

from llmos.api.storage.v1 import data_pb2_grpc, registry_pb2_grpc
from llmos.lib import log
from llmos.lib.config import load_or_exit
from llmos.lib.errors import InvalidArgument, LLMOSError
from llmos.lib.extras import needed
from llmos.lib.publish import Publisher
from llmos.lib.serve import Server
from llmos.servers.storage import extras
from llmos.servers.storage.config import StorageConfig

with needed("storage"):
    from llmos.servers.storage.binding import Bound
    from llmos.servers.storage.crypt.keys import KeyRing
    from llmos.servers.storage.data.local import LocalDatasets
    from llmos.servers.storage.data.service import DatasetsService
    from llmos.servers.storage.direct import address_of, direct_reads
    from llmos.servers.storage.local import LocalStorage
    from llmos.servers.storage.places.serving import exchanging
    from llmos.servers.storage.registry.local import LocalAliases, LocalLeases
    from llmos.servers.storage.service import BlobsService, RegistryService
    from llmos.servers.storage.serving import add_registry, add_state, kept
    from llmos.servers.storage.signing.base import read_key
    from llmos.servers.storage.signing.guard import Guard
    from llmos.servers.storage.state.local import LocalState
    from llmos.servers.storage.upkeep.local import LocalMaintenance
    from llmos.servers.storage.upkeep.serving import add_upkeep, again, scrubbed


async def serve(config: StorageConfig) -> bool:
    """Serve until SIGTERM, or a restore: then True. Raises LLMOSError when it cannot start."""
    extras.check()
    if config.imports < 1:
        raise InvalidArgument("BAD_CONFIG", "[storage] imports must be at least 1.")
    if not config.stall_s >= 0:
        raise InvalidArgument("BAD_CONFIG", "[storage] stall_s must not be negative.")
    for name in ("upload_ttl_s", "cache_bytes", "scrub_bytes_per_s", "scrub_period_s"):
        if not getattr(config, name) >= 0:
            raise InvalidArgument("BAD_CONFIG", f"[storage] {name} must not be negative.")
    admins = {name.strip() for name in config.admins.split(",")}
    config.run_dir()
    storage = await asyncio.to_thread(
        LocalStorage,
        config.state_dir / "storage",
        database=config.database,
        imports=config.imports,
        blob_grace_s=config.blob_grace_s,
        keys=KeyRing.load(Path(config.encryption_key)) if config.encryption_key else None,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
        cache_bytes=config.cache_bytes,
        upload_ttl_s=config.upload_ttl_s,
    )
    with contextlib.closing(storage):
        guard = Guard(storage.database, read_key(config.require_signature))
        server = Server("storage", config)
        publisher = Publisher(server.port.channel if server.port is not None else None)
        stall_ms, direct = int(config.stall_s * 1000), address_of(config)
        server.add(
            registry_pb2_grpc.add_RegistryServicer_to_server,
            Bound(RegistryService(storage, publisher.tell, guard.admit, direct)),
            stall_ms=stall_ms,
        )
        server.add(
            registry_pb2_grpc.add_BlobsServicer_to_server,
            Bound(BlobsService(storage)),
            stall_ms=stall_ms,
        )
        aliases = LocalAliases(storage.database)
        leases = LocalLeases(storage.database)
        await asyncio.to_thread(leases.begin)
        add_registry(server, aliases, leases, publisher.tell)
        state = await asyncio.to_thread(
            LocalState,
            storage.database,
            history_revisions=config.history_revisions,
            history_bytes=config.history_bytes,
        )
        add_state(server, state, storage.database, admins)
        datasets = LocalDatasets(
            storage.blobs,
            storage.database,
            imports=config.imports,
            blob_grace_s=config.blob_grace_s,
        )
        server.add(
            data_pb2_grpc.add_DatasetsServicer_to_server,
            Bound(DatasetsService(datasets, publisher.tell)),
            stall_ms=stall_ms,
        )
        maintenance = LocalMaintenance(
            config.state_dir / "storage",
            storage.blobs,
            storage.uploads,
            grace_s=config.blob_grace_s,
            tell=publisher.tell,
            collect_more=lambda: storage.incoming.collect(config.blob_grace_s),
        )
        add_upkeep(server, storage.uploads, maintenance, stall_ms, direct, admins)
        rate, period_s = config.scrub_bytes_per_s, config.scrub_period_s
        cleaning = asyncio.create_task(storage.keep_clean())
        try:
            with exchanging(server, storage, stall_ms, publisher.tell):
                async with (
                    kept(state) as begin,
                    scrubbed(server, maintenance, rate, period_s),
                    direct_reads(storage.blobs, direct),
                ):
                    await server.run(ready=begin)
        finally:
            cleaning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await cleaning
            datasets.close()
    return maintenance.restored.is_set()


def main() -> None:
    """Run the process."""
    config = load_or_exit(StorageConfig, "storage", __doc__ or "")
    log.setup("storage", config.log_level)
    try:
        if uvloop.run(serve(config)):
            again()
    except LLMOSError as exc:
        print(f"llmos-storage: {exc}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
