"""What a job asks of storage, near (by path) and far (by stream)."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from tiny_text import tiny_bert

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.errors import NotFound
from llmos.lib.rpc import ErrorInterceptor
from llmos.servers.optimizer.job.storage import Storage
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.service import BlobsService, RegistryService


@pytest.fixture(params=["near", "far"])
async def channel(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[grpc.aio.Channel]:
    local = LocalStorage(tmp_path / "storage")
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    registry_pb2_grpc.add_RegistryServicer_to_server(RegistryService(local), server)
    registry_pb2_grpc.add_BlobsServicer_to_server(BlobsService(local), server)
    if request.param == "near":
        address = f"unix:{tmp_path}/grpc.sock"
        server.add_insecure_port(address)
    else:
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel
    await server.stop(0)
    local.close()


async def test_files_there_and_back(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    registry: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(channel)
    async for _ in registry.ImportModel(pb.ImportModelRequest(source=str(folder), name="b")):
        pass
    storage = Storage(channel)
    version = await storage.version("b@1")
    paths = await storage.lay_out(version, tmp_path / "out")
    assert {"model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= set(paths)
    for file in version.files:
        assert hashlib.sha256(paths[file.name].read_bytes()).hexdigest() == file.sha256
        assert paths[file.name].is_symlink() == bool(file.path)
    assert await storage.lay_out(version, tmp_path / "out") == paths


async def test_a_version_is_registered_once(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    storage = Storage(channel)
    names = ("model.safetensors", "config.json", "tokenizer.json")
    files = [pb.File(name=n, sha256=await storage.write(folder / n)) for n in names]
    wanted = pb.ModelVersion(name="b", files=files)
    assert await storage.register(wanted, "job/step") == "b@1"
    assert await storage.register(wanted, "job/step") == "b@1"
    with pytest.raises(NotFound) as caught:
        await storage.version("b@2")
    assert caught.value.reason == "NO_SUCH_VERSION"
