"""The memory server's gRPC face: converts and delegates."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

from llmos.api.memory.v1 import buffers_pb2, buffers_pb2_grpc, residency_pb2, residency_pb2_grpc
from llmos.lib import call
from llmos.lib.buffers import CLIENT_KEY
from llmos.lib.host import host_id
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.record import PLAIN, Buffer, Rights
from llmos.servers.memory.residency import Ledger, Report, Wish

_HOST = host_id()


def lessee(context: Any) -> str:
    """Return who holds the leases of this call; see `record`.

    A plain client's peer address says little (all on a Unix socket have the same, a reconnect
    changes it), so such a client may name itself. It cannot name itself as somebody whom the
    kernel vouches for.
    """
    caller = call.caller(context)
    client = _client(context)
    if not client:
        return caller
    if not caller.startswith(PLAIN):
        return f"{caller}/{client}"
    # Hashed, as owners are listed: who reads the list must not be able to pass for another.
    return PLAIN + hashlib.sha256(client.encode()).hexdigest()[:32]


def _client(context: Any) -> str:
    return str(dict(context.invocation_metadata() or ()).get(CLIENT_KEY, ""))


def _handle(buffer: Buffer) -> buffers_pb2.BufferHandle:
    record = buffer.record
    return buffers_pb2.BufferHandle(
        id=record.id, token=bytes.fromhex(record.token), host=_HOST, size=record.size
    )


class BuffersService(buffers_pb2_grpc.BuffersServicer):
    """Buffers over a BufferStore."""

    def __init__(self, store: BufferStore) -> None:
        """Serve `store`."""
        self._store = store

    async def CreateBuffer(
        self, request: buffers_pb2.CreateBufferRequest, context: Any
    ) -> buffers_pb2.CreateBufferResponse:
        """See the proto."""
        buffer = await self._store.create(
            lessee(context),
            request.size,
            request.label,
            request.lease_s,
            request.request_id,
            tenant=call.tenant(context),
        )
        path = "" if buffer.record.sealed else self._path(buffer, context)
        return buffers_pb2.CreateBufferResponse(handle=_handle(buffer), path=path)

    async def OpenBuffer(
        self, request: buffers_pb2.OpenBufferRequest, context: Any
    ) -> buffers_pb2.OpenBufferResponse:
        """See the proto."""
        handle = request.handle
        buffer = self._store.open(lessee(context), handle.id, handle.token, request.lease_s)
        return buffers_pb2.OpenBufferResponse(
            path=self._path(buffer, context),
            sealed=buffer.record.sealed,
            read_only=buffer.record.rights(handle.token) is Rights.READ,
        )

    async def DuplicateBuffer(
        self, request: buffers_pb2.DuplicateBufferRequest, context: Any
    ) -> buffers_pb2.DuplicateBufferResponse:
        """See the proto."""
        record = self._store.reader(request.handle.id, request.handle.token)
        handle = buffers_pb2.BufferHandle(
            id=record.id, token=record.reader, host=_HOST, size=record.size
        )
        return buffers_pb2.DuplicateBufferResponse(handle=handle)

    async def SealBuffer(
        self, request: buffers_pb2.SealBufferRequest, context: Any
    ) -> buffers_pb2.SealBufferResponse:
        """See the proto."""
        self._store.seal(lessee(context), request.handle.id, request.handle.token)
        return buffers_pb2.SealBufferResponse()

    async def RenewLeases(
        self, request: buffers_pb2.RenewLeasesRequest, context: Any
    ) -> buffers_pb2.RenewLeasesResponse:
        """See the proto."""
        missing = self._store.renew(lessee(context), list(request.ids))
        return buffers_pb2.RenewLeasesResponse(missing=missing)

    async def FreeBuffer(
        self, request: buffers_pb2.FreeBufferRequest, context: Any
    ) -> buffers_pb2.FreeBufferResponse:
        """See the proto."""
        who = lessee(context)
        # Plain clients without a name pass for each other: none can speak for all.
        unmapped = request.unmapped and (not who.startswith(PLAIN) or bool(_client(context)))
        buffer = self._store.free(
            who,
            request.handle.id,
            request.handle.token,
            unmapped=unmapped,
            again=request.again and call.same_host(context),
        )
        if buffer is None:
            return buffers_pb2.FreeBufferResponse()
        return buffers_pb2.FreeBufferResponse(
            again=_handle(buffer), claim=self._store.claim(buffer)
        )

    async def ReadBuffer(
        self, request: buffers_pb2.ReadBufferRequest, context: Any
    ) -> AsyncIterator[buffers_pb2.ReadBufferResponse]:
        """See the proto."""
        handle = request.handle
        for piece in self._store.read(handle.id, handle.token, request.offset, request.length):
            yield buffers_pb2.ReadBufferResponse(data=piece)

    async def ListBuffers(
        self, request: buffers_pb2.ListBuffersRequest, context: Any
    ) -> buffers_pb2.ListBuffersResponse:
        """See the proto."""
        infos = [
            buffers_pb2.BufferInfo(
                id=b.record.id,
                size=b.record.size,
                owner=b.record.owner,
                leases=len(b.deadlines),
                sealed=b.record.sealed,
                age_s=self._store.age(b),
                label=b.record.label,
                tenant=b.record.tenant,
            )
            for b in self._store.buffers()
        ]
        return buffers_pb2.ListBuffersResponse(buffers=infos)

    def _path(self, buffer: Buffer, context: Any) -> str:
        return self._store.path(buffer) if call.same_host(context) else ""


class ResidencyService(residency_pb2_grpc.ResidencyServicer):
    """Residency over a Ledger."""

    def __init__(self, ledger: Ledger) -> None:
        """Serve `ledger`."""
        self._ledger = ledger

    async def AcquireGrant(
        self, request: residency_pb2.AcquireGrantRequest, context: Any
    ) -> residency_pb2.AcquireGrantResponse:
        """See the proto."""
        wish = Wish(request.pinned, request.rank, request.tenant, request.reload_s, request.dry_run)
        evict = self._ledger.acquire(request.id, request.device, request.bytes, wish)
        return residency_pb2.AcquireGrantResponse(granted=not evict, evict=evict)

    async def ReleaseGrant(
        self, request: residency_pb2.ReleaseGrantRequest, context: Any
    ) -> residency_pb2.ReleaseGrantResponse:
        """See the proto."""
        self._ledger.release(request.id)
        return residency_pb2.ReleaseGrantResponse()

    async def ReportGrants(
        self, request: residency_pb2.ReportGrantsRequest, context: Any
    ) -> residency_pb2.ReportGrantsResponse:
        """See the proto."""
        self._ledger.report(
            Report(
                g.id,
                g.device,
                g.bytes,
                g.used_bytes,
                g.busy,
                g.pinned,
                g.idle_s,
                moving=g.moving,
                leases=g.leases,
                served=g.served,
                reload_s=g.reload_s,
                rank=g.rank,
                tenant=g.tenant,
            )
            for g in request.grants
        )
        return residency_pb2.ReportGrantsResponse()

    async def ListDevices(
        self, request: residency_pb2.ListDevicesRequest, context: Any
    ) -> residency_pb2.ListDevicesResponse:
        """See the proto."""
        devices = [
            residency_pb2.Device(
                name=d.name,
                description=d.description,
                total_bytes=d.total,
                budget_bytes=d.budget,
                granted_bytes=self._ledger.granted(d.name),
                free_bytes=d.free(),
                used_bytes=self._ledger.used(d.name),
                waiting_bytes=self._ledger.waiting(d.name),
            )
            for d in self._ledger.devices.values()
        ]
        return residency_pb2.ListDevicesResponse(devices=devices)

    async def ListGrants(
        self, request: residency_pb2.ListGrantsRequest, context: Any
    ) -> residency_pb2.ListGrantsResponse:
        """See the proto."""
        order: dict[str, int] = {}
        for device in self._ledger.devices:
            order |= self._ledger.order(device)
        grants = [
            residency_pb2.Grant(
                id=g.id,
                device=g.device,
                bytes=g.bytes,
                used_bytes=g.used_bytes,
                busy=g.busy,
                pinned=g.pinned,
                idle_s=self._ledger.idle_s(g),
                moving=g.moving,
                leases=g.leases,
                served=g.served,
                reload_s=g.reload_guess_s,
                rank=g.rank,
                tenant=g.tenant,
                order=order.get(g.id, 0),
            )
            for g in self._ledger.grants()
        ]
        return residency_pb2.ListGrantsResponse(grants=grants)

    async def ListChanges(
        self, request: residency_pb2.ListChangesRequest, context: Any
    ) -> residency_pb2.ListChangesResponse:
        """See the proto."""
        changes = [
            residency_pb2.Change(**{**vars(c), "kind": int(c.kind)})
            for c in self._ledger.changes.newest(request.limit)
        ]
        return residency_pb2.ListChangesResponse(changes=changes)
