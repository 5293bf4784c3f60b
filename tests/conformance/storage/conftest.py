"""The worlds that the storage suite runs in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from remote_storage import RemoteStorage

from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.serve import Server
from llmos.servers.storage.base import Storage
from llmos.servers.storage.config import StorageConfig
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.service import BlobsService, RegistryService


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:  # short: Unix socket paths are
        yield Path(folder)


@asynccontextmanager
async def serving(state_dir: Path, store: LocalStorage, listen: str = "") -> AsyncIterator[Server]:
    server = Server("storage", StorageConfig(state_dir=state_dir, kernel="none", listen=listen))
    server.add(registry_pb2_grpc.add_RegistryServicer_to_server, RegistryService(store))
    server.add(registry_pb2_grpc.add_BlobsServicer_to_server, BlobsService(store))
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@pytest.fixture
async def store(state_dir: Path) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(state_dir / "storage")
    try:
        yield local
    finally:
        local.close()


@pytest.fixture(params=["in process", "gRPC"])
async def storage(
    request: pytest.FixtureRequest, state_dir: Path, store: LocalStorage
) -> AsyncIterator[Storage]:
    if request.param == "in process":
        yield store
        return
    async with (
        serving(state_dir, store) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield RemoteStorage(channel)
