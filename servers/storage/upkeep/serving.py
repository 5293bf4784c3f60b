"""Serving uploads and upkeep, and checking blobs between calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Collection

from llmos.api.storage.v1 import maintenance_pb2_grpc, uploads_pb2_grpc
from llmos.lib.serve import Server
from llmos.servers.storage.binding import Bound, ForAdmins
from llmos.servers.storage.blobs.uploads_base import Uploads
from llmos.servers.storage.blobs.uploads_service import UploadsService
from llmos.servers.storage.caller import LOCAL
from llmos.servers.storage.upkeep.local import LocalMaintenance
from llmos.servers.storage.upkeep.service import MaintenanceService


def add_upkeep(
    server: Server,
    uploads: Uploads,
    maintenance: LocalMaintenance,
    stall_ms: int = 0,
    direct: str = "",
    admins: Collection[str] = (LOCAL,),
) -> None:
    """Serve uploads and upkeep. Before the server's start.

    direct: address for fast reads, which Df tells; "" = the server's own. admins: tenants that may
    do upkeep; all may ask Df.

    Upkeep has no stall time: between two of its messages a large table is written, say.
    """
    add_uploads = uploads_pb2_grpc.add_UploadsServicer_to_server
    server.add(add_uploads, Bound(UploadsService(uploads)), stall_ms=stall_ms)
    service = MaintenanceService(maintenance, direct or server.address)
    guarded = ForAdmins(service, admins, all_may=["Df"])
    server.add(maintenance_pb2_grpc.add_MaintenanceServicer_to_server, guarded)


@contextlib.asynccontextmanager
async def scrubbed(
    server: Server, maintenance: LocalMaintenance, bytes_per_s: int, period_s: float
) -> AsyncIterator[None]:
    """Check blobs in the background while inside (0 bytes a second = never).

    After a restore the server stops, to begin anew with what is there now; see `again`.
    """

    async def stop_when_restored() -> None:
        await maintenance.restored.wait()
        server.request_stop()

    work = [asyncio.create_task(stop_when_restored())]
    if bytes_per_s:
        work.append(asyncio.create_task(maintenance.scrub_forever(bytes_per_s, period_s)))
    try:
        yield
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


def again() -> None:
    """Become a fresh process of the same command line and pid."""
    os.execv(sys.executable, sys.orig_argv)
