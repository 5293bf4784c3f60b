"""Small state in process, over gRPC or through a kernel, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from remote_state import RemoteDocuments, RemoteLeases, RemoteLocks
from ways import reach

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
        channel = await reach(stack, way, state_dir, lambda s: add_state(s, core, database))
        yield SmallState(
            RemoteDocuments(channel),
            RemoteLeases(channel),
            RemoteLocks(channel),
            core,
            database,
            channel,
        )
