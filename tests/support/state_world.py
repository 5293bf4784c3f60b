"""Small state in process, over gRPC or through a kernel, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from remote_state import RemoteDocuments, RemoteLeases, RemoteLocks

from llmos.kernel.transport.server import KernelServer
from llmos.lib.config import ServerConfig, socket_address
from llmos.lib.port import Port
from llmos.lib.serve import Server
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.serving import add_state, kept
from llmos.servers.storage.state.base import Documents, Leases, Locks
from llmos.servers.storage.state.local import LocalState


@dataclass
class SmallState:
    """What a test sees; `channel` is None in process."""

    documents: Documents
    leases: Leases
    locks: Locks
    core: LocalState
    database: Database
    channel: grpc.aio.Channel | None = None


@asynccontextmanager
async def state_world(way: str, state_dir: Path, url: str = "") -> AsyncIterator[SmallState]:
    """Run small state; way: `in process`, `gRPC` or `kernel`; url "" = a SQLite file."""
    async with AsyncExitStack() as stack:
        database = Database(url or state_dir / "state.db")
        stack.callback(database.close)
        core = LocalState(database, beat_s=0.3)
        begin = await stack.enter_async_context(kept(core))
        begin()
        if way == "in process":
            yield SmallState(core.documents, core.leases, core.locks, core, database)
            return
        kernel = "none"
        if way == "kernel":
            kernel_server, kernel = KernelServer(), socket_address(state_dir, "kernel")
            await kernel_server.start([kernel])
            stack.push_async_callback(kernel_server.stop, 0)
        server = Server("storage", ServerConfig(state_dir=state_dir, kernel=kernel))
        add_state(server, core, database)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        if way == "kernel":
            port = Port(kernel, "client")
            await port.start()
            stack.push_async_callback(port.stop, 1)
            channel: grpc.aio.Channel = port.channel
        else:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        yield SmallState(
            RemoteDocuments(channel),
            RemoteLeases(channel),
            RemoteLocks(channel),
            core,
            database,
            channel,
        )
