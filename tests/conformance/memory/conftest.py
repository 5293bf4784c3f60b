"""The worlds in which the memory server's contract is tested.

In process; over its own gRPC address; through a kernel by plain stubs; through a kernel by ports.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest

from llmos.api.memory.v1 import buffers_pb2 as pb
from llmos.api.memory.v1 import residency_pb2 as rpb
from llmos.api.memory.v1.buffers_pb2_grpc import BuffersStub, add_BuffersServicer_to_server
from llmos.api.memory.v1.residency_pb2_grpc import ResidencyStub, add_ResidencyServicer_to_server
from llmos.kernel.transport.server import KernelServer
from llmos.lib.config import ServerConfig, socket_address
from llmos.lib.port import Port
from llmos.lib.rpc import from_rpc_error
from llmos.lib.serve import Server
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.devices import Device
from llmos.servers.memory.residency import Ledger, Report, Wish
from llmos.servers.memory.service import BuffersService, ResidencyService
from llmos.servers.memory.shm import Directory

MIB = 1 << 20


@dataclass(frozen=True)
class Key:
    id: str
    token: bytes
    path: str


@dataclass(frozen=True)
class Info:
    id: str
    size: int
    owner: str
    leases: int
    sealed: bool
    label: str


class Buffers(Protocol):
    """The Buffers service as one client sees it; errors are LLMOSErrors."""

    async def create(
        self, size: int, *, label: str = "", lease_s: int = 0, request: str = ""
    ) -> Key: ...
    async def open(self, key: Key, *, lease_s: int = 0) -> tuple[str, bool]: ...
    async def seal(self, key: Key) -> None: ...
    async def renew(self, *ids: str) -> list[str]: ...
    async def free(self, key: Key) -> None: ...
    async def read(self, key: Key, offset: int = 0, length: int = 0) -> list[bytes]: ...
    async def list(self) -> list[Info]: ...


class Residency(Protocol):
    """The Residency service. `grants`: (id, device, bytes, used, busy, pinned).

    `changes`: (kind, id, device, bytes, wanted by), newest first.
    """

    async def acquire(self, id: str, device: str, size: int, pinned: bool = False) -> list[str]: ...
    async def release(self, id: str) -> None: ...
    async def report(self, *reports: Report) -> None: ...
    async def devices(self) -> list[tuple[str, int, int, int]]: ...
    async def grants(self) -> list[tuple[str, str, int, int, bool, bool]]: ...
    async def changes(self, limit: int = 0) -> list[tuple[int, str, str, int, str]]: ...


class LocalBuffers:
    def __init__(self, store: BufferStore, who: str) -> None:
        self._store = store
        self._who = who

    async def create(
        self, size: int, *, label: str = "", lease_s: int = 0, request: str = ""
    ) -> Key:
        buffer = await self._store.create(self._who, size, label, lease_s, request)
        token = bytes.fromhex(buffer.record.token)
        return Key(buffer.record.id, token, self._store.path(buffer))

    async def open(self, key: Key, *, lease_s: int = 0) -> tuple[str, bool]:
        buffer = self._store.open(self._who, key.id, key.token, lease_s)
        return self._store.path(buffer), buffer.record.sealed

    async def seal(self, key: Key) -> None:
        self._store.seal(self._who, key.id, key.token)

    async def renew(self, *ids: str) -> list[str]:
        return self._store.renew(self._who, [*ids])

    async def free(self, key: Key) -> None:
        self._store.free(self._who, key.id, key.token)

    async def read(self, key: Key, offset: int = 0, length: int = 0) -> list[bytes]:
        return [*self._store.read(key.id, key.token, offset, length)]

    async def list(self) -> list[Info]:
        return [
            Info(r.id, r.size, r.owner, len(b.deadlines), r.sealed, r.label)
            for b in self._store.buffers()
            for r in [b.record]
        ]


class RemoteBuffers:
    def __init__(self, channel: grpc.aio.Channel, who: str) -> None:
        self._stub: Any = BuffersStub(channel)
        self._metadata = (("llmos-client", who),)

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=10)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc

    async def create(
        self, size: int, *, label: str = "", lease_s: int = 0, request: str = ""
    ) -> Key:
        message = pb.CreateBufferRequest(
            size=size, label=label, lease_s=lease_s, request_id=request
        )
        made = await self._call(self._stub.CreateBuffer, message)
        assert made.handle.size == size and made.handle.host
        return Key(made.handle.id, made.handle.token, made.path)

    async def open(self, key: Key, *, lease_s: int = 0) -> tuple[str, bool]:
        message = pb.OpenBufferRequest(handle=_handle(key), lease_s=lease_s)
        opened = await self._call(self._stub.OpenBuffer, message)
        return opened.path, opened.sealed

    async def seal(self, key: Key) -> None:
        await self._call(self._stub.SealBuffer, pb.SealBufferRequest(handle=_handle(key)))

    async def renew(self, *ids: str) -> list[str]:
        answer = await self._call(self._stub.RenewLeases, pb.RenewLeasesRequest(ids=ids))
        return [*answer.missing]

    async def free(self, key: Key) -> None:
        await self._call(self._stub.FreeBuffer, pb.FreeBufferRequest(handle=_handle(key)))

    async def read(self, key: Key, offset: int = 0, length: int = 0) -> list[bytes]:
        message = pb.ReadBufferRequest(handle=_handle(key), offset=offset, length=length)
        try:
            return [r.data async for r in self._stub.ReadBuffer(message, timeout=10)]
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc

    async def list(self) -> list[Info]:
        answer = await self._call(self._stub.ListBuffers, pb.ListBuffersRequest())
        return [Info(b.id, b.size, b.owner, b.leases, b.sealed, b.label) for b in answer.buffers]


def _handle(key: Key) -> pb.BufferHandle:
    return pb.BufferHandle(id=key.id, token=key.token)


class LocalResidency:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def acquire(self, id: str, device: str, size: int, pinned: bool = False) -> list[str]:
        return self._ledger.acquire(id, device, size, Wish(pinned=pinned))

    async def release(self, id: str) -> None:
        self._ledger.release(id)

    async def report(self, *reports: Report) -> None:
        self._ledger.report(reports)

    async def devices(self) -> list[tuple[str, int, int, int]]:
        ledger = self._ledger
        return [
            (d.name, d.total, d.budget, ledger.granted(d.name)) for d in ledger.devices.values()
        ]

    async def grants(self) -> list[tuple[str, str, int, int, bool, bool]]:
        return [
            (g.id, g.device, g.bytes, g.used_bytes, g.busy, g.pinned) for g in self._ledger.grants()
        ]

    async def changes(self, limit: int = 0) -> list[tuple[int, str, str, int, str]]:
        return [
            (int(c.kind), c.id, c.device, c.bytes, c.wanted_by)
            for c in self._ledger.changes.newest(limit)
        ]


class RemoteResidency:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = ResidencyStub(channel)

    async def acquire(self, id: str, device: str, size: int, pinned: bool = False) -> list[str]:
        request = rpb.AcquireGrantRequest(id=id, device=device, bytes=size, pinned=pinned)
        try:
            answer = await self._stub.AcquireGrant(request, timeout=10)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc
        assert answer.granted is not bool(answer.evict)
        return [*answer.evict]

    async def release(self, id: str) -> None:
        await self._stub.ReleaseGrant(rpb.ReleaseGrantRequest(id=id), timeout=10)

    async def report(self, *reports: Report) -> None:
        grants = [rpb.Grant(**vars(r)) for r in reports]
        await self._stub.ReportGrants(rpb.ReportGrantsRequest(grants=grants), timeout=10)

    async def devices(self) -> list[tuple[str, int, int, int]]:
        answer = await self._stub.ListDevices(rpb.ListDevicesRequest(), timeout=10)
        assert all(d.free_bytes > 0 for d in answer.devices)
        return [(d.name, d.total_bytes, d.budget_bytes, d.granted_bytes) for d in answer.devices]

    async def grants(self) -> list[tuple[str, str, int, int, bool, bool]]:
        answer = await self._stub.ListGrants(rpb.ListGrantsRequest(), timeout=10)
        return [(g.id, g.device, g.bytes, g.used_bytes, g.busy, g.pinned) for g in answer.grants]

    async def changes(self, limit: int = 0) -> list[tuple[int, str, str, int, str]]:
        request = rpb.ListChangesRequest(limit=limit)
        answer = await self._stub.ListChanges(request, timeout=10)
        assert all(c.unix_s > 1e9 for c in answer.changes)
        return [(c.kind, c.id, c.device, c.bytes, c.wanted_by) for c in answer.changes]


@dataclass
class World:
    """One memory server: its clients are told apart by name."""

    store: BufferStore
    ledger: Ledger
    channel: grpc.aio.Channel | None = None
    ports: list[Port] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def buffers(self, who: str = "anybody") -> Buffers:
        if self.channel is None:
            return LocalBuffers(self.store, f"grpc:{who}")
        if not self.ports:
            return RemoteBuffers(self.channel, who)
        if who not in self.names:
            self.names.append(who)
        return RemoteBuffers(self.ports[self.names.index(who)].channel, who)

    def residency(self) -> Residency:
        return (
            LocalResidency(self.ledger) if self.channel is None else RemoteResidency(self.channel)
        )


@pytest.fixture(params=["in process", "grpc", "kernel", "ports"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    store = BufferStore(Directory(tmp_path / "shm", tmp_path), budget=8 * MIB, max_size=4 * MIB)
    devices = [Device(name, "", 200, 100, lambda: 1 << 40) for name in ("cpu", "cuda:0")]
    world = World(store, Ledger(devices))
    if request.param == "in process":
        yield world
        store.close()
        return
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        if request.param == "grpc":
            address = await stack.enter_async_context(serving(world, tmp_path))
        else:
            kernel, address = KernelServer(), socket_address(tmp_path, "kernel")
            await kernel.start([address])
            stack.push_async_callback(kernel.stop, 0)
            await stack.enter_async_context(serving(world, tmp_path, kernel=address))
        channel = grpc.aio.insecure_channel(address)
        world.channel = await stack.enter_async_context(channel)
        if request.param == "ports":
            for i in range(4):
                world.ports.append(Port(address, f"client{i}"))
                await world.ports[i].start()
                stack.push_async_callback(world.ports[i].stop, 1)
        yield world


@asynccontextmanager
async def serving(
    world: World, state_dir: Path, listen: str = "", kernel: str = "none"
) -> AsyncIterator[str]:
    """Serve a world's store and ledger; yields the address."""
    config = ServerConfig(state_dir=state_dir, kernel=kernel, listen=listen)
    server = Server("memory", config)
    server.add(add_BuffersServicer_to_server, BuffersService(world.store))
    server.add(add_ResidencyServicer_to_server, ResidencyService(world.ledger))
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop(0)


@pytest.fixture
async def near_and_far(
    tmp_path: Path,
) -> AsyncIterator[tuple[World, grpc.aio.Channel, grpc.aio.Channel]]:
    """A world, a channel to it on its host, and one that looks like another host's."""
    world = World(BufferStore(Directory(tmp_path / "shm", tmp_path), budget=64 * MIB), Ledger([]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tcp = f"127.0.0.1:{probe.getsockname()[1]}"
    async with (
        serving(world, tmp_path / "near") as unix,
        serving(world, tmp_path / "far", tcp),
        grpc.aio.insecure_channel(unix) as near,
        grpc.aio.insecure_channel(tcp) as far,
    ):
        yield world, near, far
    world.store.close()
