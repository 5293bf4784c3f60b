"""Which services serve what beside models and blobs, and the work between calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection

from llmos.api.storage.v1 import (
    aliases_pb2_grpc,
    audit_pb2_grpc,
    locks_pb2_grpc,
    quota_pb2_grpc,
    state_pb2_grpc,
)
from llmos.lib.publish import Tell, nobody
from llmos.lib.serve import Server
from llmos.servers.storage.binding import Bound, ForAdmins
from llmos.servers.storage.caller import LOCAL
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.ledger import AuditLog, QuotaBook
from llmos.servers.storage.ledger_service import AuditService, QuotasService
from llmos.servers.storage.registry.local import LocalAliases, LocalLeases
from llmos.servers.storage.registry.service import AliasesService, VersionLeasesService
from llmos.servers.storage.state.documents_service import DocumentsService
from llmos.servers.storage.state.local import LocalState
from llmos.servers.storage.state.service import LeasesService, LocksService


def add_state(
    server: Server, state: LocalState, database: Database, admins: Collection[str] = (LOCAL,)
) -> None:
    """Serve documents, leases, locks, audit log and quotas. Before the server's start.

    admins: tenants that may read the audit log, and see and set others' quotas.

    None of them has a stall time: watches and waits for locks are quiet for as long as they are.
    """
    add = server.add
    add(state_pb2_grpc.add_DocumentsServicer_to_server, Bound(DocumentsService(state.documents)))
    add(locks_pb2_grpc.add_LeasesServicer_to_server, Bound(LeasesService(state.leases)))
    add(locks_pb2_grpc.add_LocksServicer_to_server, Bound(LocksService(state.locks)))
    audit = ForAdmins(AuditService(AuditLog(database)), admins)
    quotas = ForAdmins(QuotasService(QuotaBook(database)), admins, all_may=["GetQuota"])
    add(audit_pb2_grpc.add_AuditServicer_to_server, audit)
    add(quota_pb2_grpc.add_QuotasServicer_to_server, quotas)
    server.when_stopping(state.stop)


def add_registry(
    server: Server, aliases: LocalAliases, leases: LocalLeases, tell: Tell = nobody
) -> None:
    """Serve aliases and leases of versions. Before the server's start; watches have no stall."""
    server.add(aliases_pb2_grpc.add_AliasesServicer_to_server, Bound(AliasesService(aliases, tell)))
    server.add(
        aliases_pb2_grpc.add_VersionLeasesServicer_to_server, Bound(VersionLeasesService(leases))
    )
    server.when_stopping(aliases.stop)


@contextlib.asynccontextmanager
async def kept(state: LocalState) -> AsyncIterator[Callable[[], None]]:
    """Yield what begins to end leases and to forget old history; close the state at the end.

    To be called when calls are served: only then can leases be renewed.
    """
    tasks: list[asyncio.Task[None]] = []
    try:
        yield lambda: tasks.append(asyncio.create_task(state.keep()))
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(state.close)
