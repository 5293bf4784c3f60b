"""Files of a storage server on another host: from its direct address, or through the kernel."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from model_files import tiny_safetensors
from storage_checks import take

from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.serve import Server
from llmos.servers.execution.manager.storage import StorageCatalog
from llmos.servers.storage.config import StorageConfig
from llmos.servers.storage.direct import direct_reads
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.service import BlobsService, RegistryService


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@asynccontextmanager
async def distant(
    store: LocalStorage, state_dir: Path, direct: str, *, blobs: bool
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve over TCP, where nobody is told paths; without `blobs` nothing can be read there."""
    config = StorageConfig(state_dir=state_dir, kernel="none", listen=free_address())
    server = Server("storage", config)
    registry = RegistryService(store, direct=direct)
    server.add(registry_pb2_grpc.add_RegistryServicer_to_server, registry)
    if blobs:
        server.add(registry_pb2_grpc.add_BlobsServicer_to_server, BlobsService(store))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(config.listen) as channel:
            yield channel
    finally:
        await server.stop(0)


@pytest.mark.parametrize("way", ["direct", "nobody there", "kernel"])
async def test_files_are_fetched(way: str, tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "storage")
    source = tiny_safetensors(tmp_path / "m.safetensors", rows=30_000)
    await take(store, source, "m")
    address = "" if way == "kernel" else free_address()
    progress: list[int] = []
    try:
        async with (
            direct_reads(store.blobs, address if way == "direct" else ""),
            distant(
                store, tmp_path, "0.0.0.0:7" if address else "", blobs=way != "direct"
            ) as channel,
        ):
            cache = tmp_path / "cache"
            catalog = StorageCatalog(channel, cache, 1.0, lambda: progress.append(1))
            version = await catalog.resolve("m")
            assert not version.files[0].path
            assert version.direct.endswith(":7") if address else not version.direct
            (path,) = (await catalog.fetch(replace(version, direct=address))).values()
            assert path.read_bytes() == source.read_bytes() and path.parent == cache
            assert list(cache.iterdir()) == [path] and len(progress) >= 3
    finally:
        store.close()
