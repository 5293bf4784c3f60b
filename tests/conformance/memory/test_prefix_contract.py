"""The contract of Prefixes: in process, over its own address, through a kernel, over ports."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from llmos.api.memory.v1 import prefix_pb2 as pb
from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.api.memory.v1.buffers_pb2_grpc import add_BuffersServicer_to_server
from llmos.api.memory.v1.prefix_pb2_grpc import PrefixesStub, add_PrefixesServicer_to_server
from llmos.kernel.transport.server import KernelServer
from llmos.lib.buffers import BufferClient
from llmos.lib.config import ServerConfig, socket_address
from llmos.lib.errors import InvalidArgument, LLMOSError, NotFound, PermissionDenied
from llmos.lib.port import Port
from llmos.lib.rpc import from_rpc_error
from llmos.lib.serve import Server
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.prefix.service import PrefixesService
from llmos.servers.memory.prefix.store import PrefixStore
from llmos.servers.memory.service import BuffersService
from llmos.servers.memory.shm import Directory

BLOCK = 64 << 10
MIB = 1 << 20
SPACE = pb.Space(model="m", layout="l")
KEYS = [hashlib.blake2b(bytes([i]), digest_size=16).digest() for i in range(12)]


class Context:
    """What a servicer sees of a call in this process."""

    def __init__(self, tenant: str = "local") -> None:
        self.llmos_open = type("Open", (), {"tenant": tenant, "caller": "me", "caller_host": ""})


class Local:
    """The service without any transport."""

    def __init__(self, service: PrefixesService, tenant: str = "local") -> None:
        self._service, self._context = service, Context(tenant)

    async def call(self, name: str, request: Any) -> Any:
        return await getattr(self._service, name)(request, self._context)


class Remote:
    """The service over a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = PrefixesStub(channel)

    async def call(self, name: str, request: Any) -> Any:
        try:
            return await getattr(self._stub, name)(request, timeout=10)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc


@dataclass
class Place:
    prefixes: Local | Remote
    buffers: BufferClient

    async def put(self, keys: list[bytes], **about: Any) -> int:
        mapping = await self.buffers.create(BLOCK * len(keys))
        for i, key in enumerate(keys):
            mapping.view[i * BLOCK : (i + 1) * BLOCK] = key * (BLOCK // 16)
        await self.buffers.seal(mapping)
        request = pb.PutBlocksRequest(
            space=SPACE, keys=keys, handle=mapping.handle, block_bytes=BLOCK, **about
        )
        try:
            return int((await self.prefixes.call("PutBlocks", request)).stored)
        finally:
            await self.buffers.free(mapping)

    async def find(self, keys: list[bytes], held: int = 0) -> int:
        request = pb.GetBlocksRequest(space=SPACE, keys=keys, held=held)
        answer = await self.prefixes.call("GetBlocks", request)
        assert answer.wanted
        at = held
        for run in answer.runs:
            mapping = await self.buffers.open(run.handle)
            for i in range(run.blocks):
                start = run.offset + i * run.block_bytes
                assert mapping.view[start : start + 16] == keys[at]
                at += 1
            await self.buffers.free(mapping)
        assert at - held == answer.blocks
        return at - held


@pytest.fixture(params=["in process", "grpc", "kernel", "ports"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        buffers = BufferStore(Directory(tmp_path / "shm", tmp_path), budget=8 * MIB)
        stack.callback(buffers.close)
        store = PrefixStore(buffers, tmp_path / "p", ram_budget=8 * BLOCK, disk_budget=8 * MIB)
        stack.push_async_callback(store.close)
        address = kernel = "none"
        if request.param in ("kernel", "ports"):
            kernel = socket_address(tmp_path, "kernel")
            system = KernelServer()
            await system.start([kernel])
            stack.push_async_callback(system.stop, 0)
        server = Server("memory", ServerConfig(state_dir=tmp_path, kernel=kernel))
        server.add(add_BuffersServicer_to_server, BuffersService(buffers))
        server.add(add_PrefixesServicer_to_server, PrefixesService(store))
        await server.start()
        stack.push_async_callback(server.stop, 0)
        address = server.address if kernel == "none" else kernel
        channel: grpc.aio.Channel
        if request.param == "ports":
            port = Port(address, "client")
            await port.start()
            stack.push_async_callback(port.stop, 1)
            channel = port.channel
        else:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        local = request.param == "in process"
        client = await stack.enter_async_context(BufferClient(channel))
        yield Place(Local(PrefixesService(store)) if local else Remote(channel), client)


async def test_blocks_are_put_found_and_paged(place: Place) -> None:
    assert await place.find(KEYS) == 0
    for i in (0, 4, 8):
        assert await place.put(KEYS[i : i + 4], depth=i, cost_s=0.5) == 4
    assert await place.put(KEYS[8:], depth=8) == 0
    assert await place.find(KEYS[:8]) == 8
    assert await place.find(KEYS[:6], held=5) == 1
    spaces = await place.prefixes.call("ListSpaces", pb.ListSpacesRequest())
    (info,) = spaces.spaces
    assert info.space == pb.Space(model="m", layout="l", tenant="local")
    assert info.ram_blocks + info.disk_blocks == 12 and info.block_bytes == BLOCK
    assert info.hits >= 9 and spaces.evictions >= 1
    assert 0 < spaces.ram_bytes <= spaces.ram_budget and spaces.disk_bytes > 0


async def test_dropped_blocks_are_gone(place: Place) -> None:
    await place.put(KEYS[:4])
    request = pb.DropBlocksRequest(model="m")
    assert (await place.prefixes.call("DropBlocks", request)).blocks == 4
    assert await place.find(KEYS[:4]) == 0
    assert (await place.prefixes.call("DropBlocks", request)).blocks == 0


async def test_bad_input_is_refused(place: Place) -> None:
    async def refused(error: type[LLMOSError], reason: str, name: str, request: Any) -> None:
        with pytest.raises(error) as caught:
            await place.prefixes.call(name, request)
        assert caught.value.reason == reason

    get = pb.GetBlocksRequest
    await refused(InvalidArgument, "BAD_SPACE", "GetBlocks", get(keys=KEYS))
    await refused(InvalidArgument, "BAD_KEYS", "GetBlocks", get(space=SPACE))
    await refused(InvalidArgument, "BAD_KEYS", "GetBlocks", get(space=SPACE, keys=[b"", b""]))
    await refused(InvalidArgument, "BAD_KEYS", "GetBlocks", get(space=SPACE, keys=KEYS, held=99))
    handle = BufferHandle(id="0" * 32, token=b"1" * 16)
    put = pb.PutBlocksRequest(space=SPACE, keys=KEYS, handle=handle, block_bytes=BLOCK)
    await refused(NotFound, "NO_SUCH_BUFFER", "PutBlocks", put)
    odd = pb.PutBlocksRequest(space=SPACE, keys=KEYS * 2, handle=handle, block_bytes=BLOCK)
    await refused(InvalidArgument, "BAD_KEYS", "PutBlocks", odd)


async def test_tenants_reach_their_own_only(tmp_path: Path) -> None:
    buffers = BufferStore(Directory(tmp_path / "shm", tmp_path), budget=8 * MIB)
    store = PrefixStore(buffers, tmp_path / "p", ram_budget=8 * BLOCK)
    system, tenant = (Local(PrefixesService(store), who) for who in ("local", "t1"))
    buffer = await buffers.create("grpc:w", BLOCK)
    token = bytes.fromhex(buffer.record.token)
    buffers.seal("grpc:w", buffer.record.id, token)
    space = pb.Space(model="m", layout="l", tenant="t1")
    handle = BufferHandle(id=buffer.record.id, token=token)
    put = pb.PutBlocksRequest(space=space, keys=KEYS[:1], handle=handle, block_bytes=BLOCK)
    assert (await system.call("PutBlocks", put)).stored == 1
    mine = pb.GetBlocksRequest(space=SPACE, keys=KEYS)
    assert (await tenant.call("GetBlocks", mine)).blocks == 1
    assert (await system.call("GetBlocks", mine)).blocks == 0
    assert (await system.call("GetBlocks", pb.GetBlocksRequest(space=space, keys=KEYS))).blocks == 1
    space.tenant = "t2"
    requests = {
        "GetBlocks": pb.GetBlocksRequest(space=space, keys=KEYS),
        "PutBlocks": pb.PutBlocksRequest(space=space, keys=KEYS),
        "DropBlocks": pb.DropBlocksRequest(tenant="t2"),
    }
    for name, request in requests.items():
        with pytest.raises(PermissionDenied) as caught:
            await tenant.call(name, request)
        assert caught.value.reason == "NOT_YOUR_TENANT"
    listed = await Local(PrefixesService(store), "t2").call("ListSpaces", pb.ListSpacesRequest())
    assert not listed.spaces
    assert (await tenant.call("DropBlocks", pb.DropBlocksRequest())).blocks == 1
    await store.close()
    buffers.close()
